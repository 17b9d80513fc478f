"""Runs of several step counts on one Brownian path."""

import math

import pytest

from logsnr.benchmarks.studies.pathwise import covering, doublings
from logsnr.solvers import VPLinear, make_plan


def test_on_one_path_doubling_the_steps_changes_the_picture_less_than_other_noise():
    first, second = doublings("faces", "ddim", nfe=(4, 12, 36), samples=1, eta=1.0)
    assert (first.nfe, second.nfe) == (4, 12)
    assert second.on_path < first.on_path / 2
    assert second.on_path < second.on_seeds / 4


def test_the_path_covers_all_noise_and_tells_the_shortest_interval_apart():
    plans = [make_plan("ddim", VPLinear(), nfe=n, t_end=1e-3, eta=1.0) for n in (5, 40)]
    path = covering(plans, 3)
    terms = [term for plan in plans for row in plan.rows for term in row.noise]
    assert path.clock == "snr" and path.seed == 3
    assert path.start == min(term.start for term in terms)
    assert path.end == max(term.end for term in terms)
    assert path.tolerance < min(term.end - term.start for term in terms) / 4


def test_noise_that_no_path_covers_is_refused():
    quiet = make_plan("ddim", VPLinear(), nfe=4)
    with pytest.raises(ValueError, match="need one clock"):
        covering([quiet], 0)
    plan = make_plan("ddim", VPLinear(), nfe=4, eta=1.0)
    rows = tuple(
        type(row)(
            *(row.node, row.states, row.outputs, row.target, row.offset),
            noise=tuple(t._replace(start=-math.inf, clock="lambda") for t in row.noise),
        )
        for row in plan.rows
    )
    with pytest.raises(ValueError, match="need a finite range"):
        covering([type(plan)(rows, consistent=False)], 0)
