r"""When a point has settled, and when the sample has.

**Ours.** A sweep moves a state by d = |x_new - x_old| / |x_new|, which is about the error that
x_old had. Sweeps contract, and ever faster, by a factor that the last two of them show; so what is
left of the error is about

    e = d rho,      rho = d / d_before     (within [0.1, 1]; 1 at the first sweep).

The run ends with the sweep that brings e below the tolerance at the sample and at all points
before it: a sample that wavers between two modes of the data may move little twice in succession,
but not the states on its way. Points are final before that once their e is below a share of the
tolerance: what they keep of an error is carried along to the sample, and no later sweep removes
it.

**Published** (Shih et al. 2023, section 3.3). |x_new - x_old|^2 / D is compared with tolerance^2
times the variance of the step of DDPM that leaves the point,

    sigma_t^2 (1 - e^(-2h)).

The variance is zero for a step to sigma = 0, and no step leaves the sample: such points are
compared with zero and never settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan import Node, Plan

SHARE = 0.05
"""Of the tolerance, for points that are not the sample; docs/parallel.md has the measurement."""

LEAST_RATE = 0.1
"""A smaller quotient of two changes may be chance."""


def posterior_variance(start: Node, end: Node) -> float:
    """sigma_t^2 (1 - e^(-2h)), the variance of the DDPM posterior of a step."""
    if start.alpha == 0:
        return end.sigma**2
    if start.sigma == 0:
        return 0.0
    return end.sigma**2 * (1 - (start.alpha * end.sigma / (start.sigma * end.alpha)) ** 2)


def variances(plan: Plan, *, published: bool = False) -> list[float]:
    """The variance for each point of ``plan``: its evaluated rows and the sample.

    Points at the same node (the stages of a predictor-corrector) take the step to the next
    cleaner one. ``published`` leaves the zeros at the end; else the last positive variance takes
    their place, so that residuals can be divided by it.
    """
    nodes = [plan.rows[k].node for k in (*plan.evaluated, len(plan.rows) - 1)]
    values: list[float] = []
    for i, start in enumerate(nodes):
        end = next((node for node in nodes[i + 1 :] if node.lam > start.lam), None)
        value = 0.0 if end is None else posterior_variance(start, end)
        if value == 0 and not published:
            # A plan of a single step to sigma = 0 has no variance at all: the start's own.
            value = values[-1] if values else start.sigma**2
        values.append(value)
    return values


@dataclass(frozen=True, eq=False)
class Changes:
    """What a sweep changed at the points from ``first`` on.

    ``absolute`` is |x_new - x_old| / sqrt(D), ``relative`` |x_new - x_old| / |x_new|, both
    (points, B), float64 on the CPU.
    """

    first: int
    absolute: Tensor
    relative: Tensor


def changes(first: int, new: Tensor, old: Tensor) -> Changes:
    """The changes between states (points, B, *event)."""
    absolute, size = (part.flatten(2).square().mean(2).sqrt() for part in (new - old, new))
    absolute, size = (part.to("cpu", torch.float64) for part in (absolute, size))
    # A state of zeros that has not moved has not moved.
    return Changes(first, absolute, torch.where(absolute == 0, absolute, absolute / size))


def errors_left(now: Changes, before: Changes | None) -> Tensor:
    """e (points, B) from the changes of this sweep and the last; see the module's text."""
    rate = torch.ones_like(now.relative)
    if before is not None:
        old = before.relative[now.first - before.first :]
        known = min(len(old), len(rate))
        quotient = now.relative[:known] / old[:known]
        rate[:known] = quotient.nan_to_num(1.0).clamp(LEAST_RATE, 1.0)
    return now.relative * rate


def settled(errors: Tensor, limits: Tensor) -> int:
    """How many of the first points have errors (points, B) within limits (points,)."""
    return int((errors <= limits[:, None]).all(1).cumprod(0).sum())
