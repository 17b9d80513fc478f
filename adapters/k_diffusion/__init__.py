r"""The interface of k-diffusion, in both directions.

k-diffusion's models are data predictions of the variance-exploding process,

    model(x, sigma, **extra_args) -> denoised,     x = x0 + sigma n (B, *event),  sigma (B,)

and its samplers are functions ``sample_xxx(model, x, sigmas, extra_args, callback, disable)`` that
start at x = x0 + sigmas[0] n. Any other process is one of these in disguise: with
sigma = sigma_t / alpha_t = exp(-lambda_t), its state is x_t = alpha_t x.

* `from_k_diffusion`: their model for our solvers.
* `to_k_diffusion`: our `Denoiser`, of any schedule and prediction, for their samplers.
* ``sample_unipc``, ``sample_dpm_solver_pp``, ...: every solver of the registry as such a sampler,
  for whatever calls them by that interface. `sampler` makes one with options, `SAMPLERS` has all.

Reference: Karras et al. 2022; the interface is that of github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

from typing import Any

from .models import KDiffusionModel, Model, from_k_diffusion, to_k_diffusion
from .samplers import (
    SAMPLERS,
    SCHEDULES,
    Sampler,
    checked_options,
    function_name,
    nodes_of,
    sampler,
    schedule_of,
)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "KDiffusionModel",
    "Model",
    "Sampler",
    "checked_options",
    "from_k_diffusion",
    "function_name",
    "nodes_of",
    "sampler",
    "schedule_of",
    "to_k_diffusion",
]


def __getattr__(name: str) -> Any:
    if name in SAMPLERS:
        return SAMPLERS[name]
    if name.startswith("sample_"):
        raise AttributeError(f"no sampler is called {name!r}: there are {', '.join(SAMPLERS)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *SAMPLERS])
