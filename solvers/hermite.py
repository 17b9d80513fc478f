r"""Dense output: a path of the probability-flow ODE between the states where it is known.

Between two knots the rotated state u = x / r, r = sqrt(alpha^2 + sigma^2), is the cubic Hermite
polynomial in lambda with the slopes of the ODE, du / d lambda = a (x0 - a u), a = alpha / r (see
`reference`). Before the first knot the path is the first-order step from pure noise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

from .grids import node_at
from .methods.multistep import first_order
from .plan import DATA, Node
from .schedules import NoiseSchedule


class Hermite:
    """The interpolant of the knots that are added to it, as a function of time.

    ``path(t)`` (B, *event) has the dtype that was given. ``end`` is the time that was asked for;
    where the last knot stops just short of it, the last piece goes on. ValueError outside.
    """

    def __init__(self, schedule: NoiseSchedule, dtype: torch.dtype, end: float):
        self.schedule, self.dtype, self.end = schedule, dtype, end
        self.times: list[float] = []
        self.lams: list[float] = []
        self.states: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.before: Callable[[Node], Tensor] | None = None

    def begin(self, start: Node, x: Tensor, x0: Tensor) -> None:
        """The path comes to its first knot by a first-order step from x at ``start``."""
        self.times.append(start.t)

        def step(node: Node) -> Tensor:
            a, b = first_order(DATA, start, node)
            return a * x + b * x0

        self.before = step

    def add(self, node: Node, x: Tensor, x0: Tensor) -> None:
        """A knot: the state x at ``node`` and the data prediction there."""
        r = math.hypot(node.alpha, node.sigma)
        a = node.alpha / r
        self.times.append(node.t)
        self.lams.append(node.lam)
        self.states.append(x / r)
        self.slopes.append(a * (x0 - a * x / r))

    def __call__(self, t: float) -> Tensor:
        if not self.end <= t <= self.times[0]:
            raise ValueError(f"t={t!r}: need a time in [{self.end:g}, {self.times[0]:g}]")
        node = node_at(self.schedule, t)
        if self.before is not None and node.lam < self.lams[0]:
            return self.before(node).to(self.dtype)
        left = min(max(bisect_right(self.lams, node.lam) - 1, 0), len(self.lams) - 2)
        h = self.lams[left + 1] - self.lams[left]
        s = (node.lam - self.lams[left]) / h
        u = (1 + 2 * s) * (1 - s) ** 2 * self.states[left]
        u = u + s**2 * (3 - 2 * s) * self.states[left + 1]
        u = u + h * s * (1 - s) * ((1 - s) * self.slopes[left] - s * self.slopes[left + 1])
        return (u * math.hypot(node.alpha, node.sigma)).to(self.dtype)
