"""The options of a parallel run, checked in one place."""

from __future__ import annotations

import math

from ..registry import check_choice, check_kind
from .fixed_point import UPDATES

ACCELERATIONS = (None, "secant")


def check_options(
    window: int | None,
    tolerance: float,
    update: str,
    acceleration: str | None,
    data_scale: float,
) -> None:
    """Raise ValueError for an option of `sample_parallel` that is out of range."""
    whole = isinstance(window, int) and not isinstance(window, bool)
    if window is not None and not (whole and window >= 1):
        raise ValueError(f"window={window!r}: need None or a whole number of at least 1")
    check_kind("tolerance", tolerance, 0.0)
    check_kind("data_scale", data_scale, 1.0)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance!r}: need a number of at least 0")
    check_choice("update", update, UPDATES)
    check_choice("acceleration", acceleration, ACCELERATIONS)
    if not data_scale >= 0:
        raise ValueError(f"data_scale={data_scale!r}: need a number of at least 0, inf allowed")
