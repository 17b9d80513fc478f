r"""The midpoint-error proxy: how good a grid is, told from trajectories that stand still.

After HSO (Zhu et al. 2025). A first-order step takes the data prediction D at its start for the
whole step, the midpoint rule the one in its middle: what they differ by,

    |b_k| rms(D(m_k) - D(k)),     b_k = alpha_{k+1} - alpha_k sigma_{k+1} / sigma_k,

needs D along a trajectory only, which one long run gives, and no solver. The proxy is the sum over
the steps, with a penalty that keeps nodes apart: each step that is shorter than a tenth of the mean
in tau = sigma / (alpha + sigma) counts as if its error were larger by as much. The middle is that
in tau, which is finite at both singular ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..node import Node
from .trajectory import Trajectory

CLOSE = 0.1
"""The share of the mean step, below which a step is penalised."""


class MidpointProxy:
    """The proxy of grids on the trajectories of one long run."""

    def __init__(self, trajectory: Trajectory):
        self.data = trajectory.data
        self.places = torch.tensor(
            [_tau(node) for node in trajectory.nodes[:-1]], dtype=torch.float64
        )

    def __call__(self, nodes: list[Node]) -> float:
        """The proxy of a grid; its logarithm, which is what a search had best see."""
        taus = [_tau(node) for node in nodes]
        mean = (taus[0] - taus[-1]) / (len(nodes) - 1)
        total = 0.0
        for k, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False)):
            length = taus[k] - taus[k + 1]
            weight = abs(end.alpha - start.alpha * end.sigma / start.sigma)
            change = self._at((taus[k] + taus[k + 1]) / 2) - self._at(taus[k])
            error = weight * float(change.square().mean(1).sqrt().mean())
            total += error * max(1.0, CLOSE * mean / length)
        return math.log(max(total, 1e-300))

    def _at(self, tau: float) -> Tensor:
        """D (B, D) at tau, linear between the nodes of the trajectory."""
        after = int((self.places > tau).sum().clamp(1, len(self.places) - 1))
        high, low = float(self.places[after - 1]), float(self.places[after])
        share = min(max((high - tau) / (high - low), 0.0), 1.0)
        return torch.lerp(self.data[after - 1], self.data[after], share)


def _tau(node: Node) -> float:
    return node.sigma / (node.alpha + node.sigma)
