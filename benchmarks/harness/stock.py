r"""diffusers' own schedulers on the problems of this project, driven as its pipelines drive them.

    for t in scheduler.timesteps:  x = scheduler.step(network(x, t), t, x).prev_sample

A comparison needs one end point. By default these schedulers end at sigma = 0, by one first-order
step from the last node. Here all of them end at training step 0 instead, the last of the noise
schedule (``final_sigmas_type="sigma_min"``, for DDIM ``set_alpha_to_one=False``), which is where
``make_plan`` ends on a `DiscreteVP` (t_end = 1/N). Nothing else is taken from them: orders,
variants and the lowering of the order towards the end are diffusers' defaults.

The start is the other half of a fair comparison. diffusers places n timesteps by one of three
rules; from x_T ~ N(0, 1), which is the state at training step N - 1,

    leading     (n-1) N/n, .., N/n, 0     begins at a state that x_T is not, and DDIM ends twice
    trailing    N - 1, .., N/n - 1        begins at x_T
    linspace    N - 1, .., 0              begins at x_T; DDIM still steps by N // n, past its nodes

A model's config usually says "leading", so that is what replacing a pipeline's scheduler gives.
With ``use_karras_sigmas`` the n-th node is the end itself, so the step from it is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.harness.methods import OURS

END: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": {"final_sigmas_type": "sigma_min"},
    "UniPCMultistepScheduler": {"final_sigmas_type": "sigma_min"},
    OURS: {"final_sigmas_type": "sigma_min"},
}
"""The schedulers that are compared, ours last, and what ends each at training step 0."""


def stock_scheduler(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """The scheduler called ``name`` (a key of ``END``) with a model's own config.

    options : of the scheduler's constructor, instead of what the config says.
    Raises ValueError for another name.
    """
    if name not in END:
        raise ValueError(f"name={name!r}: choose one of {', '.join(END)}")
    kind = PlanScheduler if name == OURS else getattr(diffusers, name)
    return kind.from_config(dict(config), **END[name], **options)


@torch.no_grad()
def sample_stock(
    network: Callable[[Tensor, float], Tensor], x_T: Tensor, scheduler: Any, nfe: int
) -> Tensor:
    """Run a scheduler from x_T (B, *event); the result has the shape and dtype of x_T.

    Parameters
    ----------
    network : (x, index of the training step) -> what the scheduler's config says it predicts.
    nfe : diffusers' ``num_inference_steps``, for these schedulers the number of evaluations.
    """
    scheduler.set_timesteps(nfe)
    x = x_T * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    return x
