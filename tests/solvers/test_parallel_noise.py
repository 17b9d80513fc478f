"""Noise of a parallel run: the draws of the sequential one, each made once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import MIXTURE, SCHEDULES, normal
from torch import Tensor

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import CounterNoise, Noise, Plan, make_plan, sample, sample_parallel

VP = SCHEDULES["vp_linear"]


def shared(plan: Plan) -> Plan:
    """Steps that share noise with the step before, and draw two normals each."""
    rows = [
        replace(row, noise=(Noise(0.3, k, k + 1.5), Noise(0.2, k, k + 1.0, moment=1))) if k else row
        for k, row in enumerate(plan.rows)
    ]
    return Plan(tuple(rows), consistent=False)


PLANS = {
    "ddim": make_plan("ddim", VP, nfe=8, eta=0.7),
    "churn": make_plan("heun", VP, nfe=9, s_churn=8.0, t_end=0.01),
    "shared": shared(make_plan("ddim", VP, nfe=8, eta=0.7)),
}


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("name", PLANS)
def test_the_draws_are_those_of_the_sequential_run_bit_by_bit(name, window):
    plan, x, denoise = PLANS[name], normal(3, 4), exact_denoiser(MIXTURE, VP, "v_prediction")
    drawn: list[list[tuple[Noise, Tensor]]] = []

    def recorded(term: Noise, like: Tensor) -> Tensor:
        z = CounterNoise(11)(term, like)
        drawn[-1].append((term.key, z))
        return z

    drawn.append([])
    exact = sample(denoise, x, plan, noise=recorded)
    drawn.append([])
    ours, _ = sample_parallel(denoise, x, plan, window, noise=recorded)
    sequential, parallel = drawn
    assert [term for term, _ in parallel] == [term for term, _ in sequential]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parallel, sequential, strict=True))
    assert (ours - exact).norm() < 1e-12 * exact.norm()
    part = CounterNoise(11, samples=[2])
    alone, _ = sample_parallel(denoise, x[2:], plan, window, noise=part)
    assert (alone - exact[2:]).norm() < 1e-12 * exact[2:].norm()


def test_noise_that_does_not_fit_is_refused_before_the_network_is_called():
    def never(x: Tensor, t: float) -> Tensor:
        raise AssertionError("called")

    for noise in ([1, 2], CounterNoise(1, samples=[3]), [torch.zeros(3, 4)], [torch.zeros(1)] * 9):
        with pytest.raises(ValueError, match="noise (has|is for)"):
            sample_parallel(never, normal(3, 4), PLANS["ddim"], noise=noise)
