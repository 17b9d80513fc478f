"""Where the default grid is put for a model of which the config is known, and perhaps the size.

The rules are those of `logsnr.solvers.logistic`. A scheduler does not know what its model makes
until the first step shows it a state, see `for_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from logsnr.solvers import NoiseSchedule
from logsnr.solvers.logistic import LARGEST_IMAGE, default_location
from logsnr.solvers.spacings import LOGISTIC

from .sigma_models import SigmaModel
from .spacing import spacing_of


def location_of(config: Mapping[str, Any], schedule: NoiseSchedule, shift: float = 1.0) -> float:
    """The location for a model whose pipeline shifts its times by ``shift``.

    EDM models count lambda in data of which ``sigma_data`` is the unit.
    """
    size = config.get(SIZE)
    if isinstance(schedule, SigmaModel):
        return default_location(schedule, size=size) + math.log(schedule.sigma_data)
    return default_location(schedule, shift=shift, size=size)


SIZE = "_size"
"""The key under which `for_size` notes the size; no config that is saved has it."""


def for_size(config: Mapping[str, Any], size: float | None) -> Mapping[str, Any]:
    """The config, with the side length of the images."""
    return config if size is None else {**config, SIZE: size}


def finds_location(config: Mapping[str, Any]) -> bool:
    """Whether the location of the config's grid is left to the rules."""
    return config.get("location") is None and spacing_of(config) in LOGISTIC


def image_size(sample: Tensor) -> float | None:
    """The side length of small images (B, C, H, W), None for all else: latents, video, tokens."""
    if sample.ndim != 4:
        return None
    size = math.sqrt(sample.shape[2] * sample.shape[3])
    return size if size <= LARGEST_IMAGE else None
