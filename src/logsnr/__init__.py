"""Numerical solvers for pretrained diffusion and flow models.

``logsnr.solvers`` has schedules, grids, solvers and the runner, ``logsnr.adapters`` what joins them
to diffusers, k-diffusion and EDM networks, ``logsnr.benchmarks`` the command line. The names that
most programs need are here as well, and are imported when they are asked for.

The three folders lie at the top of the repository: see pyproject.toml.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logsnr.adapters import PlanScheduler, run_pipeline
    from logsnr.solvers import Denoiser, make_plan, reference_solution, sample

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "PlanScheduler",
    "__version__",
    "make_plan",
    "reference_solution",
    "run_pipeline",
    "sample",
]

_HOME = dict.fromkeys(("PlanScheduler", "run_pipeline"), "logsnr.adapters") | dict.fromkeys(
    ("Denoiser", "make_plan", "reference_solution", "sample"), "logsnr.solvers"
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
