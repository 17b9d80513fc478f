"""Starts that may move a little while a plan is fitted to them.

A run of few evaluations cannot end at every target. If its start may move within a small ball, the
fit is asked for the target from somewhere near, and is not bent by what cannot be reached (LD3 and
S4S do so). What is held out is always measured from the starts themselves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .problem import Part, Parts

STEP = 0.3
"""Of one step, as a share of the radius."""


class RelaxedStarts:
    """The offsets of all starts of ``parts``, each of a root mean square of at most ``radius``.

    ``radius`` is a share of the root mean square of the start.
    """

    def __init__(self, parts: Parts, radius: float):
        self.radius = radius
        self.offsets = [torch.zeros_like(part.starts) for part in parts.each]

    def moved(self, part: Part) -> Part:
        """The starts of a batch where they are now."""
        number, rows = part.place
        offsets = self.offsets[number][rows.to(part.starts.device)]
        return replace(part, starts=part.starts + offsets)

    def follow(self, part: Part, slope: Tensor) -> None:
        """Move the starts of a batch against the gradient, within their balls."""
        number, rows = part.place
        own = rows.to(part.starts.device)
        ball = self.radius * _sizes(part.starts)
        slope = torch.nan_to_num(slope)
        step = STEP * ball / _sizes(slope).clamp(min=1e-30)
        offsets = self.offsets[number][own] - step * slope
        inside = (ball / _sizes(offsets).clamp(min=1e-30)).clamp(max=1.0)
        self.offsets[number][own] = offsets * inside


def _sizes(x: Tensor) -> Tensor:
    """(B, 1, ...) root mean squares."""
    axes = tuple(range(1, x.ndim))
    return x.square().mean(axes, keepdim=True).sqrt()
