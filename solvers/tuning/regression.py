r"""Coefficients by least squares along the converged trajectory: no gradient, one run a fit.

With x*_k the converged solution at node k, row after row asks for

    min over a_k, b_kj of   sum_i w_i |a_k x_T,i + sum_j b_kj x0_ij - x*_ki|^2,
    w_i = 1 / (e_i^2 + (0.3 median e)^2),

with e_i the error that the row leaves of start i, in a few turns; then the network is called at the
row's own state, and the next row is fitted to what it answers there. Consistent rows change within
the identities. The solution at a node comes from a long run, by an exponential step from the node
of it before, with the data prediction linear in lambda.

That leaves the states on the trajectory, where the best plan need not have them, but it costs no
more than a run: it is where fits with gradients begin, and tells which nodes they begin with.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..node import Node
from ..plan import Plan
from ..prediction import to_data
from ..scalar import plain
from .problem import Part, Parts
from .tables import Table
from .trajectory import Trajectory, record

TURNS = 3
ROUNDED = 0.3
RIDGE = 1e-6
MEMORY = 256e6
STARTS = 96
"""At most; and not more than whose trajectories take so many bytes, but eight at least."""


@dataclass(frozen=True, eq=False)
class Path:
    """Starts and the converged trajectory from them."""

    part: Part
    trajectory: Trajectory

    @cached_property
    def _lams(self) -> list[float]:
        return [plain(node.lam) for node in self.trajectory.nodes]

    def at(self, node: Node) -> Tensor:
        """(B, D) the solution at a node; at the last one the target of the fit."""
        nodes, states, data = self.trajectory.nodes, self.trajectory.states, self.trajectory.data
        lam = plain(node.lam)
        if lam >= self._lams[-1]:
            return self.part.targets.flatten(1).cpu().double()
        m = min(max(bisect_right(self._lams, lam) - 1, 0), len(data) - 1)
        before = nodes[m]
        a = plain(node.sigma) / plain(before.sigma)
        b = plain(node.alpha) - a * plain(before.alpha)
        state = a * states[m] + b * data[m]
        if m + 1 < len(data) and math.isfinite(self._lams[m]):
            step, h = self._lams[m + 1] - self._lams[m], lam - self._lams[m]
            slope = (data[m + 1] - data[m]) / step
            state = state + plain(node.alpha) * (h + math.expm1(-h)) * slope
        return state


def paths_of(parts: Parts, plan: Plan) -> list[Path]:
    """The trajectories of some starts of every part by a long run."""
    size = parts.each[0].starts[0].numel()
    most = int(MEMORY / (16 * plan.nfe * size))
    few = parts.first(min(STARTS, max(8, most)))
    return [Path(part, record(part.denoise, part.starts, plan)) for part in few.each]


@torch.no_grad()
def regressed(table: Table, paths: Sequence[Path], *, consistent: bool) -> tuple[Table, Tensor]:
    """The table with the rows fitted on its nodes, and the errors (B,) at the end."""
    weights = table.weights.clone()
    bases = [[path.part.starts.flatten(1).cpu().double()] for path in paths]
    errors = torch.zeros(0)
    for k, node in enumerate(table.nodes):
        if k:
            history = torch.cat([torch.stack(basis) for basis in bases], 1)
            wanted = torch.cat([path.at(node) for path in paths])
            weights[k, : k + 1], errors = _row(weights[k, : k + 1], history, wanted, consistent)
        if k == table.nfe:
            break
        for path, basis in zip(paths, bases, strict=True):
            state = torch.einsum("k,kbm->bm", weights[k, : k + 1], torch.stack(basis))
            basis.append(_data(path.part, node, state if k else basis[0]))
    return Table(weights, table.nodes), errors


def _row(row: Tensor, history: Tensor, wanted: Tensor, consistent: bool) -> tuple[Tensor, Tensor]:
    """A row fitted to (k + 1, B, D) what it combines, and the errors that it leaves."""
    free = _directions(len(row), consistent)
    for turn in range(TURNS + 1):
        gaps = wanted - torch.einsum("k,kbm->bm", row, history)
        squares = gaps.square().mean(1)
        if turn == TURNS or not free.shape[1]:
            break
        each = 1 / (squares + ROUNDED**2 * squares.median()).clamp(min=1e-300)
        gram = torch.einsum("kbm,b,lbm->kl", history, each, history)
        slope = torch.einsum("kbm,b,bm->k", history, each, gaps)
        gram, slope = free.T @ gram @ free, free.T @ slope
        ridge = RIDGE * torch.diag(gram.diagonal()) + 1e-12 * gram.diagonal().max() * torch.eye(
            len(gram), dtype=gram.dtype
        )
        move = torch.linalg.solve(gram + ridge, slope)
        if not torch.isfinite(move).all():
            break
        row = row + free @ move
    return row, squares.sqrt()


def _directions(count: int, consistent: bool) -> Tensor:
    """(count, f) the directions that a row may move in: all, or those of the identities."""
    if not consistent:
        return torch.eye(count, dtype=torch.float64)
    # a stays, the b's keep their sum
    below = torch.eye(count, dtype=torch.float64)[:, 1:]
    return below[:, :-1] - below[:, 1:]


def _data(part: Part, node: Node, state: Tensor) -> Tensor:
    """(B, D) data predictions at the states."""
    x = state.to(part.starts.device, part.starts.dtype).view_as(part.starts)
    output = part.denoise.evaluate(x.clone(), *node[:1], *node[3:])
    of_output, of_state = to_data(part.denoise.prediction, node)
    return (of_output * output + of_state * x).flatten(1).cpu().double()
