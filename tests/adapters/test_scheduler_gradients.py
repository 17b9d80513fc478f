"""Gradients through a part of a run: DRaFT's last steps, truncated graphs, gradients of a state."""

from __future__ import annotations

import diffusers
import pytest
import torch
from scheduler_cases import FAMILIES, LATENT, assert_close, network, scheduler_for, start
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.solvers import SOLVERS

N = 6
WAYS = ["no_grad", "detached", "all"]


def sampled(scheduler, weight: Tensor, last: int, way: str, **given) -> Tensor:
    """The sample, of whose ``last`` evaluations the network's weight is ``weight``."""
    scheduler.set_timesteps(N, **given)
    x, noise = start(torch.float64), torch.zeros_like(start(torch.float64))
    for k, t in enumerate(scheduler.timesteps):
        free = k >= N - last
        with torch.set_grad_enabled(way != "no_grad" or free):
            output = network(x, t) * (weight if free else weight.detach() ** 0)
            if way == "detached" and not free:
                output = output.detach()
            x = scheduler.step(output, t, x, variance_noise=noise).prev_sample
    return x


def slope(function, at: float) -> Tensor:
    step = 1e-5
    ends = (function(torch.tensor(at + s, dtype=torch.float64)) for s in (step, -step))
    return (next(ends) - next(ends)) / (2 * step)


def check(scheduler, last: int, way: str, **given) -> None:
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    result = sampled(scheduler, weight, last, way, **given)
    assert result.requires_grad
    (gradient,) = torch.autograd.grad((result * start(torch.float64).flip(0)).sum(), weight)
    with torch.no_grad():
        slopes = slope(lambda w: sampled(scheduler, w, last, "all", **given), 0.9)
    expected = (slopes * start(torch.float64).flip(0)).sum()
    assert float(gradient) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [1, 2, 4, N])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_gradient_of_the_last_steps_is_the_slope(solver, last, way):
    check(scheduler_for(solver), last, way)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family(family):
    config, given = FAMILIES[family]
    check(PlanScheduler(**config, solver="unipc"), 2, "no_grad", **given)


@pytest.mark.parametrize("threshold", ["thresholding", "clip_sample"])
def test_with_a_hook_on_the_data_prediction(threshold):
    solver = "ddim" if threshold == "clip_sample" else "unipc"
    check(scheduler_for(solver, **{threshold: True}, sample_max_value=3.0), 2, "no_grad")


def test_the_gradient_is_that_of_stock_ddim():
    config = {**LATENT, "timestep_spacing": "leading", "clip_sample": False}
    gradients = []
    for scheduler in (PlanScheduler(**config, solver="ddim"), diffusers.DDIMScheduler(**config)):
        scheduler.set_timesteps(10)
        weight = torch.ones(4, requires_grad=True)
        x = start()
        for k, t in enumerate(scheduler.timesteps):
            with torch.set_grad_enabled(k >= 7):
                x = scheduler.step(network(x, t) * weight, t, x).prev_sample
        gradients.append(torch.autograd.grad(x.square().sum(), weight)[0])
    assert_close(*gradients, 1e-5)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++", "heun"])
@pytest.mark.parametrize("place", [1, 3])
def test_a_state_that_requires_grad_in_the_middle(solver, place):
    """Guidance that differentiates the rest of the run with respect to the state."""

    def rest(x: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        scheduler = scheduler_for(solver)
        scheduler.set_timesteps(N)
        with torch.no_grad():
            state = start(torch.float64)
            for t in scheduler.timesteps[:place]:
                state = scheduler.step(network(state, t), t, state).prev_sample
        state = state + x if not grad else state.requires_grad_()
        y = state
        for t in scheduler.timesteps[place:]:
            y = scheduler.step(network(y, t), t, y).prev_sample
        return y, state

    result, state = rest(torch.zeros(()), True)
    (gradient,) = torch.autograd.grad(result.sum(), state)
    direction = start(torch.float64).flip(1)
    ends = [rest(sign * 1e-5 * direction, False)[0].sum() for sign in (1, -1)]
    expected = float(ends[0] - ends[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
def test_values_do_not_depend_on_where_the_graph_begins(solver):
    scheduler = scheduler_for(solver)
    with torch.no_grad():
        expected = sampled(scheduler, torch.ones((), dtype=torch.float64), N, "all")
    for last in range(1, N + 1):
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        assert_close(sampled(scheduler, weight, last, "no_grad").detach(), expected, 1e-13)
