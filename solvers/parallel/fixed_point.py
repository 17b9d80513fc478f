r"""A plan as a fixed-point problem, and one sweep of its solution.

All rows at once, a plan says x = Phi(x) with

    Phi(x)_k = sum_j A[k,j] x_j + sum_j B[k,j] g_j(x_j) + c_k + noise_k,

which is strictly lower triangular: row k depends on earlier rows only. Given an iterate x and the
outputs g_j(x_j) of one batched network call, a sweep solves the problem with Phi replaced by
Phi(x) + L (y - x), L strictly lower triangular too:

    y = Phi(x) + L (y - x)   <=>   y = M ((A - L) x + B g + c + noise),      M = (I - L)^-1.

Every L has the same fixed point, the sequential run, and makes at least one more row exact in
every sweep. How fast the others follow depends on how well L approximates Phi'. Two choices:

* "literal" (Shih et al. 2023, algorithm 1): L[k, j] = 1 for the state j that row k starts from, so
  that increments are frozen, y_k = y_j + (Phi(x)_k - x_j);
* "semilinear": L = A + B J, where J_j is the slope dg/dx of the network of normally distributed
  data N(0, s^2). That network has the noise prediction sigma x / v and the data prediction
  alpha s^2 x / v, v = alpha^2 s^2 + sigma^2, so that for g = u eps + w x0 + q x

      J = (u sigma + w alpha s^2) / v + q.

s = 0 freezes the data predictions, s = inf the noise predictions; s = 1 with a
variance-preserving schedule freezes the v-predictions.

Secants add to J what two evaluations of a point say about the network: see `secants`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..methods.pure_noise import is_pure_noise
from ..plan import Coefficient, Node, Plan, Target
from ..prediction import Linear, at_home
from ..segments import made_once, maps
from ..terms import combination
from .secants import Secants


@dataclass(frozen=True, eq=False)
class System:
    """A plan as a fixed-point problem for one prediction type; without data, shared by runs.

    ``points`` are the rows that matter: the evaluated ones and the sample. ``maps`` turn the
    network's output at an evaluated row into its g; ``oldest[k]`` is the oldest row that the rows
    after k refer to.
    """

    plan: Plan
    points: tuple[int, ...]
    maps: Mapping[int, Linear]
    oldest: tuple[int, ...]

    @cached_property
    def a(self) -> Tensor:
        """A (rows, rows), float64."""
        return _dense([row.states for row in self.plan.rows])

    @cached_property
    def b(self) -> Tensor:
        """B (rows, evaluated rows), float64."""
        full = _dense([row.outputs for row in self.plan.rows])
        return full[:, list(self.plan.evaluated)]


def system_of(plan: Plan, prediction: str) -> System:
    """The system of ``plan`` for a network of this prediction type; made once."""

    def make() -> System:
        rows = plan.rows
        oldest = list(range(len(rows)))
        for k in range(len(rows) - 2, -1, -1):
            used = [j for j, _ in (*rows[k + 1].states, *rows[k + 1].outputs)]
            oldest[k] = min([k, oldest[k + 1], *used])
        points = (*plan.evaluated, len(rows) - 1)
        return System(plan, points, maps(plan, prediction), tuple(oldest))

    return made_once(plan, ("system", prediction), make)


def _dense(entries: Sequence[Sequence[tuple[int, Coefficient]]]) -> Tensor:
    matrix = torch.zeros(len(entries), len(entries), dtype=torch.float64)
    for k, row in enumerate(entries):
        for j, value in row:
            matrix[k, j] += float(value)
    return matrix


def gaussian_slope(target: Target, node: Node, data_scale: float) -> Coefficient:
    """J = dg/dx at ``node`` for data N(0, data_scale^2), inf allowed; see the module's text."""
    u, w, q = target
    alpha, sigma = node.alpha, node.sigma
    if math.isinf(data_scale) and not is_pure_noise("data", node):
        return w / alpha + q
    signal = 0.0 if is_pure_noise("data", node) else alpha * data_scale**2
    v = alpha * signal + sigma**2
    return q if v == 0 else u * (sigma / v) + w * (signal / v) + q


def targets(system: System, rows: Sequence[int], outputs: Tensor, states: Tensor) -> Tensor:
    """g (len(rows), B, *event) from the network's outputs at ``states`` of ``rows``."""
    result = torch.empty_like(states)
    for i, k in enumerate(rows):
        result[i] = system.maps[k].beside(states)(outputs[i], states[i])
    return result


@dataclass(frozen=True)
class Frame:
    """The rows and points that a window holds.

    The network is called at the points begin .. end - 1 and the states of the rows after ``final``
    (the row of ``begin``) up to ``last`` (the row of ``end``) are computed. They need rows from
    ``first`` and outputs from the point ``past`` on.
    """

    begin: int
    end: int
    first: int
    final: int
    last: int
    past: int

    @property
    def new(self) -> slice:
        """The rows to compute."""
        return slice(self.final + 1, self.last + 1)


def frame(system: System, begin: int, end: int) -> Frame:
    """The frame of the window of points [begin, end)."""
    final, last = system.points[begin], system.points[end]
    first = system.oldest[final]
    return Frame(begin, end, first, final, last, bisect_left(system.points, first))


def sweep(
    system: System,
    frame: Frame,
    x: Tensor,
    g: Tensor,
    added: Tensor | None = None,
    slopes: Sequence[Coefficient] | None = None,
    secants: Secants | None = None,
) -> Tensor:
    """The next iterate at the rows ``frame.new``, (rows, B, *event).

    Parameters
    ----------
    x : the present iterate at the rows first .. last.
    g : its targets at the points past .. end - 1.
    added : c + noise at the rows ``frame.new``; None for zero.
    slopes : J of all evaluated rows; None for the literal update.
    secants : corrections of the slopes; their points lie in begin + 1 .. end - 1.
    """
    if not system.plan.numeric:
        return _row_by_row(system, frame, x, g, added, slopes, secants)
    new, old = frame.new, slice(frame.first, frame.final + 1)
    a, b = system.a[new, new], system.b[new, frame.past : frame.end]
    identity = torch.eye(len(a), dtype=torch.float64)
    l = _literal(system.plan, frame) if slopes is None else a + _spread(system, frame, slopes)
    right = [system.a[new, old], a - l, b, *([] if added is None else [identity])]
    weights = torch.linalg.solve_triangular(
        identity - l, torch.cat(right, dim=1), upper=False, unitriangular=True
    ).to(x.device, x.dtype)
    of_x, of_g, inverse = weights.tensor_split((len(x), len(x) + len(g)), dim=1)
    # Under autocast these would run in half precision, unless they are told where to write.
    result = torch.mm(of_x, x.flatten(1), out=x.new_empty(len(a), x[0].numel()))
    result.addmm_(of_g, g.flatten(1))
    if added is not None:
        result.addmm_(inverse, added.flatten(1))
    if secants is not None:
        points = range(secants.begin, secants.begin + len(secants.pairs))
        rows = torch.tensor([system.points[p] for p in points], device=x.device)
        k = of_g[:, secants.begin - frame.past :][:, : len(points)]
        secants.correct(result, k, rows - frame.final - 1, x[rows - frame.first])
    return result.view(-1, *x.shape[1:])


def _literal(plan: Plan, frame: Frame) -> Tensor:
    size = frame.last - frame.final
    l = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j, value in literal(plan, frame.final + 1 + i):
            if j > frame.final:
                l[i, j - frame.final - 1] = float(value)
    return l


def literal(plan: Plan, k: int) -> list[tuple[int, Coefficient]]:
    """Row k of the L of the literal update.

    A row that keeps nothing of a state starts where its newest evaluation is. A state at which
    the network is not evaluated (a corrected one) is no iterate, but a sum of others: it keeps
    its coefficient, without which a sweep would not make the next row exact.
    """
    rows = plan.rows
    starts = [j for j, _ in rows[k].states[:1]] or [
        max((j for j, _ in rows[k].outputs), default=-1)
    ]
    base: list[tuple[int, Coefficient]] = [(j, 1.0) for j in starts if j >= 0 and rows[j].evaluated]
    return base + [(j, a) for j, a in rows[k].states if not rows[j].evaluated]


def _spread(system: System, frame: Frame, slopes: Sequence[Coefficient]) -> Tensor:
    """B J over the new rows."""
    inner = range(frame.begin + 1, frame.end)
    columns = [system.points[p] - frame.final - 1 for p in inner]
    result = torch.zeros(frame.last - frame.final, frame.last - frame.final, dtype=torch.float64)
    j = torch.tensor([float(slopes[p]) for p in inner], dtype=torch.float64)
    result[:, columns] = system.b[frame.new, frame.begin + 1 : frame.end] * j
    return result


def _row_by_row(
    system: System,
    frame: Frame,
    x: Tensor,
    g: Tensor,
    added: Tensor | None,
    slopes: Sequence[Coefficient] | None,
    secants: Secants | None,
) -> Tensor:
    """`sweep` for coefficients that are tensors."""
    place = {k: p for p, k in enumerate(system.points)}

    def linearised(k: int, y: Tensor) -> Tensor:
        p = place[k]
        result, moved = g[p - frame.past], y - x[k - frame.first]
        if slopes is None or p <= frame.begin:
            return result
        result = result + at_home(slopes[p], x) * moved
        return result if secants is None else result + secants.change(p, moved)

    if slopes is not None:
        return substitute(system.plan, frame.new, x, frame.first, linearised, added)
    # Literal: Phi at the old states alone, then the differences of the base states on top.
    result = torch.stack(
        [
            substitute(system.plan, slice(k, k + 1), x, frame.first, linearised, None)[0]
            for k in range(frame.new.start, frame.new.stop)
        ]
    )
    if added is not None:
        result += added
    for i, k in enumerate(range(frame.new.start, frame.new.stop)):
        for j, value in literal(system.plan, k):
            if j > frame.final:
                moved = result[j - frame.final - 1] - x[j - frame.first]
                result[i] += at_home(value, x) * moved
    return result


def substitute(
    plan: Plan,
    new: slice,
    x: Tensor,
    first: int,
    target: Callable[[int, Tensor], Tensor],
    added: Tensor | None,
) -> Tensor:
    """The plan's rows ``new`` one after the other, with g of row k and state y as target(k, y).

    x holds the states of the rows from ``first`` on, at least up to ``new``; ``added`` c + noise.
    """
    states = {k: x[k - first] for k in range(first, new.start)}
    cached: dict[int, Tensor] = {}
    for i, k in enumerate(range(new.start, new.stop)):
        row = plan.rows[k]
        for j, _ in row.outputs:
            if j not in cached:
                cached[j] = target(j, states[j])
        terms = [(at_home(a, x), states[j]) for j, a in row.states]
        terms += [(at_home(b, x), cached[j]) for j, b in row.outputs]
        states[k] = combination(
            terms or [(0.0, x[0])], torch.zeros_like(x[0]) if added is None else added[i]
        )
    return torch.stack([states[k] for k in range(new.start, new.stop)])
