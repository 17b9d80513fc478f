"""Arguments of ``set_timesteps``, and what is set on a scheduler instead, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers.grids import as_numbers


def listed(name: str, values: Sequence[float] | Tensor | None) -> list[float] | None:
    """``values`` as numbers, None as None; ValueError for anything else."""
    if values is None:
        return None
    found = as_numbers(name, values)
    if found.ndim != 1:
        raise ValueError(f"{name}={values!r}: need a list of numbers")
    return found.tolist()


def number(name: str, value: Any) -> float:
    """``value`` as a number; ValueError if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: need a number") from error


def count(n: Any, *lists: Sequence[float] | None) -> int | None:
    """The number of evaluations that is asked for, None for what is no number."""
    given = [len(values) for values in lists if values is not None]
    return given[0] if given else int(n) if isinstance(n, Integral) else None


def tensor(name: str, values: Any) -> Tensor:
    """``values`` as a tensor; ValueError if they cannot be one."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={values!r}: need a tensor of numbers") from error
