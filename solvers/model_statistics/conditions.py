"""Conditions of a network for a part of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..denoiser import Denoiser

Condition = Mapping[str, Any]


def conditions_of(denoise: Denoiser) -> dict[str, Any]:
    """All tensors among the denoiser's conditions, by a name for messages."""
    guidance = denoise.guidance
    parts: dict[str, Condition] = {"condition": denoise.condition}
    if guidance is not None:
        parts |= {"guidance.condition": guidance.condition, "guidance.null": guidance.null}
    return {
        f"{part}[{key!r}]": value
        for part, condition in parts.items()
        for key, value in condition.items()
        if isinstance(value, Tensor) and value.ndim > 0
    }


def check_conditions(denoise: Denoiser, samples: int) -> bool:
    """Whether the denoiser has conditions of their own for each of ``samples`` samples.

    Raises ValueError for a tensor that has neither one entry nor ``samples`` entries.
    """
    tensors = conditions_of(denoise)
    for name, value in tensors.items():
        if len(value) not in (1, samples):
            raise ValueError(
                f"{name} has {len(value)} entries: need 1 (for all) or samples={samples}, entry i "
                "for sample i"
            )
    return samples > 1 and any(len(value) == samples for value in tensors.values())


def conditioned(denoise: Denoiser, part: range, samples: int) -> Denoiser:
    """The denoiser for the samples ``part`` of ``samples``, with as many conditions as states."""

    def take(condition: Condition) -> dict[str, Any]:
        return {key: _rows(value, part, samples) for key, value in condition.items()}

    guidance = denoise.guidance
    if not conditions_of(denoise):
        return denoise
    result = copy(denoise)
    result.condition = take(denoise.condition)
    if guidance is not None:
        result.guidance = replace(
            guidance, condition=take(guidance.condition), null=take(guidance.null)
        )
    return result


def _rows(value: Any, part: range, samples: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == samples:
        return value[part.start : part.stop]
    return value.expand(len(part), *value.shape[1:])
