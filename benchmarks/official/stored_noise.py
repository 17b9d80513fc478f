"""The noise of a recorded run, for a plan of ours whose terms may share theirs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from logsnr.solvers import Noise, Plan
from logsnr.solvers.noise import NoiseSource
from logsnr.solvers.noise_terms import independent

from .cases import Array


def stored_noise(plan: Plan, values: Iterable[Array]) -> NoiseSource:
    """The source with which the i-th row of ``plan`` that has noise has the i-th of ``values``.

    A value is what is standard normal. Codes that draw independent numbers for an inner node and
    for the whole of its step have the former in the latter's interval: the parts of a row's noise
    that no earlier row had are chosen so that it is what was recorded.

    Raises ValueError if there are fewer values than rows with noise.
    """
    noisy = [row for row in plan.rows if row.noise]
    parts = independent(term for row in noisy for term in row.noise)
    known: dict[Noise, Tensor] = {}
    stored = iter(values)
    for row in noisy:
        weights: Counter[Noise] = Counter()
        for term in row.noise:
            for part, weight in parts[term.key]:
                weights[part] += term.scale * weight  # type: ignore[assignment]  # not whole
        value = next(stored, None)
        if value is None:
            raise ValueError(
                f"noise has too few entries: the plan has {len(noisy)} rows with noise"
            )
        rest = math.hypot(*weights.values()) * torch.as_tensor(value, dtype=torch.float64)
        rest = rest - sum(weights[part] * known[part] for part in weights.keys() & known.keys())
        unknown = weights.keys() - known.keys()
        total = sum(weights[part] ** 2 for part in unknown)
        known |= {part: rest * (weights[part] / total) for part in unknown}
    return lambda term, like: known[term.key].to(like)
