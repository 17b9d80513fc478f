r"""The empirical model statistics of DPM-Solver-v3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class EMS:
    """Statistics l, s, b of a model on a uniform grid of lambda.

    Parameters
    ----------
    lam : (N + 1,) float64, rising uniformly from lambda(t_start) to lambda(t_end).
    l, s, b : (N + 1, *event) float64; event axes of size 1 are shared by the coordinates.
    errors : standard errors of l, s and b under those keys, of the same shapes, if known.
    about : where they came from: JSON values (schedule, t_start, t_end, samples, seed, ...).
    """

    lam: Tensor
    l: Tensor
    s: Tensor
    b: Tensor
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
