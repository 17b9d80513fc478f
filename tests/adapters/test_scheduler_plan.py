"""A scheduler that is given a plan runs that plan, and refuses what would be another run."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scheduler_cases import FAMILIES, LATENT, assert_close, drive, network, start

from logsnr.adapters import PlanScheduler, noise_schedule
from logsnr.adapters.config.foreign import say
from logsnr.solvers import NoiseSchedule, make_plan

NFE = 6
FLOW = {"shift": 3.0}


def schedule_of(config: dict) -> NoiseSchedule:
    return noise_schedule(PlanScheduler(**config).config)


def pair(family: str, solver: str = "unipc", **config) -> tuple[PlanScheduler, PlanScheduler]:
    """A scheduler of a family with a solver, and one with the plan that the first would run."""
    own, given = FAMILIES[family]
    first = PlanScheduler(**own, solver=solver, **config)
    first.set_timesteps(NFE, **given)
    second = PlanScheduler.from_config(first.config, plan=first.plan)
    second.set_timesteps(NFE, **given)
    return first, second


@pytest.mark.parametrize("solver", ["unipc", "dpm2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_of_a_scheduler_is_its_run(family, solver):
    first, second = pair(family, solver)
    assert torch.equal(second.timesteps, first.timesteps)
    assert second.timesteps.dtype == first.timesteps.dtype
    assert torch.equal(second.sigmas, first.sigmas)
    assert torch.equal(drive(second, start()), drive(first, start()))
    assert second.plan.rows == first.plan.rows


@pytest.mark.parametrize("shift", [None, 3.0])
def test_any_plan_on_the_schedule_is_run(shift):
    """One that no config gives: random weights, which no solver has."""
    config = LATENT if shift is None else {"shift": shift}
    plan = make_plan("dpm-solver++", schedule_of(config), nfe=NFE)
    weights = plan.coefficients()
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(3))
    plan = plan.with_coefficients(weights * (1 + 0.1 * noise.double()))
    scheduler = PlanScheduler(**config, plan=plan)
    scheduler.set_timesteps(NFE)
    told = [(1000 * t if shift else round(1000 * t - 1)) for t in plan.times]
    assert_close(scheduler.timesteps.double(), torch.tensor(told, dtype=torch.float64), 1e-4)

    # by hand: every row is a sum over states and outputs
    states, outputs = [start(torch.float64)], {}
    for k, row in enumerate(plan.rows):
        x = states[0] if k == 0 else sum(float(a) * states[j] for j, a in row.states)
        x = x + sum(float(b) * outputs[j] for j, b in row.outputs) if k else x
        states[k:] = [x]
        if row.evaluated:
            out = network(x, scheduler.timesteps[len(outputs)])
            data = x - row.node.t * out if shift else (x - row.node.sigma * out) / row.node.alpha
            eps = x + (1 - row.node.t) * out if shift else out
            outputs[k] = float(row.target.eps) * eps + float(row.target.data) * data
    assert_close(drive(scheduler, start(torch.float64)), states[-1], 1e-9)


@pytest.mark.parametrize("way", ["saved", "copied", "pickled", "config", "path"])
def test_a_plan_goes_where_the_config_goes(way, tmp_path: Path):
    _, scheduler = pair("sd")
    expected = drive(scheduler, start())
    plan, folder = scheduler.plan, tmp_path / "saved"
    if way == "saved":
        scheduler.save_pretrained(folder)
        again = PlanScheduler.from_pretrained(folder)
    elif way == "path":
        plan.save(tmp_path / "own.safetensors")
        again = PlanScheduler(**LATENT, plan=tmp_path / "own.safetensors")
    elif way == "config":
        again = PlanScheduler.from_config(scheduler.config)
    else:
        again = (
            copy.deepcopy(scheduler) if way == "copied" else pickle.loads(pickle.dumps(scheduler))
        )
    assert repr(plan) in repr(again)
    again.set_timesteps(NFE)
    assert torch.equal(drive(again, start()), expected)


def test_a_plan_is_set_and_taken_back_like_any_key():
    scheduler, other = pair("flow", solver="unipc")
    scheduler = PlanScheduler(**FLOW)
    scheduler.plan = other.plan
    scheduler.set_timesteps(NFE)
    assert torch.equal(drive(scheduler, start()), drive(other, start()))
    scheduler.plan = None
    scheduler.set_timesteps(NFE + 1)
    assert scheduler.plan.nfe == NFE + 1


def test_what_pipelines_send_by_themselves_is_no_other_run():
    _, scheduler = pair("flow")
    expected = drive(scheduler, start())
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / NFE, NFE), mu=0.7)
    assert torch.equal(drive(scheduler, start()), expected)
    scheduler.set_timesteps()
    assert torch.equal(drive(scheduler, start()), expected)


WRONG = {
    "num_inference_steps=7": lambda s: s.set_timesteps(NFE + 1),
    "num_inference_steps=5": lambda s: s.set_timesteps(sigmas=np.linspace(1, 0.2, 5)),
    "timesteps=": lambda s: s.set_timesteps(timesteps=[900.0, 500.0, 100.0]),
    "sigmas=": lambda s: s.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.4, 0.2, 0.1]),
    "begin_index=2": lambda s: s.set_begin_index(2),
    "solver='ddim'": lambda s: (setattr(s.config, "solver", "ddim"), s.set_timesteps(NFE)),
    "use_karras_sigmas=True": lambda s: PlanScheduler.from_config(
        s.config, plan=s.plan, use_karras_sigmas=True
    ),
    "solver='unipc'": lambda s: PlanScheduler(**FLOW, plan=s.plan, solver="unipc"),
    "solver_order=3": lambda s: PlanScheduler(**FLOW, plan=s.plan, solver_order=3),
    "location=0.5": lambda s: PlanScheduler(**FLOW, plan=s.plan, location=0.5),
    "plan='nowhere'": lambda s: PlanScheduler(**FLOW, plan="nowhere"),
    "plan=3": lambda s: PlanScheduler(**FLOW, plan=3),
    "on the schedule of this model": lambda s: PlanScheduler(**LATENT, plan=s.plan).set_timesteps(),
}


@pytest.mark.parametrize("words", WRONG)
def test_another_run_is_refused(words):
    _, scheduler = pair("flow")
    with pytest.raises(ValueError, match=words):
        WRONG[words](scheduler)


def test_times_that_are_written_are_not_those_of_the_plan():
    _, scheduler = pair("sd")
    scheduler.timesteps = scheduler.timesteps - 3
    with pytest.raises(ValueError, match="plan=None"):
        scheduler.step(start(), scheduler.timesteps[0], start())


def test_a_slice_of_a_plan_is_refused_before_its_first_step_is_made():
    _, scheduler = pair("sd")
    with pytest.raises(ValueError, match="begin_index=2"):
        scheduler.step(start(), scheduler.timesteps[2], start())


def test_a_plan_that_moves_the_start_first_is_refused():
    churned = make_plan("heun", schedule_of(LATENT), nfe=9, s_churn=5.0, t_start=0.9)
    assert churned.evaluated[0] != 0
    with pytest.raises(ValueError, match="moves the start"):
        PlanScheduler(**LATENT, plan=churned)


def test_stock_schedulers_have_no_plan_and_the_log_says_so(caplog):
    _, scheduler = pair("sd")
    say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="logsnr.adapters"):
        stock = scheduler.to_stock()
    assert type(stock).__name__ == "UniPCMultistepScheduler" and "plan" not in stock.config
    assert repr(scheduler.plan) in caplog.text


def test_stochastic_plans_draw_from_the_generator():
    plan = make_plan("ddim", schedule_of(LATENT), nfe=NFE, eta=1.0)
    scheduler = PlanScheduler(**LATENT, plan=plan)
    results = []
    for seed in (0, 0, 1):
        scheduler.set_timesteps(NFE)
        results.append(drive(scheduler, start(), generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
