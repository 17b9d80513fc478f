"""One noise for several plans: what the increments of their intervals share, they share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from logsnr.solvers import Noise, Plan
from logsnr.solvers.noise_terms import independent


class CoupledNoise:
    """A noise source (term, like) -> z for all ``plans``, which then run on one Brownian path.

    Every part that no term of any of them cuts is drawn once, of ``shape``, and kept: what a
    `BrownianPath` does for any interval, this does quickly for those that are known beforehand.
    """

    def __init__(self, plans: Sequence[Plan], shape: Sequence[int], generator: torch.Generator):
        own = [independent(term for row in plan.rows for term in row.noise) for plan in plans]
        # A run asks for its own parts, which other plans may cut further.
        parts = [part for of_plan in own for found in of_plan.values() for part, _ in found]
        self._parts = independent(parts)
        names = dict.fromkeys(part for found in self._parts.values() for part, _ in found)
        self._drawn = {
            part: torch.randn(*shape, dtype=torch.float64, generator=generator) for part in names
        }

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        return sum(
            (weight * self._drawn[part] for part, weight in self._parts[term.key]),
            torch.zeros_like(like),
        )
