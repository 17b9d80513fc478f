"""What the network says of pure noise stays in the history of data-space multistep methods."""

import math

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.solvers import DATA, FlowMatching, make_plan, sample

KEEPING = {
    "unipc": {"order": 2},
    "dpm-solver++": {"order": 2},
    "adams": {"order": 2},
}
# Standard deviations of 32 directions as of images: a few are coarse, and seen through much noise.
IMAGES = Gaussian(
    torch.zeros(32, dtype=torch.float64), 6.0 / torch.arange(1, 33, dtype=torch.float64)
)


def errors(problem, name, keep, counts, **rule):
    """RMS distance to the exact solution of a flow, for each number of evaluations."""
    denoise = exact_denoiser(problem, SCHEDULES["flow"], "flow_prediction")
    options = {**rule, **KEEPING[name], "keep_first": keep}
    found = []
    for nfe in counts:
        plan = make_plan(name, SCHEDULES["flow"], nfe=nfe, **options)
        x = normal(64, len(problem.mean), seed=3)
        exact = problem.flow(plan.rows[0].node, x)(plan.rows[-1].node)
        found.append(float((sample(denoise, x, plan) - exact).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("location", [0.0, 0.7])
def test_what_was_seen_of_pure_noise_makes_few_steps_better(name, location):
    kept, dropped = (
        errors(IMAGES, name, keep, (5, 6, 8, 10), location=location, scale=1.3)
        for keep in (True, False)
    )
    assert all(a < 0.6 * b for a, b in zip(kept, dropped, strict=True))


@pytest.mark.parametrize("name", KEEPING)
def test_the_order_is_what_it_was(name):
    slopes = []
    for keep in (True, False):
        coarse, fine = errors(GAUSSIAN, name, keep, (80, 160), spacing="time")
        slopes.append(math.log2(coarse / fine))
    assert slopes[0] > slopes[1] - 0.1


@pytest.mark.parametrize("name", KEEPING)
def test_rows_from_pure_noise(name):
    """The first row is exact where x0 and eps are constant, as published; later ones look back."""
    options = KEEPING[name]
    kept, dropped = (
        make_plan(name.split()[0], FlowMatching(), nfe=6, keep_first=keep, **options).rows
        for keep in (True, False)
    )
    assert kept[1] == dropped[1] and kept[0].target == dropped[0].target == DATA
    evaluated = [k for k, row in enumerate(kept) if row.evaluated]
    assert 0 in dict(kept[evaluated[2]].outputs)
    assert all(0 not in dict(row.outputs) for row in dropped[2:])
    if name == "unipc":  # corrected, at the mean of both evaluations
        row = kept[2]
        node = row.node
        assert dict(row.states) == {0: node.sigma}
        assert dict(row.outputs) == pytest.approx({0: node.alpha / 2, 1: node.alpha / 2})


@pytest.mark.parametrize("name", ["unipc", "dpm-solver++", "adams"])
def test_nothing_changes_where_the_start_has_a_finite_lambda(name):
    plans = [
        make_plan(name, SCHEDULES["vp_linear"], nfe=6, keep_first=keep) for keep in (True, False)
    ]
    assert plans[0].rows == plans[1].rows


def test_noise_space_keeps_nothing():
    """A data prediction cannot stand in a history of noise predictions."""
    plans = [
        make_plan("unipc", FlowMatching(), nfe=6, space="noise", keep_first=keep)
        for keep in (True, False)
    ]
    assert plans[0].rows == plans[1].rows


def test_a_point_mass_stays_exact():
    x = normal(2, 3)
    point = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    plan = make_plan("unipc", FlowMatching(), nfe=5, order=3)
    torch.testing.assert_close(sample(lambda x, t: point.expand_as(x), x, plan), point.expand(2, 3))
