"""The noise of algorithms in a pipeline's loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Noise, Plan
from logsnr.solvers.noise import check_noise, noise_source
from logsnr.solvers.shared_noise import NoiseSource

from ..steps.step_noise import from_generator


class LoopNoise:
    """(term, like) -> z: of ``noise``, as that of `sample`, or drawn as `PlanScheduler` draws it.

    Parameters
    ----------
    noise : None draws from the generator.
    generator : of the pipeline's call.
    dtype : of the pipeline's states.
    """

    def __init__(self, noise: Any, generator: Any, dtype: torch.dtype):
        self.noise, self.generator, self.dtype = noise, generator, dtype
        self.source: NoiseSource | None = None if noise is None else noise_source(noise)

    def check(self, plan: Plan, x: Tensor) -> None:
        """ValueError if the noise does not fit that of ``plan`` on states x (B, *event)."""
        if self.noise is not None:
            check_noise(self.noise, plan, x)
            self.source = noise_source(self.noise, plan)

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        if self.source is not None:
            return self.source(term, like)
        return from_generator(self.generator, like, self.dtype)
