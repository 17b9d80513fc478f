r"""One Brownian path for runs of any step count.

Noise that is keyed by its interval (`counter_noise`) agrees between runs that ask for the same
intervals. A path agrees between all: halving the steps refines it, so that the convergence of a
run with noise can be seen sample by sample.

A clock is cut into cells, of unit length in lambda where it is a function of lambda, and of unit
length otherwise. The path over a cell of length h is known by its increment and its space-time Levy
area, w = sqrt(h) z_0 and H = sqrt(h / 12) z_1, and is refined by halves (Foster, Lyons and
Oberhauser 2020):

    w_left = w/2 + 3/2 H + sqrt(h/16) z_0,               w_right = w - w_left,
    H_left, H_right = H/4 - sqrt(h/64) z_0 +- sqrt(h/48) z_1,

with normals that are a function of (seed, sample, clock, cell, middle), of `counter_noise`. So a
path is there as a whole, whatever part of it is asked for first, in whichever batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .counter_noise import check_seed, listed_samples, normals
from .noise_terms import CLOCKS, Noise

if TYPE_CHECKING:
    from .plan import Plan

TOLERANCE = 1e-6
FARTHEST = 64
"""Beyond this lambda a clock that ends there (as sigma / alpha at 0) has one cell."""
DIGITS = 12
KEPT = 4
"""How many points of the path are remembered: an interval begins where the last one ended."""


class _Piece(NamedTuple):
    """Of a piece of the path: its length, its increment, and the integral of W - W(start)."""

    h: float
    w: Tensor
    area: Tensor

    def then(self, other: _Piece) -> _Piece:
        """This piece and the next one together."""
        area = self.area + self.w * other.h + other.area
        return _Piece(self.h + other.h, self.w + other.w, area)


class BrownianPath:
    """Increments and space-time Levy areas of one path a sample: (term, like) -> z.

    Parameters
    ----------
    seed : whole number in 0..2^63 - 1; sample i has the path (seed, i).
    start, end : answer only terms between these readings, finite. None: all that the clock has.
    clock : answer only terms of this clock; None is "lambda" with a range, else every clock. Each
        clock has a path of its own.
    tolerance : the finest division of a cell, a unit of lambda: what lies closer is interpolated.
    samples : which samples of the seed a batch holds, as for `CounterNoise`.

    Attributes
    ----------
    start, end, clock : the range; of a path of every clock, that of "snr".

    A path is a function of seed, sample, clock and tolerance alone, so that runs of any step count
    see the same one: not of the batch, the range, or what was asked before. It is refined in
    float64 on the host, at some 50 times the cost of `CounterNoise`: for studies, not for pictures.
    From an infinite end on (lambda at pure noise) only what comes from there matters: all such
    intervals have one noise, independent of the rest.

    Raises ValueError for arguments out of range, and for a term of another clock or range.
    """

    def __init__(
        self,
        seed: int,
        start: float | None = None,
        end: float | None = None,
        *,
        clock: str | None = None,
        tolerance: float = TOLERANCE,
        samples: Sequence[int] | Tensor | None = None,
    ):
        check_seed(seed, "seed")
        ranged = start is not None or end is not None
        self.clock = clock or ("lambda" if ranged else "snr")
        self.start, self.end = _range(start, end) if ranged else _whole(self.clock)
        self._every = clock is None and not ranged
        most = min(1.0, self.end - self.start)
        if not 0 < tolerance < most:
            raise ValueError(f"tolerance={tolerance!r}: need a positive number below {most:g}")
        self.seed = seed
        self.samples = None if samples is None else listed_samples(samples)
        self.tolerance, self._levels = tolerance, math.ceil(-math.log2(tolerance))
        self._points: OrderedDict[object, tuple[Tensor, Tensor]] = OrderedDict()

    @classmethod
    def of(
        cls,
        plan: Plan,
        seed: int,
        *,
        tolerance: float = TOLERANCE,
        samples: Sequence[int] | Tensor | None = None,
    ) -> BrownianPath:
        """The path of ``seed`` for the noise of ``plan``, in all its clocks.

        It is the same path as that of any other plan with this seed and tolerance. Raises
        ValueError for a plan without noise.
        """
        if not plan.stochastic:
            raise ValueError(f"plan={plan!r} adds no noise: there is no path to take")
        return cls(seed, tolerance=tolerance, samples=samples)

    def check(self, plan: Plan, x: Tensor) -> None:
        """ValueError if the path does not hold the noise of ``plan`` for a batch x (B, *event)."""
        for row in plan.rows:
            for term in row.noise:
                self._check(term.key)
        self._keys(x)

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        """Standard normals with the shape, dtype and device of ``like`` (B, *event)."""
        term = term.key
        self._check(term)
        low, high = sorted((term.start, term.end))
        if math.isinf(low) or math.isinf(high):
            end = low if math.isinf(low) else high
            keyed = Noise(1.0, end, 0.0, f"path of {term.clock}", term.moment)
            z = normals(self._keys(like), keyed, like)
        else:
            z = self._normal(term.clock, low, high, term.moment, like).to(like)
        return -z if term.moment == 0 and term.start > term.end else z

    def _normal(self, clock: str, low: float, high: float, moment: int, like: Tensor) -> Tensor:
        h, w, area = self._piece(clock, low, high, like)
        if moment == 0:
            return w / math.sqrt(h)
        return (area / h - w / 2) * math.sqrt(12 / h)

    def _check(self, term: Noise) -> None:
        low, high = sorted((term.start, term.end))
        there = term.clock == self.clock and self.start <= low < high <= self.end
        if not (there or self._every):
            raise ValueError(
                f"noise over [{term.start:g}, {term.end:g}] of clock {term.clock!r}: the path is "
                f"that of [{self.start:g}, {self.end:g}] of clock {self.clock!r}"
            )

    def _keys(self, like: Tensor) -> list[tuple[int, int]]:
        samples = range(len(like)) if self.samples is None else self.samples
        if len(samples) != len(like):
            raise ValueError(f"noise is for {len(samples)} samples: need one a sample, {len(like)}")
        return [(self.seed, sample) for sample in samples]

    def _piece(self, clock: str, low: float, high: float, like: Tensor) -> _Piece:
        found: _Piece | None = None
        for cell, start, end in _cells(clock, low, high):
            h = end - start
            first, last = ((max(low, start) - start) / h, (min(high, end) - start) / h)
            w1, area1 = self._point(clock, cell, first, like)
            w2, area2 = self._point(clock, cell, last, like)
            share = last - first
            piece = _Piece(
                h * share, math.sqrt(h) * (w2 - w1), h**1.5 * (area2 - area1 - w1 * share)
            )
            found = piece if found is None else found.then(piece)
        assert found is not None
        return found

    def _point(self, clock: str, cell: int, at: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """(W, its integral) from the start of a cell, of length 1, to the share ``at`` of it."""
        at = round(at, DIGITS)  # ends of neighbours may differ by rounding
        key = (clock, cell, at, like.shape)
        if key not in self._points:
            self._points[key] = self._descend(clock, cell, at, like)
            while len(self._points) > KEPT:
                self._points.popitem(last=False)
        self._points.move_to_end(key)
        return self._points[key]

    def _descend(self, clock: str, cell: int, at: float, like: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.empty(len(like), 2, *like.shape[1:], dtype=torch.float64)
        keys, name = self._keys(like), f"path of {clock}"

        def drawn(middle: float) -> tuple[Tensor, Tensor]:
            z = normals(keys, Noise(1.0, float(cell), middle, name), both)
            return z[:, 0], z[:, 1]

        w, levy = drawn(1.0)  # the cell's own; 1 is the middle of none
        w_start, area = torch.zeros_like(w), torch.zeros_like(w)
        if at == 0:
            return w_start, area
        levy = levy * math.sqrt(1 / 12)
        start, h = 0.0, 1.0
        for _ in range(self._levels):
            if at >= start + h:
                break
            z0, z1 = drawn(start + h / 2)
            # Products and sums apart: a fused one rounds otherwise at the end of a tensor.
            left = w * 0.5 + levy * 1.5 + z0 * math.sqrt(h / 16)
            mean, apart = levy * 0.25 - z0 * math.sqrt(h / 64), z1 * math.sqrt(h / 48)
            h /= 2
            if at < start + h:
                w, levy = left, mean + apart
            else:
                area += (w_start + left * 0.5 + mean + apart) * h
                w_start += left
                w, levy = w - left, mean - apart
                start += h
        share = min(1.0, (at - start) / h)  # 1 at the end of a cell, where H counts; else a chord
        area += (w_start * share + w * (share**2 / 2)) * h
        if share == 1:
            area += levy * h
        return w_start + w * share, area


def _range(start: float | None, end: float | None) -> tuple[float, float]:
    low = -math.inf if start is None else float(start)
    high = math.inf if end is None else float(end)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"start={start!r}, end={end!r}: need finite readings, start < end")
    return low, high


def _whole(clock: str) -> tuple[float, float]:
    """The readings that a clock has."""
    if clock not in CLOCKS:
        return -math.inf, math.inf
    low, high = sorted((CLOCKS[clock](-math.inf), CLOCKS[clock](math.inf)))
    return low, high


def _cells(clock: str, low: float, high: float) -> Iterator[tuple[int, float, float]]:
    """The cells (index, start, end) that hold [low, high], in the direction of the clock."""
    if clock not in CLOCKS or clock == "lambda":
        for cell in range(math.floor(low), math.ceil(high)):
            yield cell, float(cell), cell + 1.0
        return
    edge = CLOCKS[clock]
    rising = edge(1.0) > edge(0.0)
    # From the cell of lambda below -FARTHEST to that above FARTHEST.
    for i in range(-FARTHEST - 1, FARTHEST + 1):
        cell = i if rising else -i - 1
        ends = [
            edge(-math.inf if cell < -FARTHEST else float(cell)),
            edge(math.inf if cell >= FARTHEST else cell + 1.0),
        ]
        start, end = ends if rising else ends[::-1]
        if start < high and end > low:
            yield cell, start, end
