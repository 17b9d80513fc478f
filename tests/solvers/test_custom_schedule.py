"""A schedule from two functions is what the formulas say, the ends and the inverse included."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GAUSSIAN, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    SPACINGS,
    CustomSchedule,
    Denoiser,
    FlowMatching,
    VarianceExploding,
    VPLinear,
    make_plan,
    sample,
)


def vp_log_alpha(t):
    return -0.25 * t**2 * 19.9 - 0.05 * t


PAIRS = {
    "vp": (
        CustomSchedule(
            lambda t: torch.exp(vp_log_alpha(t)),
            lambda t: torch.sqrt(-torch.expm1(2 * vp_log_alpha(t))),
            t_end=1e-3,
        ),
        VPLinear(),
    ),
    "vp of floats": (
        CustomSchedule(
            lambda t: math.exp(vp_log_alpha(t)),
            lambda t: math.sqrt(-math.expm1(2 * vp_log_alpha(t))),
            t_end=1e-3,
        ),
        VPLinear(),
    ),
    "flow": (CustomSchedule(lambda t: 1 - t, lambda t: t), FlowMatching()),
    "edm": (
        CustomSchedule(lambda t: 1.0 + 0 * t, lambda t: t, t_start=80.0, t_end=0.002),
        VarianceExploding(),
    ),
    "edm with a constant": (
        CustomSchedule(lambda t: 1.0, lambda t: t, t_start=80.0, t_end=0.002),
        VarianceExploding(),
    ),
}
OTHERS = {
    "trigonometric": CustomSchedule(
        lambda t: torch.cos(t * math.pi / 2), lambda t: torch.sin(t * math.pi / 2)
    ),
    "neither VP nor flow": CustomSchedule(lambda t: (1 - t) ** 2, lambda t: 3 * torch.sqrt(t)),
}
ALL = {name: pair[0] for name, pair in PAIRS.items()} | OTHERS
pairs = pytest.mark.parametrize("name", PAIRS)


@pairs
def test_it_is_the_built_in_schedule_of_the_same_formulas(name):
    custom, known = PAIRS[name]
    assert (custom.t_start, custom.t_end) == (known.t_start, known.t_end)
    t = torch.linspace(known.t_end, known.t_start, 57, dtype=torch.float64)[1:-1]
    for function in ("alpha", "sigma", "lam", "dlam", "dlog_alpha"):
        expected = getattr(known, function)(t)
        close = {"rtol": 1e-7, "atol": 1e-7} if function.startswith("d") else {}
        torch.testing.assert_close(getattr(custom, function)(t), expected, **close)
        assert getattr(custom, function)(0.5) == pytest.approx(
            getattr(known, function)(0.5), rel=1e-7, abs=1e-12
        )


@pairs
@pytest.mark.parametrize("spacing", SPACINGS)
def test_its_plans_are_those_of_the_built_in_schedule(name, spacing):
    custom, known = PAIRS[name]
    ends = {"t_start": known.t_start, "t_end": known.t_end}
    if isinstance(known, FlowMatching):
        ends = {"t_start": 0.98, "t_end": 0.02}
    options = {"nfe": 6, "order": 2, "spacing": spacing, **ends}
    if spacing in ("auto", "logistic"):
        options |= {"location": 0.3, "scale": 1.2}  # which else depend on the family
    try:
        expected = make_plan("unipc", known, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error).split("=")[0]):
            make_plan("unipc", custom, **options)
        return
    plan = make_plan("unipc", custom, **options)
    for row, wanted in zip(plan.rows, expected.rows, strict=True):
        assert row.node[:3] == pytest.approx(wanted.node[:3], rel=1e-10, abs=1e-13)
        assert row.coefficients() == pytest.approx(wanted.coefficients(), rel=1e-8, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(ALL)), share=st.floats(1e-9, 1 - 1e-9))
def test_time_inverts_lam_between_the_ends(name, share):
    schedule = ALL[name]
    t = schedule.t_end + share * (schedule.t_start - schedule.t_end)
    lam = schedule.lam(t)
    again = schedule.time(lam)
    # As close as lambda's own rounding allows, which moves t by that over the slope.
    slack = 1e-12 + 4e-16 * (1 + abs(lam)) / max(abs(schedule.dlam(t)), 1e-300)
    assert abs(again - t) <= slack * max(1.0, schedule.t_start)


@pytest.mark.parametrize("name", ALL)
def test_the_ends_come_back_exactly(name):
    schedule = ALL[name]
    for end in (schedule.t_start, schedule.t_end):
        assert schedule.time(schedule.lam(end)) == end
    assert schedule.time(math.inf) == schedule.t_end
    assert schedule.time(-math.inf) == schedule.t_start
    both = torch.tensor([schedule.lam(schedule.t_end), -math.inf])
    assert schedule.time(both).tolist() == [schedule.t_end, schedule.t_start]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("solver", ["unipc-2", "dpmpp_2m", "heun"])
def test_solvers_converge_to_the_exact_solution(name, solver):
    schedule = OTHERS[name]
    denoise = exact_denoiser(GAUSSIAN, schedule)
    ends = {"t_start": 0.9, "t_end": 0.05}
    x = normal(4, 4)
    errors = []
    for nfe in (40, 80):
        plan = make_plan(solver, schedule, nfe=nfe, spacing="logsnr", **ends)
        exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
        errors.append(float((sample(denoise, x, plan) - exact).norm()))
    assert errors[1] < 0.3 * errors[0] < 0.05
    whole = make_plan(solver, schedule, nfe=6)
    assert whole.rows[0].node.t == schedule.t_start and whole.rows[-1].node.t == schedule.t_end


def test_the_network_gets_its_own_time():
    seen = []

    def network(x, t):
        seen.append(t.tolist())
        return x

    schedule = CustomSchedule(lambda t: 1 - t, lambda t: t, network_time=lambda t: 1000 * t)
    plan = make_plan("ddim", schedule, nfe=2, times=[0.75, 0.5, 0.25])
    sample(Denoiser(network, schedule, "sample"), torch.ones(1, 2), plan)
    assert seen == [[750.0], [500.0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CustomSchedule(lambda t: t, lambda t: 1 - t), "does not fall"),
        (lambda: CustomSchedule(lambda t: 1 - t, 0.5), "sigma=0.5: need a function"),
        (lambda: CustomSchedule(lambda t: 0.5 - t, lambda t: t), r"alpha\(1\) = -0.5"),
        (lambda: CustomSchedule(lambda t: 1 - t, lambda t: t / 0.0), "sigma"),
        (lambda: CustomSchedule(lambda t: 1 - t, lambda t: t * math.inf), "sigma"),
        (lambda: CustomSchedule(lambda t: 0 * t, lambda t: 0 * t), "both 0"),
        (
            lambda: CustomSchedule(lambda t: 1 - t, lambda t: torch.relu(t - 0.5)),
            "sigma is 0 between|does not fall",
        ),
        (
            lambda: CustomSchedule(lambda t: 1 - t, lambda t: t * (1.5 + torch.sin(20 * t))),
            "does not fall from t=",
        ),
        (lambda: CustomSchedule(lambda t: 1 - t, lambda t: t, t_start=0.0), "t_end < t_start"),
        (lambda: CustomSchedule(lambda t: 1 - t, lambda t: t, t_start=math.inf), "t_start=inf"),
        (lambda: CustomSchedule(lambda t, u: t, lambda t: t), r"alpha\(1\) fails"),
    ],
)
def test_what_is_no_schedule_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
