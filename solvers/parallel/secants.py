r"""Secants: what two evaluations of a point say about the network's slope there.

Two evaluations of row j, at x_j and before, tell more about the network: with
dx and dg their differences, s = dx / |dx| and r = (dg - J dx) / |dx|, Powell's symmetric update

    J_j + r s^T + s (r - q s)^T,      q = s^T r,

reproduces what was seen and is the smallest change of J_j that does so and is symmetric, as the
slope of an exact network is (J = alpha / sigma^2 Cov(x0 | x) for data predictions; Powell 1970).
There is one pair for each sample and row. L keeps its form: with the matrix K = M B, the numbers
(a, b)_j = (s, r)_j^T (y_j - x_j), and the sweep without secants y_0,

    y = y_0 + K (s f + r h),      f_j = b_j - q_j a_j,   h_j = a_j,
    (a, b)_j = (s, r)_j^T ((y_0 - x)_j + sum_i K[j,i] (s_i f_i + r_i h_i)),

a triangular system with two unknowns a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import Coefficient
from ..prediction import at_home


@dataclass(frozen=True, eq=False)
class Secants:
    """Symmetric corrections of the slopes at the points begin .. begin + len(pairs) - 1.

    ``pairs`` (points, 2, B, *event) are s and r of the module's text.
    """

    begin: int
    pairs: Tensor

    def change(self, p: int, moved: Tensor) -> Tensor | float:
        """What the correction adds to J_p (y_p - x_p), from ``moved`` = y_p - x_p."""
        if not 0 <= p - self.begin < len(self.pairs):
            return 0.0
        s, r = self.pairs[p - self.begin]

        def along(first: Tensor, second: Tensor) -> Tensor:
            return (first * second).flatten(1).sum(1).view(-1, *[1] * (s.ndim - 1))

        a = along(s, moved)
        return a * r + (along(r, moved) - along(s, r) * a) * s

    def correct(self, y: Tensor, k: Tensor, rows: Tensor, old: Tensor) -> None:
        """Add K (s f + r h) to the flattened new rows y_0 in place.

        ``k`` are the columns of K of these points, ``rows`` their places among the rows of y, and
        ``old`` their states x.
        """
        count, old = len(self.pairs), old.flatten(2)
        moved = y[rows].view_as(old) - old
        # Samples first, s and r of a point side by side: (B, 2 points, D).
        pairs = self.pairs.flatten(3)
        sides = pairs.permute(2, 0, 1, 3).flatten(1, 2)
        products = torch.bmm(sides, sides.mT, out=y.new_empty(len(sides), 2 * count, 2 * count))
        q = products.diagonal(1, 1, 2)[:, ::2]
        seen = torch.stack([(side * moved).sum(2) for side in pairs.unbind(1)], dim=1)
        seen = seen.permute(2, 0, 1).flatten(1)[:, :, None]
        coupling = products * k[rows].repeat_interleave(2, 0).repeat_interleave(2, 1)

        def weights(ab: Tensor) -> Tensor:
            """(f, h) of each point in place of its (a, b)."""
            a, b = ab[:, ::2], ab[:, 1::2]
            return torch.stack([b - q[:, :, None] * a, a], dim=2).flatten(1, 2)

        identity = torch.eye(2 * count, dtype=y.dtype, device=y.device)
        solved = torch.linalg.solve_triangular(
            identity - weights(coupling), weights(seen), upper=False, unitriangular=True
        )
        f, h = solved.view(len(solved), count, 2, 1).permute(2, 1, 0, 3)
        y.addmm_(k, (f * pairs[:, 0]).addcmul_(h, pairs[:, 1]).flatten(1))


class Evaluated(NamedTuple):
    """States x and targets g (points, B, *event) of one sweep, from the point ``begin`` on."""

    begin: int
    x: Tensor
    g: Tensor


def measured(
    before: Evaluated | None, now: Evaluated, slopes: Sequence[Coefficient]
) -> Secants | None:
    """The secants at the points that two sweeps evaluated, but for the final one."""
    start = now.begin + 1
    stop = start if before is None else min(before.begin + len(before.x), now.begin + len(now.x))
    if before is None or stop <= start:
        return None
    new = slice(start - now.begin, stop - now.begin)
    old = slice(start - before.begin, stop - before.begin)
    dx, dg = now.x[new] - before.x[old], now.g[new] - before.g[old]
    for i in range(len(dx)):
        dg[i] -= at_home(slopes[start + i], dx) * dx[i]
    length = dx.flatten(2).norm(dim=2)
    scale = torch.where(length > 0, 1 / length, 0.0).view(*length.shape, *[1] * (dx.ndim - 2))
    return Secants(start, torch.stack([dx.mul_(scale), dg.mul_(scale)], dim=1))
