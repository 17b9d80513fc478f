"""Where the default grid is put for a model of which the config is known."""

from __future__ import annotations

import math
from typing import Any

from logsnr.solvers.logistic import default_location

from .model import Model
from .sigma_models import SigmaModel

ROUGH = -4.0
"""Where the training of a noise prediction begins below, its errors there are multiplied by 1 /
alpha in the data prediction, and need evaluations. In lambda."""
HIGHEST_OF_EPSILON = -0.8


def image_side(size: Any) -> float | None:
    """``sample_size`` as the side of a square of as many pixels; networks have (h, w) too."""
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) else (size,)
    if len(sides) not in (1, 2) or any(
        isinstance(side, bool) or not isinstance(side, int | float) or not side > 0
        for side in sides
    ):
        raise ValueError(
            f"sample_size={size!r}: need the side of the images, a positive number, or both"
        )
    return float(math.sqrt(sides[0] * sides[-1]))


def location_of(model: Model, shift: float = 1.0) -> float:
    """The location for a model whose pipeline shifts its times by ``shift``.

    EDM models count lambda in data of which ``sigma_data`` is the unit.
    """
    schedule = model.schedule
    location = default_location(schedule, shift=shift, size=image_side(model.sample_size))
    if model.prediction == "epsilon" and schedule.lam(schedule.t_start) < ROUGH:
        location = min(location, HIGHEST_OF_EPSILON)
    if isinstance(schedule, SigmaModel):
        location += math.log(schedule.sigma_data)
    return location
