r"""What the rows of a consistent plan obey, whatever the solver.

Take data that are one point x0. Its forward process is x = alpha x0 + sigma e with e ~ N(0, 1), the
exact network knows x0, and its noise prediction at a state is (x - alpha x0) / sigma. So every row
of a plan whose states have the right distribution is

    x_k = alpha_k x0 + sigma_k e_k,    Var(e_k) = 1,

with e_0 the start's and every later e_k a combination of it and of the plan's noise. Reading off
both parts of row k,

    sum_j A alpha_j + sum_j B (w_j + q_j alpha_j) = alpha_k,
    sum_j A sigma_j e_j + sum_j B (u_j + q_j sigma_j) e_j + sum_i n_i z_i = sigma_k e_k.

Without noise all e_j are e_0, and the second line is a sum of numbers. With noise it is one of
vectors: rows may share noise, so that variances add only after covariances (`noise_terms`), and
what has to be right is the length of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .noise_terms import independent
from .rows import Row

IDENTITY_TOLERANCE = 1e-9
VARIANCE_TOLERANCE = 1e-12
"""Relative to the largest term that was summed."""


def check_identities(rows: Sequence[Row]) -> None:
    """ValueError naming the first row that breaks its identities."""
    found = _Identities(rows)
    for k, (residual, random) in enumerate(zip(found.residuals, found.random, strict=True)):
        if not residual <= (VARIANCE_TOLERANCE if random else IDENTITY_TOLERANCE):
            raise ValueError(f"row {k} breaks its identities by {residual:.2e}: {rows[k]}")


def identity_residual(rows: Sequence[Row], k: int) -> float:
    """How far row k is from the identities of the module's text.

    Relative to alpha_k, sigma_k and to the largest term that was summed, so that it measures
    rounding and not the size of the schedule.
    """
    return _Identities(rows[: k + 1]).residuals[k]


def marginal_deviations(rows: Sequence[Row]) -> list[float]:
    """The deviation of every state for data that are one point: sigma_k, where all is right."""
    return _Identities(rows).deviations


class _Identities:
    """The noise of every state, as a combination of that of the start and of the plan's.

    Rows that add none of their own and are made of states with one and the same e have that e too:
    ``origin[k]`` is the row where it was first met, and for them the identity is one of numbers.
    """

    def __init__(self, rows: Sequence[Row]):
        if not all(row.plain for row in rows):
            rows = [row.without_gradients() for row in rows]
        self.rows = rows
        self.parts = independent(term for row in rows for term in row.noise)
        names = dict.fromkeys(part for parts in self.parts.values() for part, _ in parts)
        self.index = {part: i for i, part in enumerate(names, start=1)}
        self.origin = [0]
        start = np.zeros(1 + len(self.index))
        start[0] = 1.0
        self.e = {0: start}
        self.residuals, self.deviations = [0.0], [rows[0].node.sigma]
        # What a state and an output hold of x0 and of e.
        self.states: list[tuple[Any, Any]] = [(row.node.alpha, row.node.sigma) for row in rows]
        self.outputs: list[tuple[Any, Any]] = [
            (0.0, 0.0) if g is None else (g.data + g.x * alpha, g.eps + g.x * sigma)
            for g, (alpha, sigma) in zip((row.target for row in rows), self.states, strict=True)
        ]
        for k in range(1, len(rows)):
            self._add(k)

    @property
    def random(self) -> list[bool]:
        """Whether a row's noise is a sum of several, and so has a length of its own."""
        return [origin == k > 0 for k, origin in enumerate(self.origin)]

    def _add(self, k: int) -> None:
        row, origin = self.rows[k], self.origin
        alpha, sigma = self.states[k]
        used = [(c, self.states[j], origin[j]) for j, c in row.states]
        used += [(c, self.outputs[j], origin[j]) for j, c in row.outputs]
        signal: list[float] = [c * both[0] for c, both, _ in used]
        noise: list[float] = [c * both[1] for c, both, _ in used]
        residual = _relative(math.fsum(signal) - alpha, alpha, signal)
        origins = {first for _, _, first in used}
        if not row.noise and len(origins) <= 1:
            origin.append(origins.pop() if origins else 0)
            total = math.fsum(noise)
            self.residuals.append(max(residual, _relative(total - sigma, sigma, noise)))
            start = self.e[origin[k]]
            self.deviations.append(abs(total) * (1.0 if origin[k] == 0 else _length(start)))
            return
        origin.append(k)
        v = np.zeros_like(self.e[0])
        for weight, (_, _, first) in zip(noise, used, strict=True):
            v += weight * self.e[first]
        for term in row.noise:
            noise.append(term.scale)
            for part, weight in self.parts[term.key]:
                v[self.index[part]] += term.scale * weight
        deviation = _length(v)
        # To first order that of the deviation, and well conditioned where sigma = 0.
        largest = max([1e-150, abs(sigma), *map(abs, noise)])  # its square is no 0
        residual = max(residual, abs(deviation**2 - sigma**2) / (2 * largest**2))
        self.residuals.append(residual)
        self.deviations.append(deviation)
        self.e[k] = v / sigma if sigma else v


def _length(vector: np.ndarray) -> float:
    return math.sqrt(float(vector @ vector))


def _relative(difference: float, wanted: float, terms: Sequence[float]) -> float:
    return abs(difference) / max([1e-300, abs(wanted), *map(abs, terms)])
