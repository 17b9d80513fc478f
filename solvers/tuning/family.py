r"""The plans that a fit chooses from: a vector of numbers -> a table.

Nodes: with F the distribution of the logistic grid, p_k = F(lambda_k) rises from p_0 to p_n, and
the increments are

    p_k - p_{k-1} = (p_n - p_0) softmax(log of the base's increments + theta)_k,

so that the nodes are in order whatever theta is. Coefficients: the base solver's on these nodes,
plus theta; for consistent rows plus theta without its mean over the row, which keeps the sums of
the identities. Times told: t_k + theta (t_k - t_{k+1}).

At theta = 0 the plan is the base. A solver's coefficients on other nodes are cheap, so that their
derivative by the nodes is taken by central differences in float64, whatever the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..node import Node
from ..plan import Plan
from ..scalar import plain
from ..schedules import NoiseSchedule
from .tables import Table, table_of

STEP = 1e-5
DENSITY_SCALE = 1.3


class Slope(NamedTuple):
    """Derivatives of a table by the P parameters.

    ``weights`` is (P, n + 1, n + 1), ``times`` and ``told`` are (P, n).
    """

    weights: Tensor
    times: Tensor
    told: Tensor


@dataclass(frozen=True, eq=False)
class Family:
    """Plans near ``base``.

    Parameters
    ----------
    base : the plan at theta = 0, of plain numbers.
    remade : times -> the base's solver on these nodes; None for nodes that stay.
    coefficients, told : whether these are free.
    consistent : whether rows keep the identities.
    """

    schedule: NoiseSchedule
    base: Plan
    remade: Callable[[list[float]], Plan] | None
    coefficients: bool
    consistent: bool
    told: bool

    @cached_property
    def _table(self) -> Table:
        return table_of(self.base)

    @cached_property
    def _lams(self) -> list[float]:
        return [plain(node.lam) for node in self._table.nodes]

    @cached_property
    def _center(self) -> float:
        inner = [lam for lam in self._lams if math.isfinite(lam)]
        # One evaluation from pure noise to data has no node between.
        return sum(inner) / len(inner) if inner else 0.0

    @cached_property
    def _shares(self) -> Tensor:
        """p_k of the base's nodes."""
        lams = torch.tensor(self._lams, dtype=torch.float64)
        return torch.sigmoid((lams - self._center) / DENSITY_SCALE)

    @cached_property
    def _counts(self) -> tuple[int, int, int, int]:
        """How many numbers: of nodes, times told, a's and b's."""
        n = self.base.nfe
        first = 1 if self._at_bound else 0
        rows = n if self.coefficients and not self.consistent else 0
        triangle = n * (n + 1) // 2 if self.coefficients else 0
        return (n - 1 if self.remade else 0, n - first if self.told else 0, rows, triangle)

    @property
    def _at_bound(self) -> bool:
        """Whether the first evaluation is at the largest time that the network knows."""
        return plain(self._table.nodes[0].t) >= self.schedule.t_max

    @property
    def size(self) -> int:
        """P."""
        return sum(self._counts)

    def table(self, theta: Tensor) -> Table:
        """The table of theta (P,)."""
        moves, shifts, a, b = theta.double().split(list(self._counts))
        table = self._moved(moves)
        if len(b):
            table = Table(table.weights + self._deltas(a, b), table.nodes)
        if len(shifts):
            table = Table(table.weights, self._telling(table.nodes, shifts))
        return table

    def plan(self, theta: Tensor) -> Plan:
        """The plan of theta, with plain numbers; the solver's own if no coefficient is free."""
        if not self.coefficients and not self.told:
            assert self.remade is not None
            return self.remade(self._times(theta))
        return self.table(theta).plan(consistent=self.consistent)

    def theta_of(self, weights: Tensor) -> Tensor:
        """The parameters with the base's nodes and times, and these ``weights`` of its table."""
        moves, shifts, a, b = self._counts
        n = self.base.nfe
        deltas = weights - self._table.weights
        theta = torch.zeros(self.size, dtype=torch.float64)
        if a:
            theta[moves + shifts : moves + shifts + a] = deltas[1:, 0]
        if b:
            rows, columns = torch.tril_indices(n, n)
            theta[moves + shifts + a :] = deltas[rows + 1, columns + 1]
        return theta

    def freed(self, theta: Tensor) -> Tensor:
        """The parameters, where rows are free, of the plan that consistent rows have at theta."""
        moves, shifts, a, b = self._counts
        given, told, deltas = theta.split([moves, shifts, b])
        return torch.cat([given, told, theta.new_zeros(a), self._without_means(deltas)])

    def slope(self, theta: Tensor) -> Slope:
        """The derivative of the table at theta: by differences for the nodes, else exact."""
        moves, shifts, a, b = self._counts
        n = self.base.nfe
        weights = torch.zeros(self.size, n + 1, n + 1, dtype=torch.float64)
        times = torch.zeros(self.size, n, dtype=torch.float64)
        told = torch.zeros(self.size, n, dtype=torch.float64)
        for i in range(moves):
            step = torch.zeros(self.size, dtype=torch.float64)
            step[i] = STEP
            after, before = self.table(theta + step), self.table(theta - step)
            weights[i] = (after.weights - before.weights) / (2 * STEP)
            times[i] = (after.times - before.times) / (2 * STEP)
            told[i] = (after.told - before.told) / (2 * STEP)
        if shifts:
            nodes = self._moved(theta[:moves]).nodes
            gaps = torch.tensor([plain(u.t - v.t) for u, v in pairwise(nodes)], dtype=torch.float64)
            told[moves : moves + shifts, n - shifts :] = torch.diag(gaps[n - shifts :])
        if a or b:
            weights[moves + shifts :] = self._directions
        return Slope(weights, times, told)

    @cached_property
    def _directions(self) -> Tensor:
        """The derivative of the weights by the coefficients' numbers, which is constant."""
        _, _, a, b = self._counts
        units = torch.eye(a + b, dtype=torch.float64)
        return torch.stack([self._deltas(*unit.split([a, b])) for unit in units])

    def _times(self, moves: Tensor) -> list[float]:
        nodes, p = self._table.nodes, self._shares
        logits = p.diff().log()
        raised = torch.cat([moves, moves.new_zeros(1)]) - torch.cat([moves.new_zeros(1), moves])
        shares = torch.softmax(logits + raised, 0).cumsum(0)[:-1]
        lams = self._center + DENSITY_SCALE * torch.logit(p[0] + (p[-1] - p[0]) * shares)
        inner = self.schedule.time(lams).tolist()
        return [plain(nodes[0].t), *inner, plain(nodes[-1].t)]

    def _moved(self, moves: Tensor) -> Table:
        if self.remade is None or not moves.any():
            return self._table
        return table_of(self.remade(self._times(moves)))

    def _deltas(self, a: Tensor, b: Tensor) -> Tensor:
        n = self.base.nfe
        deltas = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        if len(a):
            deltas[1:, 0] = a
        rows, columns = torch.tril_indices(n, n)
        deltas[rows + 1, columns + 1] = self._without_means(b) if self.consistent else b
        return deltas

    def _without_means(self, b: Tensor) -> Tensor:
        """The triangle's numbers without their mean over each row."""
        rows, _ = torch.tril_indices(self.base.nfe, self.base.nfe)
        sums = torch.zeros(self.base.nfe, dtype=torch.float64).index_add(0, rows, b)
        return b - (sums / torch.arange(1, self.base.nfe + 1))[rows]

    def _telling(self, nodes: tuple[Node, ...], shifts: Tensor) -> tuple[Node, ...]:
        n = self.base.nfe
        given = [0.0] * (n - len(shifts)) + shifts.tolist()
        told = []
        for k, shift in enumerate(given):
            node = nodes[k]
            time = node.t + shift * (node.t - nodes[k + 1].t)
            time = min(max(time, self.schedule.t_end), self.schedule.t_max)
            told.append(node._replace(told=time) if shift else node)
        return (*told, nodes[-1])
