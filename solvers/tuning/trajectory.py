"""Trajectories of a long run, for grids that are found without further evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..plan import Node, Plan
from ..running import Step, sample


@dataclass(frozen=True)
class Trajectory:
    """States and data predictions of a run.

    Parameters
    ----------
    nodes : L + 1 of them, from the start to the end.
    states : (L + 1, B, D) at the nodes.
    data : (L, B, D), the data predictions at all but the last.
    """

    nodes: tuple[Node, ...]
    states: Tensor
    data: Tensor

    @property
    def end(self) -> Tensor:
        """(B, D), where the run ended."""
        return self.states[-1]


@torch.no_grad()
def record(
    denoise: Denoiser | Callable[[Tensor, float], Tensor], starts: Tensor, plan: Plan
) -> Trajectory:
    """The trajectory of ``plan``, one with a single evaluation at each node."""
    steps: list[Step] = []
    end = sample(denoise, starts, plan, callback=steps.append)
    states: list[Any] = [step.x for step in steps]
    return Trajectory(
        (*(step.node for step in steps), plan.rows[-1].node),
        torch.stack([*states, end]).flatten(2).cpu().double(),
        torch.stack([step.x0 for step in steps]).flatten(2).cpu().double(),
    )
