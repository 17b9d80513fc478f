"""Timesteps and sigmas that the user lists: every one is used, or the list is refused."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from scheduler_cases import LATENT, assert_close, drive, scheduler_for, start

from logsnr.adapters import PlanScheduler
from logsnr.adapters.timesteps.pipeline_sigmas import sent_unasked
from logsnr.solvers import SOLVERS

TIMES = [990, 930, 811, 702, 570, 421, 253, 120, 7]
SIGMAS = [1.0, 0.97, 0.8, 0.52, 0.3, 0.11]
SEVERAL = {
    "heun": "heun",
    "dpm2": "dpm2",
    "rhork": {"name": "deis", "variant": "rhork"},
    "singlestep": {"name": "dpm-solver++", "steps": "singlestep"},
    "singlestep of noise": "dpm-solver",
}


@pytest.mark.parametrize("solver", [*sorted(SOLVERS), *SEVERAL.values()], ids=str)
@pytest.mark.parametrize("order", [2, 3])
def test_every_listed_timestep_is_told(solver, order):
    scheduler = scheduler_for(solver, solver_order=order)
    scheduler.set_timesteps(timesteps=TIMES)
    told: list[float] = []
    x = start()
    for t in scheduler.timesteps:
        told.append(float(t))
        x = scheduler.step(x.tanh(), t, x, return_dict=False)[0]
    assert x.isfinite().all()
    assert told == scheduler.timesteps.tolist()
    assert set(TIMES) <= set(told)
    assert scheduler.num_inference_steps == len(told)


@pytest.mark.parametrize("solver", [*SEVERAL.values(), "unipc", "ddim"], ids=str)
def test_every_listed_sigma_is_told(solver):
    flow = PlanScheduler(shift=1.0, exact_sigmas=True, solver=solver)
    flow.set_timesteps(sigmas=SIGMAS)
    expected = torch.tensor(SIGMAS) * 1000
    assert {round(t) for t in flow.timesteps.tolist()} >= {round(t) for t in expected.tolist()}
    steps = scheduler_for(solver)
    steps.set_timesteps(sigmas=[14.0, 7.0, 3.0, 1.1, 0.4, 0.1, 0.0])
    level = steps.sigmas[:-1]
    for sigma in (14.0, 7.0, 3.0, 1.1, 0.4, 0.1):
        assert float((level / sigma - 1).abs().min()) < 1e-6


def test_a_list_that_the_solver_cannot_go_through_is_refused():
    fixed = scheduler_for({"name": "dpm-solver++", "steps": "singlestep_fixed"})
    with pytest.raises(ValueError, match="timesteps lists 9 evaluations, and solver='dpm-solver"):
        fixed.set_timesteps(timesteps=TIMES)


@pytest.mark.parametrize("solver, stock", [
    ("heun", diffusers.HeunDiscreteScheduler),
])  # fmt: skip
@pytest.mark.parametrize("begin", [0, 3])
def test_listed_steps_are_those_of_stock(solver, stock, begin):
    theirs = stock(**LATENT)
    ours = scheduler_for(solver)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(timesteps=TIMES)
        scheduler.set_begin_index(2 * begin)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    level = theirs.sigmas[2 * begin].float()
    expected = drive(theirs, start() * (1 + level**2).sqrt(), 2 * begin)
    assert_close(drive(ours, start(), 2 * begin), expected, 1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 30])
def test_lists_that_pipelines_send_by_themselves(n):
    """They are no wish: n entries are n evaluations, also of solvers with several a step."""
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    even = torch.linspace(1, 1 / n, n).tolist()
    assert sent_unasked(even)
    assert n < 2 or sent_unasked(linear_quadratic_schedule(n, 0.025))
    scheduler = PlanScheduler(shift=3.0, solver="heun")
    scheduler.set_timesteps(sigmas=even, mu=None)
    assert len(scheduler.timesteps) == n


def test_other_lists_are_the_users():
    assert not sent_unasked([1.0, 0.6])
    assert not sent_unasked(SIGMAS)


@pytest.mark.parametrize("times", [
    np.array(TIMES[::-1])[::-1], np.array(TIMES, dtype=np.float32), np.array(TIMES)[::1],
    torch.tensor(TIMES), tuple(TIMES), torch.tensor([TIMES, TIMES]).T[:, 0],
], ids=["turned", "float32", "numpy", "torch", "tuple", "strided"])  # fmt: skip
def test_lists_of_every_kind(times):
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.timesteps.tolist() == TIMES
