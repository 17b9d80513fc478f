r"""When a point has settled (Shih et al. 2023, section 3.3).

A new state is compared with the one before it, |x_new - x_old|^2 / D, and the change with
tolerance^2 times the variance of the step of DDPM that leaves the point,

    sigma_t^2 (1 - e^(-2h)),

so that the error is a given share of the noise that a stochastic sampler would add there. The
variance is zero for a step to sigma = 0, and no step leaves the sample. As published, such points
are compared with zero and never settle. Here they take the variance of the last point that has
one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..plan import Node, Plan


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
    cleaner one. ``published`` leaves the zeros at the end.
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


def changes(new: Tensor, old: Tensor) -> list[float]:
    """|new - old|^2 / D at each of the points (points, B, *event), the largest over the batch."""
    return (new - old).flatten(2).square().mean(2).amax(1).tolist()


def settled(changed: Sequence[float], limits: Sequence[float]) -> int:
    """How many of the first points have settled."""
    count = 0
    for change, limit in zip(changed, limits, strict=True):
        if not change <= limit:
            break
        count += 1
    return count
