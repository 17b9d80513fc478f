r"""Calling the network at several nodes at once: the generator protocol of parallel algorithms.

An algorithm that has work at many nodes at the same time (parallel-in-time sampling, estimation
of model statistics) is a generator that yields a `Batch` and is sent all its outputs at once.
Where the rows are evaluated, on one device or on many, is up to whoever drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .denoiser import Denoiser, checked
from .plan import Node

Result = TypeVar("Result")


@dataclass(slots=True)
class Batch:
    """A request to call the network at states ``x`` (P, B, *event), x[i] at ``nodes[i]``."""

    x: Tensor
    nodes: Sequence[Node]


Evaluate = Callable[[Tensor, Sequence[float]], Tensor]
"""(states (P, B, *event), P times of the schedule) -> network outputs (P, B, *event)."""


def evaluator(
    denoise: Denoiser | Callable[[Tensor, float], Tensor], *, max_groups: int | None = None
) -> Evaluate:
    """How to evaluate a `Batch` with ``denoise`` here: one network call for all P groups.

    The network is given a copy of the states, which it may write to.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0, which takes a single time and is
        therefore called once a group.
    max_groups : at most so many groups of B states in one network call; bounds its memory.

    Raises ValueError for max_groups < 1.
    """
    whole = isinstance(max_groups, int) and not isinstance(max_groups, bool)
    if max_groups is not None and not (whole and max_groups >= 1):
        raise ValueError(f"max_groups={max_groups!r}: need a whole number of at least 1")

    def evaluate(x: Tensor, times: Sequence[float]) -> Tensor:
        if not isinstance(denoise, Denoiser):
            single = checked(denoise)
            groups = zip(x, times, strict=True)
            return torch.stack([single(group.clone(), t) for group, t in groups])
        size = max_groups or len(x)
        parts = [
            denoise.evaluate_groups(x[i : i + size].clone(), times[i : i + size])
            for i in range(0, len(x), size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return evaluate


def drive_batches(
    process: Generator[Batch, Tensor, Result],
    evaluate: Evaluate,
    watch: Callable[[Batch, Tensor], None] | None = None,
) -> Result:
    """The plain loop over a generator of batches; returns its result.

    ``watch(batch, output)`` is called after each evaluation. Raises ValueError for outputs of
    another shape, or that are not finite, naming the times.
    """
    batch = next(process)
    while True:
        times = [node.t for node in batch.nodes]
        output = evaluate(batch.x, times)
        if output.shape != batch.x.shape:
            raise ValueError(
                f"network returned shape {tuple(output.shape)}: need {tuple(batch.x.shape)}"
            )
        finite = torch.isfinite(output).flatten(1).all(1)
        if not finite.all():
            bad = [f"{t:.6g}" for t, good in zip(times, finite.tolist(), strict=True) if not good]
            raise ValueError(
                f"network returned values that are not finite at t={', '.join(bad[:5])}"
            )
        if watch is not None:
            watch(batch, output)
        try:
            batch = process.send(output)
        except StopIteration as stop:
            return stop.value
