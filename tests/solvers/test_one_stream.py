"""Sample 7 of 16 with every solver that adds noise: one stream, whatever it is sampled with."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from cases import SCHEDULES, normal
from torch import Tensor

from logsnr.solvers import SOLVERS, CounterNoise, FlowMatching, Noise, Plan, make_plan, sample
from logsnr.solvers.noise import noise_source
from logsnr.solvers.running import executor_for, proceed


def stochastic() -> list[str]:
    noisy = ("eta", "tau", "s_churn")
    return [
        name
        for name, entry in SOLVERS.items()
        if plan_of(name).stochastic or any(key in entry.defaults for key in noisy)
    ]


def plan_of(name: str, flow: bool = False) -> Plan:
    noisy = {"eta": 0.8, "tau": 0.8, "s_churn": 6.0}
    options = {key: value for key, value in noisy.items() if key in SOLVERS[name].defaults}
    schedule = FlowMatching() if flow else SCHEDULES["vp_linear"]
    return make_plan(name, schedule, nfe=8, t_end=0.02, **options)


def elementwise(x: Tensor, t: float) -> Tensor:
    """A network whose answer for a sample does not depend on its batch, not even by rounding."""
    return 0.3 * x + t


NAMES = stochastic()


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sample_7_is_the_same_alone_in_a_batch_of_5_and_in_any_share(name, flow):
    plan, x = plan_of(name, flow), normal(16, 3, 5, seed=1).float()
    whole = sample(elementwise, x, plan, noise=11)
    for samples in ([7], [2, 7, 4, 0, 9], range(8), range(7, 16, 2)):
        part = sample(elementwise, x[[*samples]], plan, noise=CounterNoise(11, samples=samples))
        assert torch.equal(part, whole[[*samples]])


@pytest.mark.parametrize("name", NAMES)
def test_every_precision_sees_one_stream(name):
    plan, seen = plan_of(name), []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        drawn: list[Tensor] = []

        def source(term: Noise, like: Tensor, drawn: list[Tensor] = drawn) -> Tensor:
            drawn.append(CounterNoise(11)(term, like))
            return drawn[-1]

        sample(elementwise, normal(2, 3).to(dtype), plan, noise=source)
        seen.append(drawn)
    for other in seen[1:]:
        assert len(other) == len(seen[0]) and all(map(torch.equal, other, seen[0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_anywhere_is_the_run(name):
    plan, x = plan_of(name), normal(2, 3).float()
    whole = sample(elementwise, x, plan, noise=11)
    executor = executor_for(plan, x.clone(), "sample")
    process = proceed(executor, x.clone(), noise_source(11))
    evaluation = next(process)
    while True:
        kept, handed, index = deepcopy(executor), evaluation.x.clone(), evaluation.index
        again = proceed(kept, handed, noise_source(11), index)
        assert torch.equal(finished(again), whole)
        try:
            evaluation = process.send(elementwise(evaluation.x, evaluation.node.t))
        except StopIteration:
            break


def finished(process) -> Tensor:
    evaluation = next(process)
    while True:
        try:
            evaluation = process.send(elementwise(evaluation.x, evaluation.node.t))
        except StopIteration as stop:
            return stop.value
