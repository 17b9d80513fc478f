"""Errors over step sizes, and the order that they show."""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOOR = 1e-12
"""Smaller errors are not used: rounding and the reference's own error blur them."""
CERTAIN = 12.0
"""An error that was sampled is used if it is so many times its own standard deviation."""


@dataclass(frozen=True)
class Curve:
    """Errors over step sizes h in lambda, both falling, and the slope at the fine end.

    ``bars`` are the standard deviations of the errors, where these were sampled.
    """

    h: tuple[float, ...]
    errors: tuple[float, ...]
    bars: tuple[float, ...] = ()

    @property
    def slope(self) -> float:
        """d log(error) / d log(h) between the finest two usable points; inf without an error."""
        bars = self.bars or (0.0,) * len(self.h)
        usable = [
            (h, e)
            for h, e, bar in zip(self.h, self.errors, bars, strict=True)
            if e > max(FLOOR, CERTAIN * bar)
        ]
        if len(usable) < 2:
            return math.inf
        (h0, e0), (h1, e1) = usable[-2:]
        return math.log(e0 / e1) / math.log(h0 / h1)
