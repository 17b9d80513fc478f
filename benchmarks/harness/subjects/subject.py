"""What the harness asks of a thing that can be sampled, and what a run of it gives.

Sample ``index`` of ``seed`` begins from the same noise, and draws the same noise on its way,
whatever batch, shard or rank it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from logsnr.benchmarks.harness.contenders import Contender

Tick = Callable[[], None]
"""Called at each network evaluation."""

STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: far apart for indices that are neighbours
OFFSET = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    x : the last states (B, *event), float32 or better on the CPU, before anything is decoded.
    nfe_counted : evaluations of each sample, counted at the network; guidance, which may call it
        twice for one evaluation, is not counted but shows in ``network_calls`` (forward calls)
        and ``network_rows`` (rows of their batches for each sample).
    stochastic : whether noise was drawn on the way.
    grid : where the network was called, in the times of the contender's own kind.
    steps : steps that made these evaluations, where the contender counts them.
    pictures : of the samples, where the subject makes its own.
    """

    x: Tensor
    nfe_counted: float
    network_calls: float
    network_rows: float
    seconds: float
    stochastic: bool = False
    grid: Sequence[float] = ()
    steps: int | None = None
    rounding: float | None = None
    pictures: Sequence[Image.Image] = field(default=(), repr=False)

    @property
    def images(self) -> Tensor:
        """The pictures as (B, C, H, W) in [-1, 1] where there are any, else the states."""
        if not self.pictures:
            return self.x
        arrays = [np.asarray(picture) for picture in self.pictures]
        pixels = torch.from_numpy(np.stack(arrays)).float() / 127.5 - 1
        return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)

    @property
    def cost(self) -> dict[str, Any]:
        """What a record says of the run, in JSON values."""
        names = ("nfe_counted", "network_calls", "network_rows", "seconds", "stochastic")
        more = {"grid": list(self.grid), "steps": self.steps, "rounding": self.rounding}
        return {name: getattr(self, name) for name in names} | more


class Subject(Protocol):
    """A model, or a formula, from which contenders draw samples."""

    @property
    def name(self) -> str:
        """What the model is called in records."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values that say what is sampled: equal ones give equal samples."""
        ...

    @property
    def data_range(self) -> float | None:
        """Largest difference of two values of the data; None takes that of the reference."""
        ...

    def check(self, contender: Contender, nfe: int) -> None:
        """Raise ValueError, without a network evaluation, for what cannot be run."""
        ...

    def check_converged(self, nfe: int) -> None:
        """Raise ValueError, without a network evaluation, where `converged` cannot be."""
        ...

    def described(self, contender: Contender) -> dict[str, Any]:
        """The contender's options as a record has them, with what the subject adds."""
        ...

    def run(
        self, contender: Contender, nfe: int, seed: int, indices: Sequence[int], tick: Tick
    ) -> Outcome:
        """Samples ``indices`` of ``seed``, with at most ``nfe`` evaluations each.

        Raises `Diverged` for states that are not finite.
        """
        ...

    def converged(self, nfe: int, seed: int, indices: Sequence[int], tick: Tick) -> Outcome:
        """The solution of the probability-flow ODE for the same samples, with ``nfe`` evaluations.

        Two numbers of evaluations give it and its error bar.
        """
        ...


NOT_FINITE = "not finite"
"""What errors of states and features that diverged say."""


class Diverged(ValueError):
    """The states of a run are not finite."""


def sample_seed(seed: int, index: int) -> int:
    """The seed of one sample, in 0..2^63 - 1; that of sample 0 is ``seed`` itself."""
    return (seed + index * STRIDE) % 2**63


def noise_seed(seed: int, index: int) -> int:
    """The seed of what is drawn for one sample on its way, which is not that of its start."""
    return (sample_seed(seed, index) + OFFSET) % 2**63


def generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator a sample, on the CPU: a seed means one sample everywhere."""
    return [torch.Generator().manual_seed(sample_seed(seed, index)) for index in indices]
