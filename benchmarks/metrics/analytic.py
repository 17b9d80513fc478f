r"""Samples of a problem whose data distribution is a formula, against that formula.

The moments of `Mixture` and `Gaussian` are exact numbers, so only the samples' own scatter, about
sqrt(D / N), is in the way: every result has it beside the value. The relative entropies are

.. math::
    KL(N(m, C) \| N(m_*, C_*)) = \tfrac12 \Big( tr\, C_*^{-1} C - D - \log\det C_*^{-1} C
        + (m - m_*)^T C_*^{-1} (m - m_*) \Big)

of the Gaussians of equal moments, and that of the shares p_k of the samples in each component of a
mixture, sum_k p_k log(p_k / w_k), where p_k is the mean posterior probability of component k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.benchmarks.metrics.checking import vectors
from logsnr.benchmarks.problems.analytic import Gaussian, Mixture


@dataclass(frozen=True)
class AnalyticError:
    """How far samples are from a known distribution in D dimensions.

    mean: |m - m*| / sqrt(tr C*).  covariance: |C - C*| / |C*|, Frobenius.
    kl: of the Gaussians with these moments, in nats.
    shares: relative entropy of the shares of a mixture's components, in nats; None for a Gaussian.
    mean_scatter, covariance_scatter, kl_scatter: what as many exact samples have on average; the
        first exact, the others for Gaussian data, to leading order in 1 / N.
    """

    mean: float
    covariance: float
    kl: float
    shares: float | None
    mean_scatter: float
    covariance_scatter: float
    kl_scatter: float


def moments(problem: Mixture | Gaussian) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the problem's data, float64, exact."""
    if isinstance(problem, Gaussian):
        return problem.mean, torch.diag(problem.scale.square())
    mean = problem.weights @ problem.means
    off = problem.means - mean
    within = problem.weights @ problem.scales.square()
    between = (problem.weights[:, None] * off).mT @ off
    return mean, between + within * torch.eye(problem.dimension, dtype=torch.float64)


def analytic_error(samples: Tensor, problem: Mixture | Gaussian) -> AnalyticError:
    """The errors of samples (N, D), floating and finite, N > D.

    Raises ValueError naming what is not so; also for data whose covariance is singular, where no
    relative entropy is finite.
    """
    values = vectors("samples", samples, problem.dimension + 1)
    count, dimension = values.shape
    if dimension != problem.dimension:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}; it must be (N, {problem.dimension})"
        )
    mean, covariance = moments(problem)
    if not bool((torch.linalg.eigvalsh(covariance) > 0).all()):
        raise ValueError(f"problem {problem.name!r} has a singular covariance: no KL is finite")
    found_mean, found = values.mean(0), torch.cov(values.mT).reshape(dimension, dimension)
    trace, norm = float(covariance.trace()), float(covariance.square().sum())
    return AnalyticError(
        mean=float((found_mean - mean).norm()) / math.sqrt(trace),
        covariance=float((found - covariance).norm()) / math.sqrt(norm),
        kl=gaussian_kl(found_mean, found, mean, covariance),
        shares=_shares(values, problem) if isinstance(problem, Mixture) else None,
        mean_scatter=math.sqrt(1 / count),
        covariance_scatter=math.sqrt((norm + trace**2) / norm / (count - 1)),
        kl_scatter=dimension * (dimension + 3) / 4 / count,
    )


def gaussian_kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor) -> float:
    """KL(N(mean, covariance) || N(other_mean, other)) in nats; inf for a singular covariance."""
    root = torch.linalg.cholesky(other.double())
    white = torch.linalg.solve_triangular(root, covariance.double(), upper=False)
    ratio = torch.linalg.solve_triangular(root, white.mT, upper=False)
    gap = torch.linalg.solve_triangular(root, (mean - other_mean).double()[:, None], upper=False)
    sizes = torch.linalg.eigvalsh((ratio + ratio.mT) / 2)
    if float(sizes.min()) <= 0:
        return math.inf
    return 0.5 * float((sizes - 1 - sizes.log()).sum() + gap.square().sum())


def _shares(values: Tensor, problem: Mixture) -> float:
    square = (values[:, None] - problem.means).square().sum(-1)
    log_r = problem.weights.log() - problem.dimension * problem.scales.log()
    share = torch.softmax(log_r - square / (2 * problem.scales.square()), 1).mean(0)
    return float(torch.special.xlogy(share, share / problem.weights).sum())
