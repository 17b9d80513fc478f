"""The contenders of ``logsnr demo``, and what it compares when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 20
NFE = (5, 8, 10, 20)
GRID = "karras"
V3 = "dpm-solver-v3"
OURS = "PlanScheduler"
PSEUDO = {"p_pseudo": True, "c_pseudo": False}  # the best of the four on this model, docs/ems.md


PASTED = "pasted"
HIGHLIGHTS = (
    PASTED,
    "unipc-3",
    "dpm-v3",
    "stock-unipc-2",
    "stock-unipc-2-trailing",
    "stock-unipc-2-karras",
)
"""The lines of the plot where there would be more than can be told apart: ours, and of diffusers'
schedulers the best, as the model's config says and on the best of its other grids."""
SHOWN = ("stock-unipc-2", "stock-unipc-2-trailing", PASTED)
"""The rows of the pictures, likewise, under the converged solution."""


@dataclass(frozen=True)
class Method:
    """A contender: a plan of this project's, its scheduler, or one of diffusers' schedulers.

    ``solver`` is the name of a solver, or of the scheduler's class.
    """

    title: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scheduler(self) -> bool:
        """Whether it is run by the ``step`` of a scheduler, ours or one of diffusers."""
        return self.solver.endswith("Scheduler")

    @property
    def stock(self) -> bool:
        """Whether it is one of diffusers' schedulers."""
        return self.scheduler and self.solver != OURS


def _ours(title: str, solver: str, **options: Any) -> Method:
    return Method(title, solver, {"spacing": GRID, **options})


def _stock(name: str, title: str, scheduler: str, *grids: str) -> dict[str, Method]:
    """diffusers' scheduler with the model's own config, and on each of ``grids``."""
    options: dict[str, dict[str, Any]] = {
        "trailing": {"timestep_spacing": "trailing"},
        "karras": {"use_karras_sigmas": True},
    }
    methods = {name: Method(f"diffusers {title}", scheduler)}
    for grid in grids:
        methods[f"{name}-{grid}"] = Method(f"diffusers {title}, {grid}", scheduler, options[grid])
    return methods


METHODS: dict[str, Method] = {
    "ddim": _ours("DDIM", "ddim"),
    "heun": _ours("Heun", "heun"),
    "dpm++2s": _ours("DPM++ 2S", "dpm-solver++", order=2, steps="singlestep"),
    "dpm++3s": _ours("DPM++ 3S", "dpm-solver++", order=3, steps="singlestep"),
    "dpm++2m": _ours("DPM++ 2M", "dpm-solver++", order=2),
    "dpm++3m": _ours("DPM++ 3M", "dpm-solver++", order=3),
    "unipc-2": _ours("UniPC-2", "unipc", order=2),
    "unipc-3": _ours("UniPC-3", "unipc", order=3),
    "dpm-v3": _ours("DPM-Solver-v3", V3, order=3, **PSEUDO, treatment="spline", fallback=False),
    PASTED: Method("PlanScheduler, nothing said", OURS),
    **_stock("stock-ddim", "DDIM", "DDIMScheduler", "trailing"),
    **_stock("stock-dpm++2m", "DPM++ 2M", "DPMSolverMultistepScheduler", "trailing", "karras"),
    **_stock("stock-unipc-2", "UniPC-2", "UniPCMultistepScheduler", "trailing", "karras"),
}
"""Our solvers on one grid, `GRID`; the line that people paste; diffusers' as the model's config
says and on the best of their own grids (`docs/demo.md` has the measurements).
"""
