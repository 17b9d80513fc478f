r"""The curvature of the objective at a plan, by forward differences of the network.

The endpoint's derivative by every parameter is carried along the run: with a step h along the
tangent of the state and of the times, the network answers (f(x + h v) - f(x)) / h. That needs no
gradient of the network, and no memory of its graph. With r_i the residual of start i and w_i the
objective's weight of it, the Gauss-Newton matrix is

    H = 2 sum_i w_i J_i^T J_i.

Few starts do: each has as many residuals as a sample has numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..node import Node
from ..prediction import to_data
from .family import Family, Slope
from .objective import weights
from .problem import Part, Parts
from .tables import Table

STEP = 5e-4
"""Root mean square of the change of the state: above the rounding of float32, below what the
network's own curvature shows."""
FEATURE_STEP = 1e-2
GROUPS = 256
"""States of one call, at most."""


@torch.no_grad()
def curvature(family: Family, theta: Tensor, parts: Parts, name: str, scale: float) -> Tensor:
    """H (P, P) at theta, of the mean objective over the starts of ``parts``."""
    table, slope = family.table(theta), family.slope(theta)
    total = torch.zeros(family.size, family.size, dtype=torch.float64)
    for whole in parts.each:
        for rows in torch.arange(len(whole.starts)).split(8):
            part = whole.rows(rows)
            gaps, jacobian = _residuals(part, table, slope, family)
            each = 2 * weights(name, gaps.square().sum(1), scale) / parts.count
            flat = (jacobian * each.sqrt()[None, :, None]).flatten(1).cpu()
            if torch.isfinite(flat).all():
                total += flat @ flat.T
    return total


@torch.no_grad()
def gradient_by_differences(
    family: Family, theta: Tensor, part: Part, name: str, scale: float
) -> Tensor:
    """The gradient (P,) of the mean objective, of a network that is only called."""
    gaps, jacobian = _residuals(part, family.table(theta), family.slope(theta), family)
    each = 2 * weights(name, gaps.square().sum(1), scale) / len(gaps)
    return torch.einsum("pbm,bm,b->p", jacobian, gaps, each).cpu()


def _residuals(part: Part, table: Table, slope: Slope, family: Family) -> tuple[Tensor, Tensor]:
    """(B, m) whose squares sum to the squared errors, and their derivatives (P, B, m)."""
    gaps, slopes, along = [], [], part.along
    for k, (state, tangents) in enumerate(forward(part, table, slope, family)):
        if k == table.nfe:
            gap = part.gaps(state).double()
            seen = tangents.flatten(2) if part.features is None else _seen(part, state, tangents)
            share = 1.0
        elif k and along is not None:
            t = table.times[k]
            gap = along.gaps(state, t).double()
            ahead = along.velocity(t).to(state.device)
            moved = slope.times[:, k].to(state.device)[:, None, None] * ahead
            seen = tangents.flatten(2) - moved
            share = along.share(table.nfe)
        else:
            continue
        size = math.sqrt(share / gap.shape[1])
        gaps.append(size * gap)
        slopes.append(size * seen.double())
    return torch.cat(gaps, 1), torch.cat(slopes, 2)


def preconditioner(hessian: Tensor, damping: float = 1e-3) -> Tensor:
    """W with W^T H W about 1: coordinates in which all directions are alike.

    Directions in which the objective is flat, below ``damping`` of the average, are not followed
    further than that. A parameter that changes nothing stays where it is.
    """
    size = hessian.diagonal()
    used = size > 1e-12 * size.max().clamp(min=1e-300)
    unit = torch.where(used, size.clamp(min=1e-300).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(unit[:, None] * hessian * unit)
    return unit[:, None] * (vectors * (values.clamp(min=0) + damping).rsqrt())


def forward(
    part: Part, table: Table, slope: Slope, family: Family
) -> Iterator[tuple[Tensor, Tensor]]:
    """The evaluated states and the sample (B, *event), with their derivatives (P, B, *event)."""
    x, n, size = part.starts, table.nfe, family.size
    call = _Predictions(part, table, family)
    values, tangents = [x], [torch.zeros(size, *x.shape, dtype=x.dtype, device=x.device)]
    for k in range(n + 1):
        row, moved = table.weights[k].tolist(), slope.weights[:, k].to(x.device, x.dtype)
        state = values[0] if k == 0 else torch.zeros_like(x)
        tangent = torch.zeros_like(tangents[0])
        for j in range(k + 1 if k else 0):
            state = state + row[j] * values[j]
            tangent += row[j] * tangents[j]
            tangent += moved[:, j].reshape(-1, *[1] * x.ndim) * values[j]
        yield state, tangent
        if k == n:
            return
        value, derivative = call(k, state, tangent, slope.times[:, k], slope.told[:, k])
        values.append(value)
        tangents.append(derivative)


def _seen(part: Part, x: Tensor, tangents: Tensor) -> Tensor:
    """What the features (P, B, m) make of the tangents, by differences."""
    here, found = part.gaps(x), []
    for tangent in tangents:
        size = float(tangent.square().mean().sqrt())
        h = FEATURE_STEP / size if size > 0 else 0.0
        found.append((part.gaps(x + h * tangent) - here) / h if h else torch.zeros_like(here))
    return torch.stack(found)


class _Predictions:
    """Data predictions at the rows of a table, and their derivatives."""

    def __init__(self, part: Part, table: Table, family: Family):
        self.part, self.table, self.schedule = part, table, family.schedule

    def __call__(
        self, k: int, state: Tensor, tangent: Tensor, times: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        value = self.at(k, state[None], torch.zeros(1), torch.zeros(1))[0]
        size = tangent.flatten(1).square().mean(1).sqrt().double().cpu()
        active = ((size > 0) | (times != 0) | (told != 0)).nonzero()[:, 0]
        derivative = torch.zeros_like(tangent)
        if not len(active):  # as at the first evaluation, where the start and the time are given
            return value, derivative
        per_call = max(1, GROUPS // len(state))
        for rows in active.split(per_call) if len(active) else ():
            h = STEP / (size[rows] + times[rows].abs() + told[rows].abs()).clamp(min=1e-12)
            wide = h.to(state.device, state.dtype).reshape(-1, *[1] * state.ndim)
            moved = state + wide * tangent[rows.to(state.device)]
            changed = self.at(k, moved, h * times[rows], h * told[rows])
            derivative[rows.to(state.device)] = (changed - value) / wide
        return value, derivative

    def at(self, k: int, x: Tensor, dt: Tensor, dtold: Tensor) -> Tensor:
        """x0 at states (G, B, *event), with the times of row k moved by (G,)."""
        low, high = self.schedule.t_end, self.schedule.t_max
        t = (self.table.times[k] + dt.double()).clamp(low, high)
        told = (self.table.told[k] + dtold.double()).clamp(low, high)
        denoise = self.part.denoise
        output = denoise.evaluate_groups(x.clone(), t, told)
        nodes = zip(t, self.schedule.alpha(t), self.schedule.sigma(t), strict=True)
        linear = [to_data(denoise.prediction, Node(*map(float, node))) for node in nodes]
        maps = torch.tensor([list(map(float, entry)) for entry in linear], dtype=torch.float64)
        of_output, of_state = (
            maps.to(x.device, x.dtype).reshape(-1, 2, *[1] * (x.ndim - 1)).unbind(1)
        )
        return of_output * output + of_state * x
