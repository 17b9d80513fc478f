"""Properties of every solver, option, schedule, spacing and number of steps, by hypothesis.

Finite everywhere, both singular ends included; exact on a point mass; converging on a Gaussian.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    GAUSSIAN,
    RANGES,
    Options,
    Range,
    deterministic_cases,
    every_option,
    is_consistent,
    is_stochastic,
    main_options,
    normal,
    spacings,
    tensor,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logsnr.benchmarks.problems.analytic import exact_denoiser, point_mass
from logsnr.solvers import SOLVERS, Plan, make_plan, sample

POINT = tensor(0.7, -1.3, 0.2, 2.0)
TO_DATA = [name for name, range_ in RANGES.items() if range_.to_data]


def fits(name: str, options: Options, nfe: int) -> bool:
    """Whether ``nfe`` evaluations are enough for the method."""
    entry = SOLVERS[name]
    cost = entry.nfe_per_step({**entry.defaults, **options})
    return nfe >= max(cost, options.get("order", 1))


def build(name: str, options: Options, range_: Range, nfe: int, spacing: str) -> Plan:
    return make_plan(name, range_.schedule, nfe=nfe, spacing=spacing, **range_.ends, **options)


def start(range_: Range, problem: Any = GAUSSIAN) -> torch.Tensor:
    schedule, t = range_.schedule, range_.t_start
    x0 = problem.draw(3, torch.Generator().manual_seed(0))
    return schedule.alpha(t) * x0 + schedule.sigma(t) * normal(3, 4, seed=1)


def prediction_for(range_: Range) -> str:
    """A native prediction that exists at both ends and, where possible, is the noise."""
    return "flow_prediction" if range_.from_pure_noise else "epsilon"


@st.composite
def runs(draw: Any, name: str, ranges: list[str]) -> tuple[Options, Range, int, str]:
    options = draw(st.sampled_from(every_option(name)))
    range_name = draw(st.sampled_from(ranges))
    spacing = draw(st.sampled_from(spacings(range_name)))
    nfe = draw(st.integers(1, 50))
    assume(fits(name, options, nfe))
    return options, RANGES[range_name], nfe, spacing


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_finite_everywhere(name, data):
    options, range_, nfe, spacing = data.draw(runs(name, list(RANGES)))
    plan = build(name, options, range_, nfe, spacing)
    denoise = exact_denoiser(GAUSSIAN, range_.schedule, prediction_for(range_))
    noise = torch.Generator().manual_seed(0)
    result = sample(denoise, start(range_), plan, noise=noise)
    assert torch.isfinite(result).all()
    # No deterministic run of a stable method leaves the data by more than its start does.
    assert result.abs().max() < 1e3 * max(1.0, range_.schedule.sigma(range_.t_start))


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_point_mass_is_reached_exactly_at_sigma_zero(name, data):
    options, range_, nfe, spacing = data.draw(runs(name, TO_DATA))
    plan = build(name, options, range_, nfe, spacing)
    problem = point_mass(POINT)
    denoise = exact_denoiser(problem, range_.schedule, prediction_for(range_))
    result = sample(denoise, start(range_, problem), plan, noise=torch.Generator())
    # Combinations of noise predictions find x0 as a difference of terms as large as sigma/alpha,
    # with weights that grow with the order.
    in_noise = 1e-8 * 10.0 ** max(0, options.get("order", 1) - 3)
    tolerance = 1e-10 if options.get("space") == "data" else in_noise
    assert (result - POINT).abs().max() < tolerance


@pytest.mark.parametrize("name", SOLVERS)
def test_point_mass_is_followed_along_the_whole_path(name):
    """x0 and eps are constant there, so every state must be alpha x0 + sigma eps."""
    range_, problem = RANGES["vp_cosine"], point_mass(POINT)
    denoise = exact_denoiser(problem, range_.schedule)
    x = start(range_, problem)
    for options in main_options(name):
        if is_stochastic(name, options) or not is_consistent(name, options):
            continue
        plan, seen = build(name, options, range_, 12, "logsnr"), []
        result = sample(denoise, x, plan, callback=seen.append)
        flow = problem.flow(plan.rows[0].node, x)
        for step in seen:
            torch.testing.assert_close(step.x, flow(step.node), rtol=0, atol=1e-8)
        torch.testing.assert_close(result, flow(plan.rows[-1].node), rtol=0, atol=1e-8)


def error_on_gaussian(name: str, options: Options, range_: Range, nfe: int, spacing: str) -> float:
    plan = build(name, options, range_, nfe, spacing)
    denoise = exact_denoiser(GAUSSIAN, range_.schedule, prediction_for(range_))
    x = start(range_)
    exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
    return float((sample(denoise, x, plan) - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("range_name", "spacing"),
    [
        ("vp_linear", "logsnr"),
        ("vp_discrete", "logsnr"),
        ("flow_singular", "time"),
        ("edm_to_data", "karras"),
    ],
)
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_gaussian_error_shrinks_with_nfe(name, options, range_name, spacing):
    range_ = RANGES[range_name]
    coarse, fine, finest = (
        error_on_gaussian(name, options, range_, nfe, spacing) for nfe in (12, 36, 108)
    )
    # Already a method of order 1 divides its error by 3 with three times the steps. That of an
    # extrapolated direction is small with few, where its first and second order cancel.
    assert fine < 0.6 * coarse or name == "gradient-estimation"
    assert finest < 0.5 * fine or finest < 1e-9
    assert finest < 0.05
