"""Runs of several step counts on one Brownian path."""

import pytest
from cases import MIXTURE, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.benchmarks.studies.pathwise import doublings
from logsnr.solvers import FlowMatching, make_plan

SCHEDULE = FlowMatching()
DENOISE = exact_denoiser(MIXTURE, SCHEDULE, "flow_prediction")


def test_on_one_path_more_steps_approach_a_sample_and_with_one_seed_they_do_not():
    """From pure noise to data, at strong order 1."""
    x_T = normal(8, MIXTURE.dimension)
    plans = [make_plan("ddim", SCHEDULE, nfe=n, eta=1.0) for n in (10, 20, 40, 80)]
    found = doublings(DENOISE, x_T, plans, seed=1)
    assert [entry.nfe for entry in found] == [10, 20, 40]
    first, _, last = (float(entry.on_path.square().mean().sqrt()) for entry in found)
    assert last == pytest.approx(first / 4, rel=0.5)
    assert last < float(found[-1].on_seeds.median()) / 4


def test_a_run_without_noise_is_refused():
    with pytest.raises(ValueError, match="adds no noise"):
        doublings(DENOISE, normal(1, MIXTURE.dimension), [make_plan("ddim", SCHEDULE, nfe=4)])
