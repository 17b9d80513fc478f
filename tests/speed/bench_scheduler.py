"""What the methods of PlanScheduler cost beside those of diffusers' schedulers: ``make bench``.

Each group holds one call of stock and ours, timed in one process; read their ratio. Nothing here is
asserted: times belong to a machine.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from logsnr.adapters import PlanScheduler
from logsnr.solvers import DiscreteVP, make_plan

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PAIRS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ddim": ("DDIMScheduler", LATENT, "ddim"),
    "dpm++": ("DPMSolverMultistepScheduler", LATENT, "dpm-solver++"),
    "unipc": ("UniPCMultistepScheduler", LATENT, "unipc"),
    "euler": ("EulerDiscreteScheduler", LATENT, "euler"),
    "heun": ("HeunDiscreteScheduler", LATENT, "heun"),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "ddim"),
    "edm": ("EDMDPMSolverMultistepScheduler", {}, "dpm-solver++"),
}
STEPS, BATCH, SHAPE = 50, 64, (4, 8, 8)


@pytest.fixture(params=PAIRS)
def pair(request: Any) -> str:
    return request.param


@pytest.fixture(params=["stock", "ours"])
def scheduler(request: Any, pair: str, benchmark: Any) -> Any:
    """The scheduler of one side of a pair, in the pair's group."""
    torch.set_num_threads(1)
    benchmark.group = f"{request.function.__name__.removeprefix('test_')} of {pair}"
    name, options, solver = PAIRS[pair]
    stock = getattr(diffusers, name)(**options)
    if request.param == "stock":
        return stock
    return PlanScheduler.from_config(stock.config, solver=solver, keep_sampling=True)


def test_set_timesteps(benchmark: Any, scheduler: Any) -> None:
    """As for the second image of a pipeline."""
    benchmark(scheduler.set_timesteps, STEPS)


def test_set_timesteps_anew(benchmark: Any, scheduler: Any) -> None:
    """With another number of steps than before."""
    numbers = iter(range(STEPS, 10 * STEPS))
    benchmark.pedantic(lambda: scheduler.set_timesteps(next(numbers)), rounds=30)


def test_add_noise(benchmark: Any, scheduler: Any) -> None:
    """As a training script calls it: timesteps of training, another one for each sample."""
    x, noise = torch.randn(2, BATCH, *SHAPE)
    times = scheduler.timesteps[torch.randint(0, 1000, (BATCH,))]
    if hasattr(scheduler, "add_noise"):
        benchmark(scheduler.add_noise, x, noise, times)
    else:
        scheduler.set_begin_index(0)  # a flow scheduler has no level for each sample
        benchmark(scheduler.scale_noise, x, times[:1], noise)


def test_step(benchmark: Any, scheduler: Any) -> None:
    """A whole run, without the network."""
    x, output = torch.randn(2, 1, *SHAPE)

    def loop() -> None:
        state = x
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            state = scheduler.step(output, t, state, return_dict=False)[0]

    benchmark(loop)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++", "heun", "deis", "ipndm"])
@pytest.mark.parametrize("nfe", [10, 50])
def test_make_plan(benchmark: Any, solver: str, nfe: int) -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    benchmark.group = f"make_plan, {nfe} NFE"
    benchmark(make_plan, solver, DiscreteVP.from_betas(betas), nfe=nfe)
