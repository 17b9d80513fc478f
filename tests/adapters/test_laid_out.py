"""Runs that were laid out before are kept, and are what they would be anew."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from scheduler_cases import FAMILIES, drive, scheduler_for, start

from logsnr.adapters import PlanScheduler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
def test_the_second_run_is_the_first(family, solver):
    """Whatever was done to the tensors and the scheduler of the first."""
    config, given = FAMILIES[family]
    scheduler, other = (PlanScheduler(**config, solver=solver) for _ in range(2))
    scheduler.set_timesteps(6, **given)
    times, levels = scheduler.timesteps.clone(), scheduler.sigmas.clone()
    first = drive(scheduler, start())
    scheduler.timesteps.mul_(0)
    scheduler.sigmas.fill_(3.0)
    scheduler.set_timesteps(4, **given)
    scheduler.set_timesteps(6, **given)
    other.set_timesteps(6, **given)
    for again in (scheduler, other):
        assert torch.equal(again.timesteps, times)
        assert torch.equal(again.sigmas, levels)
        assert torch.equal(drive(again, start()), first)


def test_what_was_kept_belongs_to_its_config():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(6)
    kept = scheduler.timesteps.clone()
    scheduler.config.timestep_spacing = "trailing"
    scheduler.set_timesteps(6)
    expected = scheduler_for("unipc", timestep_spacing="trailing")
    expected.set_timesteps(6)
    assert torch.equal(scheduler.timesteps, expected.timesteps)
    assert not torch.equal(scheduler.timesteps, kept)
    scheduler.config.solver = {"name": "dpm-solver++", "steps": "singlestep"}
    scheduler.set_timesteps(6)
    once = drive(scheduler, start())
    scheduler.config.solver["steps"] = "multistep"
    scheduler.set_timesteps(6)
    assert not torch.equal(drive(scheduler, start()), once)


def test_equal_numbers_of_other_types_are_not_taken_for_each_other():
    scheduler = scheduler_for("ddim")
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="num_inference_steps=True"):
        scheduler.set_timesteps(True)
    scheduler.set_timesteps(timesteps=[500, 100])
    whole = scheduler.timesteps.clone()
    scheduler.set_timesteps(timesteps=torch.tensor([500.0, 100.0]))
    assert torch.equal(scheduler.timesteps, whole)


def test_a_kept_run_can_be_used_in_inference_mode_and_out_of_it():
    scheduler = scheduler_for("unipc")
    with torch.inference_mode():
        scheduler.set_timesteps(5)
        inside = drive(scheduler, start())
    scheduler.set_timesteps(5)
    x = start().requires_grad_()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    x.sum().backward()
    scheduler.set_timesteps(5)
    assert torch.equal(drive(scheduler, start()), inside)


def test_nothing_is_left_of_a_scheduler_that_is_gone():
    scheduler = PlanScheduler(solver="unipc")
    scheduler.set_timesteps(5)
    kept = [weakref.ref(scheduler.config.edition), weakref.ref(scheduler.config)]
    del scheduler
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
