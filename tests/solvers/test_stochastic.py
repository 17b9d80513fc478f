"""The frame of stochastic steps: strengths, lower levels, and noise whose covariances are right."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import SCHEDULES

from logsnr.solvers import Plan, make_plan
from logsnr.solvers.grids import nodes_at, nodes_at_lams
from logsnr.solvers.identities import marginal_deviations
from logsnr.solvers.methods.stochastic import (
    nested_noise,
    posterior_split,
    split,
    strengths,
)
from logsnr.solvers.noise_terms import covariance

VP, FLOW = SCHEDULES["vp_linear"], SCHEDULES["flow"]
NODES = nodes_at_lams(VP, [-2.0, -0.5, 0.25, 1.5])
STEPS = 3


def test_a_number_and_a_list_are_the_strengths_themselves():
    assert strengths("eta", None, NODES, VP) == [0.0] * STEPS
    assert strengths("eta", 0.5, NODES, VP) == [0.5] * STEPS
    assert strengths("eta", [0, 0.5, 2], NODES, VP) == [0.0, 0.5, 2.0]
    assert strengths("eta", torch.tensor([0, 0.5, 2]), NODES, VP) == [0.0, 0.5, 2.0]


@pytest.mark.parametrize("power", [1, 2])
def test_a_function_counts_with_its_mean_over_the_step_in_lambda(power):
    """Of lambda itself: int lambda^p dlambda is known."""
    found = strengths("eta", lambda t: 3 + VP.lam(t), NODES, VP, power=power)
    for value, (start, end) in zip(found, pairwise(NODES), strict=True):
        low, high = 3 + start.lam, 3 + end.lam
        integral = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        assert value == pytest.approx((integral / (high - low)) ** (1 / power), rel=1e-12)


@pytest.mark.parametrize("make", [split, posterior_split])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_level_and_noise_add_to_sigma(make, strength):
    for start, end in pairwise(NODES):
        step = make(start, end, strength)
        assert math.hypot(step.down.sigma, step.scale) == pytest.approx(end.sigma, rel=1e-15)
        assert step.down.sigma == pytest.approx(end.sigma * math.exp(-step.decay), rel=1e-14)
        assert (step.down.t, step.down.alpha) == (end.t, end.alpha)


def test_both_ways_agree_on_the_reverse_sde_and_in_small_steps():
    for start, end in pairwise(NODES):
        one, two = split(start, end, 1.0), posterior_split(start, end, 1.0)
        assert one.scale == pytest.approx(two.scale, rel=1e-14)
        assert one.decay == pytest.approx(end.lam - start.lam, rel=1e-14)
    for h in (1e-2, 1e-3):
        start, end = nodes_at_lams(VP, [0.0, h])
        ratio = split(start, end, 0.4**2).decay / posterior_split(start, end, 0.4).decay
        assert abs(ratio - 1) < h


@pytest.mark.parametrize("make", [split, posterior_split])
def test_singular_ends(make):
    """From pure noise nothing of the old noise is kept, to sigma = 0 none is added."""
    pure, middle, data = nodes_at(FLOW, [1.0, 0.4, 0.0])
    first = make(pure, middle, 1.0)
    assert first.down.sigma == 0 and first.scale == middle.sigma
    assert [(term.start, term.clock) for term in first.noise] == [(0.0, "snr")]
    last = make(middle, data, 1.0)
    assert last.noise == () and last.decay == 0 and last.down == data
    still = make(middle, middle, 1.0)
    assert still.noise == () and still.down == middle


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.7])
def test_an_inner_node_shares_the_noise_of_its_step(tau):
    """Cov of int e^(tau^2 lambda) dW over the first part and over the whole, in closed form."""
    start, middle, end = nodes_at_lams(VP, [-1.0, -0.1, 0.5])
    splits = [split(start, node, tau**2) for node in (middle, end)]
    part, whole = nested_noise(splits)
    grown = [math.expm1(2 * tau**2 * h) for h in (0.9, 1.5)]
    for terms, step in ((part, splits[0]), (whole, splits[1])):
        assert math.hypot(*(t.scale for t in terms)) == pytest.approx(step.scale, rel=1e-14)
    found = sum(a.scale * b.scale * covariance(a, b) for a in part for b in whole)
    expected = splits[0].scale * splits[1].scale * math.sqrt(grown[0] / grown[1])
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["vp_linear", "flow", "edm"])
@pytest.mark.parametrize("eta", [0.4, 1.0, [0.0, 0.3, 1.0, 0.7, 0.2], lambda t: 1 / (1 + t)])
def test_ddim_has_the_marginals_of_the_forward_process(name, eta):
    ends = {"t_start": 1.0, "t_end": 0.0} if name == "flow" else {}
    plan = make_plan("ddim", SCHEDULES[name], nfe=5, spacing="time", eta=eta, **ends)
    for deviation, row in zip(marginal_deviations(plan.rows), plan.rows, strict=True):
        assert deviation == pytest.approx(row.node.sigma, rel=1e-12)


def test_plans_keep_functions_as_a_number_a_step(tmp_path):
    plan = make_plan("ddim", VP, nfe=4, eta=lambda t: t)
    plan.save(tmp_path / "plan")
    kept = Plan.load(tmp_path / "plan").options
    assert len(kept["eta"]) == 4
    assert make_plan("ddim", VP, nfe=4, **kept).rows == plan.rows


def test_a_strength_may_carry_a_gradient():
    """Of a coefficient with respect to eta, by differences."""
    eta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    row = make_plan("ddim", VP, nfe=4, eta=eta).rows[2]
    for found, at in (
        (row.states[0][1], lambda r: r.states[0][1]),
        (row.noise[0].scale, lambda r: r.noise[0].scale),
    ):
        (slope,) = torch.autograd.grad(found, eta, retain_graph=True)
        high, low = (at(make_plan("ddim", VP, nfe=4, eta=0.5 + d).rows[2]) for d in (1e-6, -1e-6))
        assert float(slope) == pytest.approx((high - low) / 2e-6, rel=1e-7)


@pytest.mark.parametrize(
    ("eta", "message"),
    [
        (1.5, r"eta=1.5: need a number in \[0, 1\], a list of one a step, or a function"),
        (-0.1, "eta=-0.1"),
        (math.nan, "eta=nan"),
        (True, "eta=True"),
        ("high", "eta='high'"),
        ([0.5] * 3, "eta has 3 entries: need 4"),
        ([0.5, 0.5, 2.0, 0.5], "eta=2.0"),
        (torch.ones(2, 2), "eta=tensor"),
        (lambda t: 3.0, "eta=3.0"),
        (lambda t: "much", "eta='much'"),
    ],
)
def test_bad_strengths_are_named(eta, message):
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", VP, nfe=4, eta=eta)


def test_inversion_refuses_noise():
    for eta in (0.5, [0.0, 0.0, 0.5, 0.0], lambda t: t):
        with pytest.raises(ValueError, match="eta=0.*: an inversion is deterministic"):
            make_plan("ddim", VP, nfe=4, eta=eta, invert=True)
