"""Brownian paths: their law in every clock, and that they are the same however they are asked."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import BrownianPath, FlowMatching, Noise, VarianceExploding, make_plan, sample
from logsnr.solvers.noise_terms import CLOCKS, covariance

# Pairs of lambdas: within a cell, over its edges, inside each other, whole cells.
RANGES = [(-1.3, 0.2), (0.1, 0.35), (0.35, 0.6), (-0.2, 0.5), (0.5, 1.0), (0.0, 1.0), (0.3, 2.7)]


def terms(clock: str) -> list[Noise]:
    read = CLOCKS[clock]
    return [Noise(1.0, read(a), read(b), clock, m) for a, b in RANGES for m in (0, 1)]


@pytest.mark.parametrize("clock", CLOCKS)
def test_increments_and_areas_have_the_covariances_of_one_path(clock):
    entries = 20_000
    path, like = BrownianPath(3), torch.zeros(1, entries, dtype=torch.float64)
    z = torch.cat([path(term, like) for term in terms(clock)])
    exact = torch.tensor([[covariance(a, b) for b in terms(clock)] for a in terms(clock)])
    assert (torch.cov(z) - exact).abs().max() < 5 * math.sqrt(2 / entries)


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_path_is_the_same_however_it_is_asked(clock):
    like = torch.zeros(5, 2, 3, dtype=torch.float64)
    asked = terms(clock)
    whole = [BrownianPath(3)(term, like) for term in asked]
    low, high = sorted((CLOCKS[clock](-1.5), CLOCKS[clock](3.0)))
    others = {
        "backwards": BrownianPath(3),
        "ranged": BrownianPath(3, low, high, clock=clock),
        "of its clock": BrownianPath(3, clock=clock),
    }
    for name, path in others.items():
        for term, z in zip(asked[::-1], whole[::-1], strict=True):
            assert torch.equal(path(term, like), z), name
    for samples in ([3], [4, 0], range(2, 5), torch.tensor([1])):
        part = BrownianPath(3, samples=samples)
        for term, z in zip(asked, whole, strict=True):
            assert torch.equal(part(term, like[: len(samples)]), z[[*map(int, samples)]])
    single = BrownianPath(3)(asked[0], like.float())
    assert torch.equal(single, whole[0].float())
    assert not torch.equal(BrownianPath(4)(asked[0], like), whole[0])


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (SCHEDULES["vp_linear"], {"t_end": 1e-3}),
        (VarianceExploding(0.02, 40.0), {}),
        (FlowMatching(), {"t_end": 0.0}),  # from pure noise to the data themselves
    ],
)
def test_runs_of_any_step_count_see_the_path_of_a_plan(schedule, ends):
    plans = [make_plan("ddim", schedule, nfe=nfe, eta=1.0, **ends) for nfe in (8, 32, 96)]
    x = plans[0].start((3, 4), seeds=[1, 2, 3], dtype=torch.float64)
    denoise = exact_denoiser(GAUSSIAN, schedule, "v_prediction")
    results = [sample(denoise, x, plan, noise=BrownianPath.of(plan, 2)) for plan in plans]
    errors = [float((r - results[-1]).square().mean().sqrt()) for r in results[:-1]]
    fresh = sample(denoise, x, plans[-1], noise=5)
    apart = float((fresh - results[-1]).square().mean().sqrt())
    assert errors[1] < errors[0] / 1.7 and errors[1] < apart / 4


def test_an_interval_from_pure_noise_on_has_the_noise_that_comes_from_there():
    path, like = BrownianPath(3), torch.zeros(2, 3)
    whole = path(Noise(1.0, -math.inf, 0.5), like)
    assert torch.equal(whole, path(Noise(1.0, -math.inf, -2.0), like))
    assert not torch.equal(whole, path(Noise(1.0, -math.inf, 0.5, "other"), like))
    backwards = path(Noise(1.0, 0.5, -math.inf), like)
    assert torch.equal(backwards, -whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BrownianPath(1, 0.0), "start=0.0, end=None"),
        (lambda: BrownianPath(1, tolerance=1.0), "tolerance=1.0"),
        (lambda: BrownianPath(1, samples=3), "samples=3"),
        (lambda: BrownianPath(1.5), "seed=1.5"),
        (lambda: BrownianPath.of(make_plan("ddim", FlowMatching(), nfe=4), 1), "adds no noise"),
    ],
)
def test_paths_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (BrownianPath(1, -1.0, 1.0), "the path is that of"),
        (BrownianPath(1, clock="sigma"), "the path is that of .* clock 'sigma'"),
        (BrownianPath(1, samples=[1]), "noise is for 1 samples"),
    ],
)
def test_a_path_that_does_not_fit_is_refused_before_the_network_is_called(path, message):
    def never(x, t):
        raise AssertionError("called")

    plan = make_plan("ddim", SCHEDULES["vp_linear"], nfe=4, eta=1.0)
    with pytest.raises(ValueError, match=message):
        sample(never, normal(2, 3), plan, noise=path)
