"""Converged solutions of start states, batch by batch, so that who keeps them can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
OF_THE_RUN = ("t_start", "t_end", "shift", "snap", "denoise_to_zero")
"""Options of `make_plan` that say between which ends a run goes."""


def reference_plan(
    schedule: NoiseSchedule, nfe: int = 100, *, location: float | None = None, **options: Any
) -> Plan:
    """UniPC-3 on a wide logistic grid: its error is a small share of that of few evaluations.

    Of ``options`` it takes the ends of the run, see `OF_THE_RUN`.
    """
    ends = {key: value for key, value in options.items() if key in OF_THE_RUN}
    return make_plan("unipc", schedule, nfe=nfe, order=3, location=location, scale=SCALE, **ends)


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
