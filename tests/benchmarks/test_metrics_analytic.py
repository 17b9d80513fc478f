"""Errors against formulas of the data, and what quality costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from logsnr.benchmarks.metrics.analytic import analytic_error, gaussian_kl, moments
from logsnr.benchmarks.metrics.cost import cost_to_quality, pareto_front, throughput
from logsnr.benchmarks.problems.analytic import Gaussian, Mixture, point_mass

MIXTURE = Mixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    torch.tensor([[0.0, 4.0], [3.0, -3.0], [-5.0, 0.0]]),
    torch.tensor([0.5, 0.3, 0.8]),
)
GAUSSIAN = Gaussian(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("problem", [MIXTURE, GAUSSIAN])
def test_moments_are_those_of_many_draws(problem):
    mean, covariance = moments(problem)
    x = problem.draw(200_000, generator())
    size = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean) / size).abs().max() < 0.02
    assert ((torch.cov(x.mT) - covariance) / torch.outer(size, size)).abs().max() < 0.02


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_kl_agrees_with_torch(dimension):
    rng = generator(dimension)
    a, b = torch.randn(2, dimension, dimension, dtype=torch.float64, generator=rng)
    m, n = torch.randn(2, dimension, dtype=torch.float64, generator=rng)
    eye = torch.eye(dimension, dtype=torch.float64)
    first, second = a @ a.mT + eye, b @ b.mT + eye
    truth = kl_divergence(MultivariateNormal(m, first), MultivariateNormal(n, second))
    assert gaussian_kl(m, first, n, second) == pytest.approx(float(truth), rel=1e-10)
    assert gaussian_kl(m, first, m, first) == pytest.approx(0, abs=1e-12)
    assert gaussian_kl(m, 0 * first, n, second) == math.inf


@pytest.mark.parametrize("problem", [MIXTURE, GAUSSIAN])
def test_exact_samples_have_the_scatter_that_is_told(problem):
    errors = [analytic_error(problem.draw(400, generator(i)), problem) for i in range(40)]

    def root_mean_square(name: str) -> float:
        return math.sqrt(sum(getattr(e, name) ** 2 for e in errors) / len(errors))

    assert root_mean_square("mean") == pytest.approx(errors[0].mean_scatter, rel=0.35)
    if problem is GAUSSIAN:  # the others are told for Gaussian data
        assert root_mean_square("covariance") == pytest.approx(
            errors[0].covariance_scatter, rel=0.35
        )
        mean_kl = sum(e.kl for e in errors) / len(errors)
        assert mean_kl == pytest.approx(errors[0].kl_scatter, rel=0.35)


def test_a_mode_that_is_dropped_shows_in_the_shares():
    x = MIXTURE.draw(4000, generator())
    without = x[x[:, 0] > -1.5]
    assert analytic_error(x, MIXTURE).shares < 0.002
    # all mass on two components of weight 0.2 and 0.5: -log 0.7
    assert analytic_error(without, MIXTURE).shares == pytest.approx(-math.log(0.7), abs=0.01)
    assert analytic_error(GAUSSIAN.draw(100, generator()), GAUSSIAN).shares is None


@pytest.mark.parametrize(
    ("change", "rises"),
    [(lambda x: x + 0.3, "mean"), (lambda x: 1.2 * x, "covariance"), (lambda x: x + 0.3, "kl")],
)
@pytest.mark.parametrize("problem", [MIXTURE, GAUSSIAN])
def test_errors_rise_with_what_they_measure(problem, change, rises):
    x = problem.draw(5000, generator())
    good, bad = analytic_error(x, problem), analytic_error(change(x), problem)
    assert getattr(bad, rises) > 2 * getattr(good, rises)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"samples has shape \(9, 2\).*\(N, 3\)"):
        analytic_error(torch.zeros(9, 2), GAUSSIAN)
    with pytest.raises(ValueError, match="samples has 3 samples; it must have at least 4"):
        analytic_error(torch.zeros(3, 3), GAUSSIAN)
    with pytest.raises(ValueError, match="'point mass' has a singular covariance"):
        analytic_error(torch.zeros(9, 2), point_mass(torch.zeros(2)))
    with pytest.raises(ValueError, match="samples has 1 values"):
        analytic_error(torch.tensor([[math.nan, 0, 0]] + [[0.0, 0, 0]] * 8), GAUSSIAN)


def test_cost():
    assert throughput(500, 4.0) == 125
    points = [(4.0, 0.1), (1.0, 0.5), (2.0, 0.2), (3.0, 0.3), (4.0, 0.05), (2.0, 0.2)]
    assert cost_to_quality(points, 0.2) == 2
    assert cost_to_quality(points, 0.01) is None and cost_to_quality([], 1) is None
    front = pareto_front(points)
    assert front == [1, 2, 4]
    for index, (cost, value) in enumerate(points):
        beaten = any(c <= cost and v <= value and (c, v) != (cost, value) for c, v in points)
        assert beaten == (index not in front and index != 5)
    assert pareto_front([]) == []
    for arguments, names in (((0, 1.0), "samples is 0"), ((1, 0.0), "seconds is 0.0")):
        with pytest.raises(ValueError, match=names):
            throughput(*arguments)
