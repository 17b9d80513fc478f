"""Runs that begin near sigma = 0, where a state is almost data: no method spoils it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, Options, deterministic_cases, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import make_plan, sample

FAMILIES = {"flow": "flow_prediction", "vp_cosine": "epsilon"}


@cache
def run_and_exact(
    solver: str,
    options: tuple[tuple[str, object], ...],
    family: str,
    ends: tuple[float, float],
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sample, and the closed-form flow of Gaussian data from the same start."""
    schedule, (t_start, t_end) = SCHEDULES[family], ends
    arguments = {"t_start": t_start, "t_end": t_end, "spacing": "time"}
    plan = make_plan(solver, schedule, nfe=12, **arguments, **dict(options))
    start, end = plan.rows[0].node, plan.rows[-1].node
    x = start.alpha * GAUSSIAN.draw(3, torch.Generator().manual_seed(0))
    x = x + start.sigma * normal(3, 4, seed=1)
    denoise = exact_denoiser(GAUSSIAN, schedule, FAMILIES[family])
    return sample(denoise, x.to(dtype), plan).double(), GAUSSIAN.flow(start, x)(end)


def error(*case: object) -> float:
    result, exact = run_and_exact(*case)
    return float((result - exact).norm() / exact.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_no_method_is_much_worse_than_the_first_order(name, options: Options, family):
    chosen = tuple(options.items())
    for ends in ((1e-2, 0.0), (1e-3, 0.0), (1e-5, 0.0), (1e-7, 0.0), (1e-5, 1e-6)):
        for dtype in (torch.float64, torch.float32):
            first = error("ddim", (), family, ends, dtype)
            rounding = 20 * torch.finfo(dtype).eps
            assert error(name, chosen, family, ends, dtype) < 2 * first + rounding, (ends, dtype)
