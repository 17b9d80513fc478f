r"""l, s and b from moments: what is accumulated, and the formulas that use it.

With y = x / alpha and r = sigma / alpha = e^-lambda every schedule has the ODE dy/dr = eps, so

    f  = (sigma eps - l x) / alpha                               = r eps - l y
    f1 = df/d lambda along the ODE = r ((l - 1) eps + eps1) - l' y,      l' = dl/d lambda,

where eps1 is the total derivative of eps along the ODE: the same form for every schedule,
variance preserving or not. Both are linear in (x, eps, eps1) with coefficients that depend on l
and l' alone. Hence the first and second moments of three numbers and the mean of the Jacobian's
diagonal suffice for

    l = E[diag(sigma d eps/dx)],   s = Cov(f, f1) / Var(f),   b = E f1 - s E f,

and one pass over the samples is enough, although l and l' are known only at its end.

The three numbers are not x, eps and eps1: where there is little signal f is a difference of
numbers that are e^(-2 lambda) as large. With rho^2 = alpha^2 + sigma^2, c = alpha / rho and
q = sigma / rho they are u = x / rho, the velocity v = c eps - q x0, and its derivative v1 along
the ODE du/d lambda = -c q v, for which eps = c v + q u and eps1 = c v1 - q c^2 u:

    f  = q v + (q^2 - l) / c u
    f1 = q (l - 1) v + q v1 + (q^2 (l - 1 - c^2) - l') / c u

Here nothing cancels at either end but q^2 - l, which is known to rounding.

A record holds, for each coordinate (or pool of coordinates),

    0..2  the means of u, v, v1         3  the mean of the Jacobian's diagonal
    4..9  the sums of products of deviations from the means: PAIRS of (u, v, v1)

Records are merged by the formulas of Chan, Golub and LeVeque (1983), which do not cancel.
Reference: Zheng et al. 2023 (DPM-Solver-v3), equations 5 and 11 and appendix C.1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..plan import Node

PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_LEFT, _RIGHT = (list(side) for side in zip(*PAIRS, strict=True))
FIRST, SECOND = slice(0, 4), slice(4, 10)
RECORD = 10
"""Rows of a record of moments."""

CONSTANT = 1e-12
"""Var f below this share of the variances it is made of is rounding: f is constant there."""


def moments(values: np.ndarray, jacobian: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The record of one sample: ``values`` (3, *event) = (u, v, v1), pooled over ``axes``.

    ``axes`` are event axes, counted from 0; they keep size 1.
    """
    pooled = tuple(1 + axis for axis in axes)
    mean = values.mean(axis=pooled, keepdims=True) if axes else values
    record = np.zeros((RECORD, *mean.shape[1:]))
    record[:3] = mean
    record[3] = jacobian.mean(axis=axes, keepdims=True) if axes else jacobian
    if axes:
        far = values - mean
        record[SECOND] = (far[_LEFT] * far[_RIGHT]).sum(axis=pooled, keepdims=True)
    return record


def merge(total: np.ndarray, count: int, part: np.ndarray, added: int) -> None:
    """Merge the record ``part`` of ``added`` values into ``total`` of ``count``, in place."""
    step = part[FIRST] - total[FIRST]
    weight = added / (count + added)
    total[SECOND] += part[SECOND] + step[_LEFT] * step[_RIGHT] * (count * weight)
    total[FIRST] += step * weight


class Level(NamedTuple):
    """alpha and sigma of several nodes, as columns (K, 1, ...)."""

    alpha: np.ndarray
    sigma: np.ndarray


class Estimate(NamedTuple):
    """l, s and b at one node, and the mean square of f1, the scale of b. Each (*pooled,)."""

    l: np.ndarray
    s: np.ndarray
    b: np.ndarray
    f1_square: np.ndarray


def estimate(record: np.ndarray, slope: np.ndarray, count: int, node: Node | Level) -> Estimate:
    """The statistics of a record of ``count`` values at ``node``; ``slope`` is l' there.

    The records of several nodes are one whose first axis after the rows is that of the nodes.

    s = 0 where f is constant (a pixel that is black in all data), and from two values or fewer: the
    line through two points says nothing of a slope (its standard error is infinite), and may be as
    steep as rounding allows.
    """
    l, rho = record[3], np.hypot(node.alpha, node.sigma)
    c, q = node.alpha / rho, node.sigma / rho
    mean, products = record[:3], record[SECOND] / count
    f = ((q**2 - l) / c, q, 0.0)
    f1 = ((q**2 * (l - 1 - c**2) - slope) / c, q * (l - 1), q)

    def covariance(u: tuple, v: tuple) -> np.ndarray:
        return sum(
            (u[i] * v[j] + (u[j] * v[i] if i != j else 0.0)) * products[k]
            for k, (i, j) in enumerate(PAIRS)
        )

    variance = covariance(f, f)
    scale = f[0] ** 2 * products[0] + f[1] ** 2 * products[3]
    varies = (variance > CONSTANT * scale) & (count > 2)
    s = np.where(varies, covariance(f, f1), 0.0) / np.where(varies, variance, 1.0)
    mean_f = sum(u * m for u, m in zip(f, mean, strict=True))
    mean_f1 = sum(u * m for u, m in zip(f1, mean, strict=True))
    return Estimate(l, s, mean_f1 - s * mean_f, covariance(f1, f1) + mean_f1**2)


def with_slopes(
    records: Iterable[np.ndarray], spacing: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(record, l') node by node: differences of second order, as ``np.gradient(edge_order=2)``.

    Holds three records at a time. ``records`` are those of at least 3 nodes, ``spacing`` apart.
    """
    stream = iter(records)
    before, here, after = next(stream), next(stream), next(stream)
    yield before, (-1.5 * before[3] + 2 * here[3] - 0.5 * after[3]) / spacing
    while True:
        yield here, (after[3] - before[3]) / (2 * spacing)
        following = next(stream, None)
        if following is None:
            break
        before, here, after = here, after, following
    yield after, (0.5 * before[3] - 2 * here[3] + 1.5 * after[3]) / spacing
