"""The logistic grid: shares of a distribution over lambda, whatever the schedule and the ends."""

import math

import numpy as np
import pytest
from cases import BETAS, RANGES
from scipy.stats import logistic

from logsnr.solvers import (
    SPACINGS,
    CustomSchedule,
    DiscreteVP,
    FlowMatching,
    Grid,
    VPLinear,
    make_plan,
)


def lams(schedule, n, start, end, **rule):
    nodes = Grid(schedule, start, end, **{"spacing": "logistic", **rule}).nodes(n)
    return np.array([node.lam for node in nodes])


@pytest.mark.parametrize("where", RANGES)
@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (0.7, 1.3), (-1.5, 0.6)])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_nodes_are_equal_shares_of_the_distribution(where, location, scale, n):
    """By scipy's cumulative distribution; the ends are those asked for, singular or not."""
    range_ = RANGES[where]
    ours = lams(range_.schedule, n, range_.t_start, range_.t_end, location=location, scale=scale)
    first, last = range_.schedule.lam(range_.t_start), range_.schedule.lam(range_.t_end)
    assert ours[0] == first and ours[-1] == last
    shares = logistic(location, scale).cdf(ours)
    expected = np.linspace(shares[0], shares[-1], n + 1)
    if isinstance(range_.schedule, DiscreteVP):  # nothing is asked beyond the training steps
        highest = range_.schedule.lam(1 / range_.schedule.steps)
        if logistic(location, scale).ppf(expected[-2]) > highest > first:
            top = logistic(location, scale).cdf(highest)
            expected[:-1] = np.linspace(shares[0], top, n)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_scale_1_is_the_uniform_time_of_a_flow_and_location_its_shift(shift):
    uniform = Grid(FlowMatching(), 1.0, 0.0, "time", shift=shift).nodes(12)
    ours = Grid(FlowMatching(), 1.0, 0.0, "logistic", location=-math.log(shift), scale=1.0)
    np.testing.assert_allclose(
        [node.t for node in ours.nodes(12)], [node.t for node in uniform], rtol=0, atol=1e-12
    )


# Sabour et al. 2024, the published tables as sigma / alpha; read as quantiles of a logistic by
# least squares, which is what issue and docs/grids.md claim.
TABLES = {"ays-sd15": (-0.44, 1.02, 0.17), "ays-sdxl": (-0.04, 1.22, 0.09)}


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_of_large_models_are_logistic(name):
    location, scale, deviation = TABLES[name]
    schedule = DiscreteVP.from_betas(BETAS)
    table = np.array([n.lam for n in Grid(schedule, 1.0, 1 / 1000, spacing=name).nodes(10)])
    ours = lams(schedule, 10, 1.0, 1 / 1000, location=location, scale=scale)
    assert np.abs(ours - table)[1:-1].max() < deviation + 0.1


def test_auto_is_the_logistic_grid_and_the_default():
    plain = make_plan("unipc", VPLinear(), nfe=8)
    named = make_plan("unipc", VPLinear(), nfe=8, spacing="auto")
    assert plain.rows == named.rows
    assert plain.times == make_plan("unipc", VPLinear(), nfe=8, spacing="logistic").times


@pytest.mark.parametrize("n", [3, 9, 30])
@pytest.mark.parametrize("longest", [1.0, 1000.0])
def test_auto_knows_a_straight_path_by_whatever_name(longest, n):
    """alpha + sigma = 1 is flow matching, also where it is written down by its user."""
    path = CustomSchedule(lambda t: 1 - t / longest, lambda t: t / longest, t_start=longest)
    ours, flow = (Grid(s, s.t_start, 0.0).nodes(n) for s in (path, FlowMatching()))
    np.testing.assert_allclose(
        [node.t / longest for node in ours], [node.t for node in flow], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"spacing": "karras", "location": 0.2}, "location=0.2 belongs to spacing logistic"),
        ({"spacing": "logsnr", "scale": 1.0}, "scale=1.0 belongs to spacing logistic"),
        ({"spacing": "logistic", "rho": 3.0}, "rho=3.0 belongs to spacing karras"),
        ({"scale": 0.0}, "scale=0.0: need a positive"),
        ({"location": math.inf}, "location=inf: need a finite"),
        ({"location": math.nan}, "location=nan: need a finite"),
    ],
)
def test_numbers_that_are_out_of_range_or_out_of_place_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", VPLinear(), nfe=4, **rule)


def test_location_beside_an_explicit_grid_is_refused():
    with pytest.raises(ValueError, match="location=0.2 was given beside times"):
        make_plan("ddim", VPLinear(), times=[1.0, 0.5, 0.1], location=0.2)


def test_both_names_are_offered():
    assert {"auto", "logistic"} <= set(SPACINGS)
