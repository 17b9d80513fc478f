"""Every solver that adds noise, in a scheduler's steps: one run, however it is gone through."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from scheduler_cases import drive, network, scheduler_for, start
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.k_diffusion import sampler
from logsnr.solvers import SOLVERS, BrownianPath, CounterNoise, Grid, VPLinear, plan_on_grid

NOISY = {"eta": 0.8, "s_churn": 6.0}
OPTIONS = {
    name: {key: value for key, value in NOISY.items() if key in entry.defaults}
    for name, entry in SOLVERS.items()
}
GRID = Grid(VPLinear(), 1.0, 1e-3)
NAMES = [name for name in SOLVERS if plan_on_grid(name, GRID, 8, **OPTIONS[name]).stochastic]
SIGMAS = torch.tensor([14.0, 7.0, 3.0, 1.5, 0.6, 0.2, 0.0])


def laid_out(name: str, **config: Any) -> tuple[PlanScheduler, dict[str, float]]:
    scheduler = scheduler_for({"name": name, **OPTIONS[name]}, **config)
    scheduler.set_timesteps(6)
    return scheduler, {"eta": 0.8} if "eta" in OPTIONS[name] else {}


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_repeated_steps_with_densities_are_the_run(name):
    scheduler, options = laid_out(name, noise_seed=11)
    whole = drive(scheduler, start(), **options)
    for at in (1, 3, 5):
        scheduler, _ = laid_out(name, noise_seed=11)
        x = start()
        for i, t in enumerate(scheduler.timesteps):
            scheduler = deepcopy(scheduler) if i == at else scheduler
            out = network(x, t)
            if i > at:  # made twice, first without its density
                scheduler.step(2 * out, t, x, **options)
            made = scheduler.step(out, t, x, log_prob=i > at, **options)
            assert i <= at or torch.isfinite(made.log_prob).all()
            x = made.prev_sample
        assert torch.equal(x, whole)


@pytest.mark.parametrize("name", NAMES)
def test_generators_and_paths_are_followed(name):
    scheduler, options = laid_out(name)
    first, again, other = (
        drive(scheduler, start(), generator=torch.Generator().manual_seed(seed), **options)
        for seed in (3, 3, 4)
    )
    noisy = scheduler.plan.stochastic  # six evaluations are too few for a restart
    assert torch.equal(first, again) and torch.equal(first, other) is not noisy
    scheduler.noise = BrownianPath(3, samples=[1], tolerance=1e-2)
    alone = drive(scheduler, start()[1:], **options)
    scheduler.noise = BrownianPath(3, tolerance=1e-2)
    assert torch.equal(drive(scheduler, start(), **options)[1:], alone)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_of_k_diffusion_take_seeds_and_noise_samplers(name):
    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return torch.tanh(x)

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, 5)

    asked: list[tuple[float, float]] = []
    ours, x = sampler(name, **OPTIONS[name]), 14 * torch.ones(2, 5)
    whole = ours(model, x, SIGMAS, {"seed": 5})
    alone = ours(model, x[1:], SIGMAS, noise_sampler=CounterNoise(5, samples=[1]))
    assert torch.equal(whole[1:], alone)
    if name in ("langevin", "restart"):  # noise of a clock of its own, and none on so few sigmas
        return
    still = ours(model, x, SIGMAS, noise_sampler=noise_sampler)
    assert asked and torch.isfinite(still).all() and not torch.equal(still, whole)
