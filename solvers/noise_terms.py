r"""The noise of a row: integrals over an interval of one Brownian path.

Rows may share noise: a corrector repeats its predictor's step with the same path, an inner node of
a step lies on the path of the whole step. So a term does not name a random number but what it is of
a Brownian motion W that runs in a *clock* u, over an interval [start, end] of that clock,

    z_m = int f_m dW,    f_m = sqrt((2 m + 1) / h) P_m(1 - 2 (u - start) / h),    h = end - start,

with P_m the Legendre polynomial of degree m, the ``moment``:

    z_0 = (W(end) - W(start)) / sqrt(h),    z_1 = sqrt(12 / h) H,    H = mean of W - its chord,

where H is the space-time Levy area of methods of strong order 1.5. All are standard normal; over
one interval those of different moments are independent, and in general

    Cov(z, z') = int f f' du.

Terms of different clocks are independent: each clock is a path of its own.

To draw them, intervals that overlap are cut at each other's ends. A polynomial on the whole is one
on each part, so that every term is a combination of moments over the parts, which are independent
(`independent`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from . import scalar
from .node import Node
from .scalar import Number

MOMENTS = (0, 1)

CLOCKS: Mapping[str, Callable[[float], float]] = {
    "lambda": lambda lam: lam,
    "sigma": lambda lam: scalar.exp(-lam),
    "sigma2": lambda lam: scalar.exp(-2 * lam),
    "snr": lambda lam: scalar.exp(2 * lam),
}
"""The clocks whose reading is a function of lambda: lambda itself, rho = sigma / alpha (what Karras
et al. call sigma), rho^2, in which the forward process of a variance-exploding model is Brownian,
and (alpha / sigma)^2, in which the exact noise of a step in data space is. A term may name any
other: terms of one clock share a path."""
_LAMBDA_OF: Mapping[str, Callable[[float], float]] = {
    "lambda": lambda u: u,
    "sigma": lambda u: -_log(u),
    "sigma2": lambda u: -_log(u) / 2,
    "snr": lambda u: _log(u) / 2,
}


class Noise(NamedTuple):
    """scale * z over [start, end] of a clock; see the module's text."""

    scale: Number
    start: Number
    end: Number
    clock: str = "lambda"
    moment: int = 0

    @property
    def key(self) -> Noise:
        """What tells two random numbers apart: the term with scale 1, in plain numbers."""
        start, end = scalar.plain(self.start), scalar.plain(self.end)
        return Noise(1.0, start, end, self.clock, self.moment)

    @property
    def lam_from(self) -> float:
        """lambda at the start. ValueError for a clock that is no function of lambda."""
        return self._lam(self.start)

    @property
    def lam_to(self) -> float:
        """lambda at the end. ValueError for a clock that is no function of lambda."""
        return self._lam(self.end)

    def _lam(self, reading: Number) -> float:
        if self.clock not in _LAMBDA_OF:
            raise ValueError(
                f"clock={self.clock!r}: no lambda is known for it, only for {[*CLOCKS]}"
            )
        return _LAMBDA_OF[self.clock](scalar.plain(reading))


def reading(clock: str, node: Node) -> Number:
    """What a clock of `CLOCKS` shows at ``node``: 0 or infinite at the singular ends."""
    return CLOCKS[clock](node.lam)


def _log(u: float) -> float:
    if u == 0:
        return -math.inf
    return math.log(u)


def covariance(one: Noise, other: Noise) -> float:
    """Cov(z, z') of two terms, whatever their scales. ValueError for what cannot be compared."""
    parts = independent([one, other])
    theirs = dict(parts[other.key])
    return math.fsum(weight * theirs.get(part, 0.0) for part, weight in parts[one.key])


Parts = tuple[tuple[Noise, float], ...]
"""A combination of independent standard normals, each named by the term that it is."""


def independent(terms: Iterable[Noise]) -> dict[Noise, Parts]:
    """Every term's `key` as a combination of independent ones.

    A term whose interval no other one cuts is itself. Raises ValueError where an infinite interval
    would be cut.
    """
    keys = dict.fromkeys(term.key for term in terms)
    ends: dict[str, list[float]] = {}
    rising: dict[str, bool] = {}  # the direction in which a clock runs: that of its first term
    for key in keys:
        ends.setdefault(key.clock, []).extend((key.start, key.end))
        rising.setdefault(key.clock, key.start <= key.end)
    for readings in ends.values():
        readings.sort()
    return {key: _parts(key, ends[key.clock], rising[key.clock]) for key in keys}


def _parts(key: Noise, ends: Sequence[float], rising: bool) -> Parts:
    low, high = sorted((key.start, key.end))
    inside = ends[bisect_right(ends, low) : bisect_left(ends, high)]
    # Run backwards, an increment changes its sign; the mean above the chord does not.
    sign = -1.0 if (key.start <= key.end) != rising and key.moment == 0 else 1.0
    edges = list(dict.fromkeys([low, *inside, high]))
    if not rising:
        edges.reverse()
    if len(edges) == 2:
        return ((key._replace(start=edges[0], end=edges[1]), sign),)
    h = high - low
    if math.isinf(h):
        raise ValueError(
            f"noise over [{key.start:g}, {key.end:g}] of clock {key.clock!r} overlaps other noise: "
            "an infinite interval can be shared as a whole only; take a clock that is finite there"
        )
    parts: list[tuple[Noise, float]] = []
    for start, end in pairwise(edges):
        share = abs(end - start) / h
        if key.moment == 0:
            weights = [sign * math.sqrt(share)]
        else:
            middle = abs((start + end) / 2 - edges[0]) / h
            weights = [math.sqrt(3 * share) * (1 - 2 * middle), share**1.5]
        parts += [
            (Noise(1.0, start, end, key.clock, moment), weight)
            for moment, weight in enumerate(weights)
        ]
    return tuple(parts)
