r"""The law of a plan's result on Gaussian data, in closed form.

On data N(mu, diag(s^2)) the exact network is affine, with

    x0 = mu + alpha s^2 / v (x - alpha mu),    eps = sigma / v (x - alpha mu),
    v = alpha^2 s^2 + sigma^2,

and so is a plan: its result is alpha mu and a combination, coordinate by coordinate, of the start's
deviation from its mean and of the plan's noise,

    x - alpha mu = m (x_T - alpha_T mu) + sum_i k_i z_i,

with z_i the independent parts of the noise (`noise_terms.independent`). The variance of the result
is that sum's, and two plans on one Brownian path differ by the difference of their combinations:
means over all paths without a path being drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from logsnr.solvers import Noise, Plan
from logsnr.solvers.noise_terms import independent

from ..problems.analytic import Gaussian


@dataclass(frozen=True)
class Response:
    """What the result has of the start, (D,), and of every noise term, (D,) each."""

    start: np.ndarray
    noise: Mapping[Noise, np.ndarray]

    def variance(self, start: np.ndarray) -> np.ndarray:
        """The variance (D,) of the result for one of the start."""
        parts = on_parts(self, self.noise)
        return self.start**2 * start + sum(k**2 for k in parts.values())


def response(plan: Plan, problem: Gaussian) -> Response:
    """The result's `Response`, by one pass from the last row to the first."""
    spread = (problem.scale**2).numpy()
    of_state = np.zeros((len(plan.rows), len(spread)))
    of_output = np.zeros_like(of_state)
    of_state[-1] = 1.0
    noise: dict[Noise, np.ndarray] = {}
    for k, row in reversed([*enumerate(plan.rows)]):
        if row.target is not None:
            alpha, sigma = row.node.alpha, row.node.sigma
            share = 1 / (alpha**2 * spread + sigma**2)
            eps, x0 = sigma * share, alpha * spread * share
            slope = row.target.eps * eps + row.target.data * x0 + row.target.x
            of_state[k] += slope * of_output[k]
        for j, a in row.states:
            of_state[j] += a * of_state[k]
        for j, b in row.outputs:
            of_output[j] += b * of_state[k]
        for term in row.noise:
            noise[term.key] = noise.get(term.key, 0.0) + term.scale * of_state[k]
    return Response(of_state[0], noise)


def on_parts(found: Response, terms: Iterable[Noise]) -> dict[Noise, np.ndarray]:
    """The combination of the noise as one of the independent parts of all ``terms``."""
    parts = independent(terms)
    combined: dict[Noise, np.ndarray] = {}
    for term, k in found.noise.items():
        for part, weight in parts[term.key]:
            combined[part] = combined.get(part, 0.0) + weight * k
    return combined


def mean_square_difference(one: Response, other: Response, start: np.ndarray) -> np.ndarray:
    """(D,) mean squares of the difference of two results from one start and on one path."""
    terms = [*one.noise, *other.noise]
    mine, theirs = on_parts(one, terms), on_parts(other, terms)
    square = (one.start - other.start) ** 2 * start
    for part in {**mine, **theirs}:
        square = square + (mine.get(part, 0.0) - theirs.get(part, 0.0)) ** 2
    return square
