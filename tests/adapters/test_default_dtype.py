"""torch.set_default_dtype is the user's affair: it changes no number of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scheduler_cases import FAMILIES, SHAPE, drive, start
from torch import Tensor

from logsnr.adapters import PlanScheduler, k_diffusion
from logsnr.solvers import (
    SOLVERS,
    SPACINGS,
    ClassifierFree,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    VPLinear,
    make_plan,
    sample,
    sample_parallel,
)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """With ``dtype`` as torch's default, and nothing kept from before."""
    before = torch.get_default_dtype()
    for name in [name for name in sys.modules if name.startswith("logsnr")]:
        for value in list(vars(sys.modules[name]).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def of_each_default(make: Any) -> Iterator[Any]:
    for dtype in (torch.bfloat16, torch.float32):
        with default(dtype):
            yield make()


def assert_same(make: Any) -> None:
    changed, usual = of_each_default(make)
    for ours, expected in zip(changed, usual, strict=True):
        if isinstance(expected, Tensor):
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)
        else:
            assert ours == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
def test_tables_and_runs_of_schedulers(family, solver):
    config, given = FAMILIES[family]
    x = start()

    def made() -> list[Any]:
        scheduler = PlanScheduler(**config, solver=solver)
        tables = [scheduler.timesteps, scheduler.sigmas]
        if scheduler._description.model.steps is not None:
            tables += [scheduler.betas, scheduler.alphas_cumprod, scheduler.lambda_t]
        scheduler.set_timesteps(7, **given)
        tables += [scheduler.timesteps, scheduler.sigmas, float(scheduler.init_noise_sigma)]
        tables.append(scheduler.add_noise(x, x.flip(0), scheduler.timesteps[[2, 5]]))
        return [*tables, drive(scheduler, x)]

    assert_same(made)


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
def test_every_spacing(spacing):
    def made() -> list[Any]:
        scheduler = PlanScheduler(timestep_spacing=spacing, beta_schedule="scaled_linear")
        scheduler.set_timesteps(9)
        return [scheduler.timesteps, scheduler.sigmas]

    assert_same(made)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("schedule", ["discrete", "linear", "flow"])
def test_every_plan(solver, schedule):
    def made() -> list[Any]:
        known = {
            "discrete": DiscreteVP.from_betas([1e-3 * (k + 1) for k in range(60)]),
            "linear": VPLinear(),
            "flow": FlowMatching(),
        }
        plan = make_plan(solver, known[schedule], nfe=11, t_start=0.9, t_end=0.1)
        return [*plan.times, plan.coefficients()]

    assert_same(made)


def test_guidance_parallel_and_k_diffusion():
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    guidance = ClassifierFree(3.0, {"y": x}, {"y": 0 * x}, interval=(0.2, 0.701))

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x + y) * t.reshape(-1, 1)

    def known(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, x)

    def made() -> list[Any]:
        denoise = Denoiser(network, VPLinear(), "epsilon", guidance=guidance)
        plan = make_plan("unipc", VPLinear(), nfe=9)
        swept = sample_parallel(denoise, x, plan, window=4, tolerance=1e-3, published=True)[0]
        outside = k_diffusion.to_k_diffusion(Denoiser(known, VPLinear(), "epsilon"))
        return [sample(denoise, x, plan), swept, outside(x, 0.7003)]

    assert_same(made)


def test_the_shape_of_the_cases():
    assert SHAPE[0] == 2  # two timesteps are given to add_noise
