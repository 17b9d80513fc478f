"""Grids: each spacing against its definition, and the ends of every grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import RANGES, SCHEDULES, spacings
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logsnr.solvers import DiscreteVP, FlowMatching, Grid, make_plan
from logsnr.solvers.spacings import WHOLE_STEPS

REGULAR = [name for name, range_ in RANGES.items() if not range_.to_data]


def grid(name: str, spacing: str, **options) -> Grid:
    range_ = RANGES[name]
    return Grid(range_.schedule, **range_.ends, spacing=spacing, **options)


def column(nodes, field: str) -> np.ndarray:
    return np.array([getattr(node, field) for node in nodes])


def assert_uniform(values: np.ndarray, tolerance: float = 1e-9) -> None:
    line = np.linspace(values[0], values[-1], len(values))
    np.testing.assert_allclose(values, line, rtol=0, atol=tolerance * np.abs(values).max())


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(RANGES)), n=st.integers(1, 50), data=st.data())
def test_every_grid_falls_from_start_to_end_through_nodes_of_the_schedule(name, n, data):
    spacing = data.draw(st.sampled_from(spacings(name)))
    range_, nodes = RANGES[name], grid(name, spacing).nodes(n)
    assert len(nodes) == n + 1
    assert nodes[-1].t == range_.t_end
    assert nodes[0].t == range_.t_start or spacing in WHOLE_STEPS
    times = column(nodes, "t")
    assert (np.diff(times) < 0).all()
    for node in nodes:
        assert node.alpha == range_.schedule.alpha(node.t)
        assert node.sigma == range_.schedule.sigma(node.t)


@pytest.mark.parametrize("name", REGULAR)
@pytest.mark.parametrize("n", [1, 7, 40])
def test_spacings_are_uniform_in_what_they_say(name, n):
    assert_uniform(column(grid(name, "time").nodes(n), "t"))
    assert_uniform(np.sqrt(column(grid(name, "quadratic").nodes(n), "t")))
    if RANGES[name].from_pure_noise:
        return
    for spacing in ("logsnr", "exponential"):
        assert_uniform(column(grid(name, spacing).nodes(n), "lam"))
    for rho in (7.0, 3.0):
        nodes = grid(name, "karras", rho=rho).nodes(n)
        assert_uniform((column(nodes, "sigma") / column(nodes, "alpha")) ** (1 / rho))


def test_karras_reproduces_its_published_formula():
    i = np.arange(18)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    nodes = grid("edm", "karras").nodes(17)
    np.testing.assert_allclose(column(nodes, "sigma"), published, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 10, 20, 50, 333])
def test_pipeline_spacings_evaluate_whole_training_steps(n):
    """Lin et al. 2023, table 2, in 0-based indices of 1000 training steps."""
    stride = 1000 // n
    rules = {
        "leading": np.arange(n)[::-1] * stride + 1,
        "trailing": np.round(np.arange(1000, 0, -1000 / n)[:n]) - 1,
        "linspace": np.round(np.linspace(0, 999, n + 1))[:0:-1],
    }
    for spacing, indices in rules.items():
        nodes = Grid(SCHEDULES["vp_discrete"], 1.0, 0.0, spacing=spacing).nodes(n)
        times = column(nodes, "t")[:-1]
        asked = SCHEDULES["vp_discrete"].network_time(torch.from_numpy(times)).numpy()
        np.testing.assert_allclose(asked, indices, rtol=0, atol=1e-9, err_msg=spacing)


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(1e-3, 1e3), n=st.integers(1, 40))
def test_shift_moves_lambda_by_its_logarithm(shift, n):
    plain, shifted = (Grid(FlowMatching(), 0.99, 0.01, "time", shift=s) for s in (1.0, shift))
    difference = column(plain.nodes(n), "lam") - column(shifted.nodes(n), "lam")
    np.testing.assert_allclose(difference, math.log(shift), rtol=0, atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(1e-3, 1e3), n=st.integers(1, 40))
def test_shift_keeps_the_singular_ends(shift, n):
    rule = Grid(FlowMatching(), 1.0, 0.0, "time", shift=shift)
    nodes = rule.nodes(n)
    assert (nodes[0].t, nodes[0].alpha, nodes[-1].t) == (1.0, 0.0, 0.0)
    inner = rule.between(nodes[0], nodes[-1], n)
    np.testing.assert_allclose(column(inner, "t"), column(nodes, "t"), rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(list(RANGES)), order=st.integers(1, 4), data=st.data())
def test_inner_nodes_lie_between_theirs(name, order, data):
    spacing = data.draw(st.sampled_from(spacings(name)))
    rule = grid(name, spacing)
    outer = rule.nodes(5)
    for start, end in zip(outer, outer[1:], strict=False):
        inner = rule.between(start, end, order)
        assert inner[0] is start and inner[-1] is end and len(inner) == order + 1
        assert (np.diff(column(inner, "t")) < 0).all()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 900), spacing=st.sampled_from(["time", "quadratic", "logsnr", "karras"]))
def test_snapping_gives_distinct_whole_training_steps(n, spacing):
    schedule = SCHEDULES["vp_discrete"]
    nodes = Grid(schedule, 1.0, 1e-3, spacing, snap=True).nodes(n)
    indices = column(nodes, "t")[:-1] * 1000 - 1
    np.testing.assert_allclose(indices, np.round(indices), rtol=0, atol=1e-9)
    assert (np.diff(np.round(indices)) < 0).all()
    assert indices[0] <= 999 and indices[-1] >= 1


def test_snapping_moves_no_evaluation_further_than_it_must():
    schedule = SCHEDULES["vp_discrete"]
    plain = Grid(schedule, 1.0, 1e-3, "logsnr").nodes(10)
    snapped = Grid(schedule, 1.0, 1e-3, "logsnr", snap=True).nodes(10)
    assert np.abs(column(plain, "t") - column(snapped, "t")).max() <= 0.5e-3 + 1e-12


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(SCHEDULES)), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_explicit_lams_and_sigmas_are_met(name, n, seed):
    schedule = SCHEDULES[name]
    lams = np.sort(np.random.default_rng(seed).uniform(-2.5, 4, n + 1))
    assume(np.diff(lams).min() > 1e-3)
    plan = make_plan("ddim", schedule, lams=lams.tolist())
    np.testing.assert_allclose([row.node.lam for row in plan.rows], lams, rtol=0, atol=1e-9)
    sigmas = [row.node.sigma for row in plan.rows]
    again = make_plan("ddim", schedule, sigmas=sigmas)
    np.testing.assert_allclose([row.node.sigma for row in again.rows], sigmas, rtol=1e-9)


def test_discrete_grids_reach_the_data_even_with_steep_spacings():
    """Near the data sigma is tiny but must stay positive until the last node."""
    for name in ("vp_discrete", "vp_zero_terminal"):
        schedule = SCHEDULES[name]
        assert isinstance(schedule, DiscreteVP)
        for spacing in ("time", "quadratic", "karras"):
            nodes = Grid(schedule, 0.99, 0.0, spacing).nodes(60)
            sigmas = column(nodes, "sigma")
            assert (np.diff(sigmas) < 0).all() and sigmas[-1] == 0
