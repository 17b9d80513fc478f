r"""States along the run as a part of what is fitted: how near they are to the converged trajectory.

With x*(t) the converged trajectory from a start and x_k = x(t_k) the states at which the network is
called, the squared error of the start gains

    weight / (n - 1)  sum_{k=1}^{n-1}  |x_k - x*(t_k)|^2 / D.

Nodes that move have the solution at another time for their target, so that its derivative by the
time counts, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..grids import node_at
from ..schedules import NoiseSchedule
from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Along:
    """The converged trajectories of some starts, and the weight of the states on the way."""

    trajectory: Trajectory
    schedule: NoiseSchedule
    weight: float

    def rows(self, rows: Tensor) -> Along:
        """Of some of the starts."""
        return replace(self, trajectory=self.trajectory.rows(rows))

    def squares(self, states: Sequence[Tensor], times: Tensor) -> Tensor:
        """(B,) what the squared errors gain; ``states`` are those at ``times``, the first is x_T.

        Differentiable in both.
        """
        total = torch.zeros(len(states[0]), dtype=states[0].dtype, device=states[0].device)
        for state, t in zip(states[1:], times[1:], strict=True):
            total = total + self.gaps(state, t).square().mean(1)
        return self.share(len(states)) * total

    def share(self, nfe: int) -> float:
        """The weight of one state of a run of so many evaluations."""
        return self.weight / max(1, nfe - 1)

    def gaps(self, state: Tensor, t: Any) -> Tensor:
        """(B, D) a state less the solution at its time."""
        flat = state.flatten(1)
        return flat - self.trajectory.at(node_at(self.schedule, t)).to(flat.device, flat.dtype)

    def velocity(self, t: Tensor) -> Tensor:
        """(B, D) the derivative of the solution by the time."""
        return self.trajectory.slope(t, self.schedule)
