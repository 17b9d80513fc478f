r"""Which evaluations of a long run a cache had best keep: a search over masks.

The evaluations of the long run are a lattice, and its trajectories stand still, so that the best
path over them costs nothing (`lattice`): where it goes is where the network had best be called.
From there, or from evenly spread ones if those are nearer, every real evaluation is moved to the
places beside it as long as the error of real runs from the same starts falls.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..cached import Cache
from ..checks import check_whole
from ..denoiser import Denoiser, check_start
from ..masks import Mask, uniform_mask
from ..plan import Plan
from .errors import plan_errors, summary
from .lattice import dp_nodes
from .trajectory import Trajectory, record


@torch.no_grad()
def search_mask(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    plan: Plan,
    nfe: int,
    *,
    order: int = 2,
    variable: str = "time",
    quantity: str = "data",
    targets: Tensor | None = None,
    sweeps: int = 2,
    batch_size: int = 64,
) -> Mask:
    """The mask of ``nfe`` evaluations for `Plan.cached` whose runs end nearest to ``targets``.

    What is minimised is the geometric mean over the starts of the error at the end. The search
    spends plan.nfe evaluations of the batch first, and up to 2 nfe^2 in each sweep.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0.
    starts : start states (B, *event), a dozen or more; see `Plan.start`.
    plan : the long one. It must add no noise.
    nfe : evaluations that are to be real, in 1..plan.nfe.
    order, variable, quantity : as of `Plan.cached`, for which the mask is sought.
    targets : (B, *event) where the runs should end; the default is where the long plan ends.
    sweeps : with the network; 0 is the search without it.
    batch_size : starts that run at once.

    Raises ValueError for bad input before the network is called.
    """
    check_start(starts, denoise)
    check_whole("nfe", nfe, 1)
    check_whole("sweeps", sweeps, 0)
    kept: dict[str, Any] = {"order": order, "variable": variable, "quantity": quantity}
    Cache([True], **kept)  # refuses what is out of range
    if nfe > plan.nfe:
        raise ValueError(f"nfe={nfe}: the plan has {plan.nfe} evaluations")
    if plan.stochastic:
        raise ValueError("plan adds noise: its runs have no distance to one another")
    if targets is not None and targets.shape != starts.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}: need that of starts, {tuple(starts.shape)}"
        )
    trajectory = record(denoise, starts, plan)
    ends = trajectory.end.view(starts.shape) if targets is None else targets

    def error(mask: Mask) -> float:
        cached = plan.cached(mask, **kept)
        return summary(plan_errors(cached, denoise, starts, ends, batch_size=batch_size)).log_mean

    mask = _first(trajectory, nfe, min(order, 2))
    if nfe in (1, plan.nfe):
        return mask
    found = {m: error(m) for m in (mask, uniform_mask(plan.nfe, nfe)) if sweeps}
    best = min(found, key=lambda m: found[m], default=mask)
    for _ in range(sweeps):
        before = best
        for place in [i for i, real in enumerate(before) if real and i > 0]:
            for beside in (place - 1, place + 1):
                candidate = _moved(best, place, beside)
                if candidate is None or candidate in found:
                    continue
                found[candidate] = error(candidate)
                if found[candidate] < found[best]:
                    best = candidate
                    break
        if best == before:
            break
    return best


def _first(trajectory: Trajectory, nfe: int, order: int) -> Mask:
    """The best path over the nodes of the long run, or evenly spread ones where it has none."""
    count, times = len(trajectory.nodes) - 1, [node.t for node in trajectory.nodes]
    if any(a <= b for a, b in pairwise(times)):  # several evaluations at one node
        return uniform_mask(count, nfe)
    real = dp_nodes(trajectory, nfe, order=order)
    return tuple(i in real for i in range(count))


def _moved(mask: Mask, place: int, beside: int) -> Mask | None:
    """The mask with the real evaluation at ``place`` moved; None where that is not possible."""
    if not 0 < beside < len(mask) or mask[beside] or not mask[place]:
        return None
    return tuple(real if i not in (place, beside) else i == beside for i, real in enumerate(mask))
