"""Trajectories of a long run, for grids and rows that are found without further evaluations."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..grids import node_at
from ..plan import Node, Plan
from ..running import Step, sample
from ..scalar import plain
from ..schedules import NoiseSchedule


@dataclass(frozen=True)
class Trajectory:
    """States and data predictions of a run.

    Parameters
    ----------
    nodes : L + 1 of them, from the start to the end.
    states : (L + 1, B, D) at the nodes.
    data : (L, B, D), the data predictions at all but the last.
    """

    nodes: tuple[Node, ...]
    states: Tensor
    data: Tensor

    @property
    def end(self) -> Tensor:
        """(B, D), where the run ended."""
        return self.states[-1]

    def rows(self, rows: Tensor) -> Trajectory:
        """Of some of the starts."""
        return replace(self, states=self.states[:, rows], data=self.data[:, rows])

    def at(self, node: Node) -> Tensor:
        """(B, D) the state at a node, differentiable in the node's numbers.

        An exponential step from the trajectory's node before it, with the data prediction linear in
        lambda.
        """
        m = self._before(node)
        of_state, of_data, of_changes = self._weights(m, node)
        return of_state * self.states[m] + of_data * self.data[m] + of_changes * self._changes(m)

    def slope(self, t: Any, schedule: NoiseSchedule) -> Tensor:
        """(B, D) the derivative of `at` by the time of the node."""
        m = self._before(node_at(schedule, t))

        def weights(t: Any) -> Tensor:
            return torch.stack(self._weights(m, node_at(schedule, t)))

        with torch.enable_grad():
            by_time = torch.autograd.functional.jacobian(weights, t.detach())
        parts = torch.stack([self.states[m], self.data[m], self._changes(m)])
        return torch.einsum("w,wbd->bd", by_time, parts)

    @cached_property
    def _lams(self) -> list[float]:
        return [plain(node.lam) for node in self.nodes]

    def _before(self, node: Node) -> int:
        return min(max(bisect_right(self._lams, plain(node.lam)) - 1, 0), len(self.data) - 1)

    def _linear(self, m: int) -> bool:
        """Whether the data prediction has a slope in lambda behind node m."""
        return m + 1 < len(self.data) and math.isfinite(self._lams[m])

    def _changes(self, m: int) -> Tensor:
        """(B, D) of the data prediction, by lambda."""
        if not self._linear(m):
            return torch.zeros_like(self.data[m])
        return (self.data[m + 1] - self.data[m]) / (self._lams[m + 1] - self._lams[m])

    def _weights(self, m: int, node: Node) -> tuple[Tensor, Tensor, Tensor]:
        """Of the state and the data prediction at node m, and of the changes behind it."""
        before = self.nodes[m]
        alpha, sigma, lam = (
            torch.as_tensor(v, dtype=torch.float64) for v in (node.alpha, node.sigma, node.lam)
        )
        a = sigma / plain(before.sigma)
        h = lam - self._lams[m] if self._linear(m) else torch.zeros_like(lam)
        return a, alpha - a * plain(before.alpha), alpha * (h + torch.expm1(-h))


@torch.no_grad()
def record(
    denoise: Denoiser | Callable[[Tensor, float], Tensor], starts: Tensor, plan: Plan
) -> Trajectory:
    """The trajectory of ``plan``, one with a single evaluation at each node."""
    steps: list[Step] = []
    end = sample(denoise, starts, plan, callback=steps.append)
    states: list[Any] = [step.x for step in steps]
    return Trajectory(
        (*(step.node for step in steps), plan.rows[-1].node),
        torch.stack([*states, end]).flatten(2).cpu().double(),
        torch.stack([step.x0 for step in steps]).flatten(2).cpu().double(),
    )


def joined(pieces: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several batches, on the same nodes, as one."""
    states = torch.cat([piece.states for piece in pieces], 1)
    return replace(pieces[0], states=states, data=torch.cat([piece.data for piece in pieces], 1))
