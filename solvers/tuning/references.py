"""Converged solutions of start states, batch by batch, so that who keeps them can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..plan import Plan
from ..progress import Show, progress_bar
from ..registry import make_plan
from ..running import sample
from ..schedules import NoiseSchedule
from .errors import for_samples

SCALE = 1.7


def reference_plan(
    schedule: NoiseSchedule,
    nfe: int = 100,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
) -> Plan:
    """UniPC-3 on a wide logistic grid: its error is a small share of that of few evaluations."""
    return make_plan("unipc", schedule, nfe=nfe, order=3, scale=SCALE, t_start=t_start, t_end=t_end)


def reference_batches(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    plan: Plan,
    *,
    batch_size: int = 64,
    skip: int = 0,
) -> Iterator[tuple[range, Tensor]]:
    """The rows of a batch of starts and their solutions (b, *event), batch after batch.

    Parameters
    ----------
    plan : the long run, see `reference_plan`.
    skip : batches that are there already.

    A batch's solutions depend on its rows alone. Conditions with one entry a start are divided.
    """
    rows = range(len(starts))
    for begin in range(skip * batch_size, len(starts), batch_size):
        part = rows[begin : begin + batch_size]
        numbers = torch.tensor(part)
        own = for_samples(denoise, numbers, len(starts))
        yield part, sample(own, starts[numbers.to(starts.device)], plan)


def reference_targets(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    plan: Plan,
    *,
    batch_size: int = 64,
    progress: Show = False,
) -> Tensor:
    """The converged solutions (B, *event) of all starts."""
    found = []
    with progress_bar(len(starts), progress, unit="start") as show:
        for rows, solved in reference_batches(denoise, starts, plan, batch_size=batch_size):
            found.append(solved)
            show(rows.stop)
    return torch.cat(found)
