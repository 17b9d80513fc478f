r"""Grids as points of a few numbers, for searches that may put none out of order.

The logistic grid cuts the share p of a logistic distribution over lambda into equal parts (see
`logistic`). Here the parts are stretched,

    p_k = p_T + (p_end - p_T) sum_{j<k} d_j / sum_j d_j,
    d_j = D_j exp(sum_m a_m cos(pi m (j + 1/2) / n)),      m = 1, 2, ...,

so that the nodes rise whatever the numbers are. A point is (location, log of the scale, a_1, a_2,
...). With all D_j = 1 and no a it is the logistic grid itself, with n - 3 of them it is every grid
of n intervals; other D_j make any grid the point without a (`around`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grids import snapped
from ..logistic import default_location, default_scale
from ..schedules import DiscreteVP, NoiseSchedule


@dataclass(frozen=True)
class GridFamily:
    """Grids of ``n`` intervals from ``t_start`` to ``t_end`` of a schedule.

    ``snap`` moves them to whole training steps (DiscreteVP), as in `Grid`; ``lengths`` are the D's,
    None for 1.
    """

    schedule: NoiseSchedule
    n: int
    t_start: float
    t_end: float
    snap: bool = False
    lengths: tuple[float, ...] | None = None

    @property
    def default(self) -> list[float]:
        """The point of the default grid."""
        return [default_location(self.schedule), math.log(default_scale(self.schedule, self.n))]

    @property
    def stretches(self) -> int:
        """How many a's make every grid."""
        return max(0, self.n - 3)

    def times(self, point: Sequence[float]) -> Tensor:
        """The n + 1 falling times of the grid at ``point``."""
        first, last = self.schedule.lam(self.t_start), self.schedule.lam(self.t_end)
        lams = self._lams(first, last, self.n, point)
        if isinstance(self.schedule, DiscreteVP) and self.n > 1:
            # Nothing but the end lies beyond the first training step, as in `logistic_lams`.
            highest = self.schedule.lam(1 / self.schedule.steps)
            if first < highest < lams[-1]:
                lams = self._lams(first, highest, self.n - 1, point)
                lams = torch.cat([lams, torch.tensor([highest], dtype=torch.float64)])
        ends = [torch.tensor([end], dtype=torch.float64) for end in (self.t_start, self.t_end)]
        return self.placed(torch.cat([ends[0], self.schedule.time(lams), ends[1]]))

    def placed(self, times: Tensor) -> Tensor:
        """Times of a grid, on whole training steps where those are asked for."""
        if self.snap and isinstance(self.schedule, DiscreteVP):
            return snapped(self.schedule, times)
        return times

    def around(self, times: Tensor) -> GridFamily:
        """The family whose default point is the grid at ``times``."""
        location, scale = self.default
        lams = self.schedule.lam(times)
        p = torch.sigmoid((lams - location) / math.exp(scale))
        return replace(self, lengths=tuple(p.diff().tolist()))

    def _lams(self, first: float, last: float, n: int, point: Sequence[float]) -> Tensor:
        """The n - 1 inner nodes between two ends."""
        location, scale = point[0], math.exp(point[1])
        places = torch.arange(n, dtype=torch.float64) + 0.5
        lengths = torch.tensor(self.lengths or [1.0] * n, dtype=torch.float64)[:n]
        for m, a in enumerate(point[2:], start=1):
            lengths = lengths * torch.exp(a * torch.cos(math.pi * m * places / n))
        ramp = (lengths.cumsum(0) / lengths.sum())[:-1]
        # p and 1 - p, each without cancellation
        ends = torch.tensor([first, last], dtype=torch.float64)
        p, q = (torch.sigmoid(sign * (ends - location) / scale) for sign in (1, -1))
        low, high = (part[0] + (part[1] - part[0]) * ramp for part in (p, q))
        return location + scale * (low.log() - high.log())
