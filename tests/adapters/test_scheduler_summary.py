"""What a scheduler shows of itself: its plan, and one line."""

from __future__ import annotations

import pytest
import torch

from logsnr.adapters import PlanScheduler

CONFIGS = {
    "steps": {},
    "flow": {"shift": 3.0},
    "edm": {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("solver", ["unipc-2", "heun", "ddim", "dpmpp_2s"])
def test_the_plan_is_what_step_runs(config, solver):
    scheduler = PlanScheduler(solver=solver, **config)
    assert scheduler.plan is None
    scheduler.set_timesteps(6)
    plan = scheduler.plan
    assert plan.nfe == 6 == len(scheduler.timesteps)
    x = start = torch.linspace(-1, 1, 12).reshape(2, 6)
    outputs = [torch.sin(k + start) for k in range(6)]
    for t, output in zip(scheduler.timesteps, outputs, strict=True):
        x = scheduler.step(output, t, x).prev_sample
        assert scheduler.plan.rows == plan.rows
    again = PlanScheduler(solver=solver, **config)
    again.set_timesteps(6)
    assert again.plan.rows == plan.rows
    assert not torch.equal(x, start)


def test_the_plan_of_a_run_that_begins_later_is_that_run():
    scheduler = PlanScheduler()
    scheduler.set_timesteps(8)
    whole = scheduler.plan
    scheduler.set_begin_index(3)
    assert scheduler.plan.nfe == 5 and scheduler.plan.times == pytest.approx(whole.times[3:])


def test_a_stochastic_run_shows_its_noise():
    scheduler = PlanScheduler(solver="ddim")
    scheduler.set_timesteps(4)
    assert not scheduler.plan.stochastic
    x = torch.zeros(1, 3)
    scheduler.step(x, scheduler.timesteps[0], x, eta=1.0)
    assert scheduler.plan.stochastic


def test_the_representation_is_one_short_line():
    scheduler = PlanScheduler(solver="dpmpp_3m", timestep_spacing="trailing")
    assert repr(scheduler) == (
        "<PlanScheduler 'dpm-solver++', order=3, grid='trailing', not laid out>"
    )
    scheduler.set_timesteps(5)
    assert repr(scheduler) == (
        "<PlanScheduler 'dpm-solver++', order=3, grid='trailing', nfe=5, "
        "times=[999, 799, 599, 399, 199]>"
    )
    scheduler.set_timesteps(50)
    text = repr(scheduler)
    assert "nfe=50" in text and "999, 979, 959, 939, ..., 79, 59, 39, 19" in text
    assert len(text) < 150 and "\n" not in text


def test_the_representation_says_where_the_times_come_from():
    karras = PlanScheduler(use_karras_sigmas=True, solver={"name": "unipc", "order": 3})
    assert "order=3, grid='karras'" in repr(karras)
    karras.set_timesteps(timesteps=[900, 500, 100])
    assert "grid='listed', nfe=3, times=[900, 500, 100]" in repr(karras)
    assert "order" not in repr(PlanScheduler(solver="heun"))
