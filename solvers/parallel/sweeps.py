r"""Picard sweeps over any plan, in a sliding window (ParaDiGMs, Shih et al. 2023; monograph 9.7).

The points 0..n of a plan are its n evaluated rows and the sample. A window of points [begin, end)
holds a guess of every state; that of ``begin`` is final. A sweep

1. calls the network at all points of the window at once (a `Batch` is yielded);
2. computes the states of the points begin + 1 .. end anew from those outputs (see `fixed_point`);
3. accepts the points begin + 1, begin + 2, .. as long as they have settled for every sample, and
   moves ``begin`` to the first that has not; it accepts all of them once the sample is as exact as
   the tolerance asks for (see `acceptance`).

The first that has not settled has just been computed from accepted states all the same: every
sweep gains a point, so that there are never more sweeps than evaluated rows. With tolerance = 0 the
result is that of the sequential run, whatever the window. Rows behind the window that no later row
needs are dropped.

The first guess is the plan's result for the network of N(0, s^2); later ones, of the points that
the window uncovers, hold the newest data prediction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..keywords import takes
from ..noise import check_noise
from ..plan import Coefficient, Node, Plan
from ..prediction import to_data
from ..requests import Batch
from ..shared_noise import NoiseSource, along
from .acceptance import SHARE, Changes, changes, errors_left, settled, variances
from .fixed_point import (
    Frame,
    System,
    at_home,
    frame,
    gaussian_slope,
    substitute,
    sweep,
    system_of,
    targets,
)
from .options import Init, Picard
from .secants import Evaluated, Secants, measured


@dataclass(frozen=True)
class Sweep:
    """One sweep, as a callback sees it after it.

    ``window`` are its points [begin, end), of which those before ``accepted`` are final now;
    ``residual`` is the largest |x_new - x_old| / sqrt(D variance) of its points and samples,
    ``x`` (B, *event) the newest state of the window's last point, ``node`` where that is.
    """

    index: int
    window: tuple[int, int]
    accepted: int
    residual: float
    x: Tensor
    node: Node


@dataclass(frozen=True)
class ParallelStats:
    """What a parallel run did.

    Parameters
    ----------
    sweeps : batched network calls, one after the other.
    evaluations : states evaluated, over all sweeps; each stands for the whole batch of B samples.
    residuals : for every sweep, the largest |x_new - x_old| / sqrt(D variance) in its window.
    windows : for every sweep, the points [begin, end) at which the network was called.
    rows_held : the largest number of states that were held at a time; as many targets or fewer.
    """

    sweeps: int
    evaluations: int
    residuals: tuple[float, ...]
    windows: tuple[tuple[int, int], ...]
    rows_held: int


Process = Generator[Batch, Tensor, tuple[Tensor, ParallelStats]]


@takes(Picard)
def picard(
    plan: Plan,
    x: Tensor,
    prediction: str = "sample",
    *,
    draw: NoiseSource,
    options: Picard,
    init: Init | None = None,
    from_start: bool = False,
    watch: Callable[[Sweep], None] | None = None,
) -> Process:
    """Generator over the sweeps of ``plan`` from the start state x (B, *event).

    Send it the network's outputs, of type ``prediction``, at the states and nodes of each batch;
    see `Picard` for the options. With ``from_start`` the first sweep evaluates x itself at all
    nodes, which is what a pipeline does before it can be told otherwise. Returns the sample and
    what it took. States and targets are kept in float32 or better; every state handed out has x's
    dtype.
    """
    check_noise(draw, plan, x)
    parts, n = system_of(plan, prediction), plan.nfe
    tolerance, published = options.tolerance, options.published
    size = n if options.window is None else min(options.window, n)
    gaussian = _slopes(plan, options.data_scale)
    slopes = None if options.update == "literal" else gaussian
    scales = torch.tensor(variances(plan), dtype=torch.float64).sqrt()
    limits = torch.full_like(scales, SHARE * tolerance)
    if published:
        published_scales = torch.tensor(variances(plan, published=True), dtype=torch.float64).sqrt()
        limits = tolerance * published_scales
    held = _Held(parts, x, along(plan, draw))
    x0: Tensor | None = None
    previous: Evaluated | None = None
    before: Changes | None = None
    residuals: list[float] = []
    windows: list[tuple[int, int]] = []
    begin = end = rows_held = 0
    while begin < n:
        end = max(end, min(begin + size, n))
        here = frame(parts, begin, end)
        if init is not None:
            held.extend(
                here, lambda new, added: torch.stack([init(plan.rows[k].node) for k in new])
            )
        elif published or (from_start and not windows):
            held.extend(here, held.constant)
        else:
            held.extend(here, partial(held.continued, gaussian, x0))
        rows_held = max(rows_held, len(held.x))
        rows = parts.points[begin:end]
        states = held.at(rows)
        output = yield Batch(states.to(x.dtype), [plan.rows[k].node for k in rows])
        g = targets(parts, rows, output, states)
        held.store(here, g)
        secants = None
        if options.acceleration is not None and slopes is not None:
            now = Evaluated(begin, states, g)
            secants, previous = measured(previous, now, slopes), now
        x0 = to_data(prediction, plan.rows[rows[-1]].node)(output[-1], states[-1])
        changed = held.advance(here, slopes, secants)
        del output, secants  # only the window itself is kept while the network works
        here_on = slice(begin + 1, end + 1)
        residuals.append(float((changed.absolute.amax(1) / scales[here_on]).max()))
        windows.append((begin, end))
        errors = changed.absolute if published else errors_left(changed, before)
        before = changed
        enough = not published and tolerance > 0 and end == n and bool((errors <= tolerance).all())
        begin = n if enough else min(begin + 1 + settled(errors, limits[here_on]), end)
        if watch is not None:
            last, node = held.x[-1].to(x.dtype, copy=True), plan.rows[here.last].node
            watch(Sweep(len(windows), windows[-1], begin, residuals[-1], last, node))
    stats = ParallelStats(
        sweeps=len(windows),
        evaluations=sum(stop - start for start, stop in windows),
        residuals=tuple(residuals),
        windows=tuple(windows),
        rows_held=rows_held,
    )
    return held.x[-1].to(x.dtype, copy=True), stats


def _slopes(plan: Plan, data_scale: float) -> list[Coefficient]:
    result = []
    for k in plan.evaluated:
        target = plan.rows[k].target
        assert target is not None
        result.append(gaussian_slope(target, plan.rows[k].node, data_scale))
    return result


class _Held:
    """The states x of the rows first .. last, the targets g of the points past .. end - 1.

    ``added`` is what the rows of x add, c + noise, drawn when a row enters: each noise term once,
    in the order of the sequential run. None if the plan adds nothing.
    """

    def __init__(self, system: System, x: Tensor, draw: NoiseSource):
        precise = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        rows = system.plan.rows
        adds = any(r.noise or isinstance(r.offset, Tensor) or r.offset for r in rows)
        self.system, self.draw = system, draw
        self.first = self.past = 0
        self.x = precise[None]
        self.g = precise.new_empty(0, *x.shape)
        self.added = torch.zeros_like(self.x) if adds else None
        if before := range(1, system.points[0] + 1):  # rows that no evaluation comes before
            added = None if self.added is None else torch.stack([self._added(k) for k in before])
            if self.added is not None and added is not None:
                self.added = torch.cat([self.added, added])
            new = slice(before.start, before.stop)
            started = substitute(system.plan, new, self.x, 0, lambda k, y: y, added)
            self.x = torch.cat([self.x, started.to(self.x)])

    def at(self, rows: Sequence[int]) -> Tensor:
        """A copy of the states of ``rows``."""
        return self.x[[k - self.first for k in rows]]

    def store(self, frame: Frame, g: Tensor) -> None:
        """Put the targets of the points begin .. end - 1 in place of their old ones."""
        self.g = torch.cat([self.g[: frame.begin - self.past], g])

    def advance(
        self, frame: Frame, slopes: Sequence[Coefficient] | None, secants: Secants | None
    ) -> Changes:
        """Sweep over the frame; how much its points begin + 1 .. end have changed."""
        added = None if self.added is None else self.added[frame.final + 1 - self.first :]
        new = sweep(self.system, frame, self.x, self.g, added, slopes, secants)
        computed = self.system.points[frame.begin + 1 : frame.end + 1]
        before = self.at(computed)
        self.x[frame.final + 1 - self.first :] = new
        return changes(frame.begin + 1, self.at(computed), before)

    def extend(self, frame: Frame, guess: Callable[[range, Tensor | None], Tensor]) -> None:
        """Drop what the frame does not need, and append guesses of its further rows."""
        drop = frame.first - self.first
        self.x, self.g = self.x[drop:], self.g[frame.past - self.past :]
        self.added = None if self.added is None else self.added[drop:]
        self.first, self.past = frame.first, frame.past
        new = range(self.first + len(self.x), frame.last + 1)
        if new:
            added = None if self.added is None else torch.stack([self._added(k) for k in new])
            self.x = torch.cat([self.x, guess(new, added).to(self.x)])
            if self.added is not None and added is not None:
                self.added = torch.cat([self.added, added])
        elif drop:
            self.x = self.x.clone()  # lets go of what was dropped

    def _added(self, k: int) -> Tensor:
        like, row = self.x[0], self.system.plan.rows[k]
        total = torch.zeros_like(like) + at_home(row.offset, like)
        for term in row.noise:
            total += term.scale * self.draw(term, like)
        return total

    def constant(self, new: range, added: Tensor | None) -> Tensor:
        """The last state for every new row."""
        return self.x[-1:].expand(len(new), *self.x.shape[1:])

    def continued(
        self, slopes: Sequence[Coefficient], x0: Tensor | None, new: range, added: Tensor | None
    ) -> Tensor:
        """The plan's own rows for a network whose data prediction is x0 from here on.

        x0 = None: for the linear network with these ``slopes``.
        """
        plan, points = self.system.plan, self.system.points

        def target(k: int, y: Tensor) -> Tensor:
            p = bisect_left(points, k) - self.past
            if p < len(self.g):
                return self.g[p]
            if x0 is None:
                return at_home(slopes[bisect_left(points, k)], y) * y
            row = plan.rows[k]
            assert row.target is not None
            u, w, q = (at_home(c, y) for c in row.target)
            eps = (y - row.node.alpha * x0) / row.node.sigma if row.node.sigma > 0 else 0.0
            return u * eps + w * x0 + q * y

        return substitute(plan, slice(new.start, new.stop), self.x, self.first, target, added)
