"""Times that a plan tells the network are the scheduler's ``timesteps``, in whatever order."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from scheduler_cases import FAMILIES, assert_close, network, start
from tiny_pipelines import FAMILIES as TINY
from torch import Tensor

from logsnr.adapters import PlanScheduler, run_pipeline
from logsnr.solvers import Plan

NFE = 5
ORDERS = {"shifted": [0, 1, 2, 3, 4], "same": [2] * NFE, "turned": [4, 1, 3, 0, 2]}
"""Which evaluation's time is told at each."""
KINDS = ["sd", "cosine", "flow", "flow_inverted", "edm", "audio"]


def with_told(plan: Plan, told: list[float]) -> Plan:
    """The plan that tells the schedule's times ``told`` at its evaluations."""
    times = dict(zip(plan.evaluated, told, strict=True))
    rows = [
        replace(row, node=row.node._replace(told=times[k])) if k in times else row
        for k, row in enumerate(plan.rows)
    ]
    return replace(plan, rows=tuple(rows))


def pair(family: str, order: str) -> tuple[PlanScheduler, PlanScheduler]:
    """A scheduler with a plan, and one whose plan tells the same times in another order."""
    own, given = FAMILIES[family]
    first = PlanScheduler(**own, solver="unipc")
    first.set_timesteps(NFE, **given)
    times = [0.9 * first.plan.times[k] for k in ORDERS[order]]
    second = PlanScheduler.from_config(first.config, plan=with_told(first.plan, times))
    second.set_timesteps(NFE, **given)
    return first, second


@torch.no_grad()
def drive(scheduler: PlanScheduler, told: Tensor, handed: str = "views") -> Tensor:
    """The loop of a pipeline, with a network that hears ``told`` whatever it is shown."""
    x, times = start(torch.float64), scheduler.timesteps
    for k, (t, hears) in enumerate(zip(times, told, strict=True)):
        shown = {"views": t, "copies": t.clone(), "numbers": t.item()}[handed]
        x = scheduler.step(network(x, hears), shown, x, return_dict=False)[0]
        if handed == "views" and k == 1:
            scheduler = copy.deepcopy(scheduler)  # in the middle of a run
    return x


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", KINDS)
def test_timesteps_are_the_told_times_and_steps_find_their_places(family, order):
    plain, scheduler = pair(family, order)
    if order != "shifted" and "flow" in family:  # N t, or N (1 - t), of nine tenths of t
        inverted = family == "flow_inverted"
        t = 1 - plain.timesteps / 1000 if inverted else plain.timesteps / 1000
        told = 0.9 * t[ORDERS[order]]
        assert_close(scheduler.timesteps, 1000 * (1 - told if inverted else told), 1e-6)
    assert len(set(scheduler.timesteps.tolist())) == len(set(ORDERS[order]))
    # The network hears what it is told; the plan without it, the same by the test's own hand.
    expected = drive(plain, scheduler.timesteps)
    for handed in ("views", "copies", "numbers"):
        scheduler.set_timesteps(NFE, **FAMILIES[family][1])
        assert torch.equal(drive(scheduler, scheduler.timesteps, handed), expected)
    assert torch.equal(scheduler.sigmas, plain.sigmas)  # the levels are the nodes'


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_pipelines_tell_them(name):
    """By the scheduler and by run_pipeline, also all rows at once, the network is told the same."""
    family = TINY[name]
    pipe = family.build()
    own = PlanScheduler.from_config(pipe.scheduler.config)
    _, times = family.run(own, steps=4)
    plan = with_told(own.plan, [0.9 * t for t in own.plan.times])
    assert times and own.plan.nfe == 4
    scheduler = PlanScheduler.from_config(pipe.scheduler.config, plan=plan)
    latents, told = family.run(scheduler, steps=4)
    expected = own.timesteps.double()
    expected = 0.9 * expected if name == "flux" else 0.9 * (expected + 1) - 1
    scale = max(told) / float(scheduler.timesteps.max())  # some pipelines tell t / 1000
    shown = scheduler.timesteps.double()
    assert_close(shown, expected, 1e-3)  # steps are whole where nothing is told
    assert_close(torch.tensor(told[:4]).double(), scale * shown, 1e-5)
    arguments = {**family.arguments(), "output_type": "latent"}
    seeded = torch.Generator().manual_seed(0)
    run = run_pipeline(pipe, plan, num_inference_steps=4, generator=seeded, **arguments)
    assert_close(run.result, latents, 2e-3)
