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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..node import Node
from ..plan import Plan
from ..prediction import to_data
from ..scalar import plain
from ..schedules import NoiseSchedule
from .along import Along
from .problem import Part, Parts
from .tables import Table
from .trajectory import Trajectory, joined, record

TURNS = 3
ROUNDED = 0.3
RIDGE = 1e-6
MEMORY = 256e6
BATCH = 64
STARTS = 96
"""At most; and not more than whose trajectories take so many bytes, but eight at least."""


@dataclass(frozen=True, eq=False)
class Path:
    """Starts and the converged trajectory from them."""

    part: Part
    trajectory: Trajectory

    def at(self, node: Node) -> Tensor:
        """(B, D) the solution at a node; at the last one the target of the fit."""
        if plain(node.lam) >= plain(self.trajectory.nodes[-1].lam):
            return self.part.targets.flatten(1).cpu().double()
        return self.trajectory.at(node)


def paths_of(parts: Parts, plan: Plan) -> list[Path]:
    """The trajectories of some starts of every part by a long run."""
    size = parts.each[0].starts[0].numel()
    most = int(MEMORY / (16 * plan.nfe * size))
    few = parts.first(min(STARTS, max(8, most)))
    return [Path(part, _recorded(part, plan)) for part in few.each]


def along_the_way(parts: Parts, plan: Plan, schedule: NoiseSchedule, weight: float) -> Parts:
    """The parts with the trajectories of all their starts by a long run, whose states count."""
    return Parts(
        tuple(
            replace(part, along=Along(_recorded(part, plan), schedule, weight))
            for part in parts.each
        )
    )


def _recorded(part: Part, plan: Plan) -> Trajectory:
    """What is there already, else a run, batch by batch."""
    if part.along is not None:
        return part.along.trajectory
    batches = torch.arange(len(part.starts)).split(BATCH)
    return joined([record(p.denoise, p.starts, plan) for p in map(part.rows, batches)])


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
