"""Where a row of a plan lives, and what is asked of the network there."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from . import scalar
from .scalar import Number

Coefficient = float | Tensor


class Node(NamedTuple):
    """A point of the noise schedule: time, signal scale and noise scale, float64.

    All are floats, or 0-d float64 tensors that carry a gradient.

    ``told`` is the time that the network is told where that is another than ``t`` (a fitted shift
    of the network's time), ``second`` a second time for networks that take one (flow maps: the time
    r to which u(x, t, r) leads). Both are times of the schedule; None is neither.
    """

    t: Number
    alpha: Number
    sigma: Number
    told: Number | None = None
    second: Number | None = None

    @property
    def lam(self) -> Number:
        """lambda = log(alpha / sigma); -inf at alpha = 0, +inf at sigma = 0."""
        if self.sigma == 0:
            return math.inf
        if not self.alpha > 0:
            return -math.inf
        ratio = self.alpha / self.sigma
        return math.log(ratio) if type(ratio) is float else scalar.log(ratio)  # it is asked often

    @property
    def call(self) -> tuple[Number, ...]:
        """The times that the network is called with: one, or two with a ``second``."""
        first = self.t if self.told is None else self.told
        return (first,) if self.second is None else (first, self.second)


class Target(NamedTuple):
    """g = eps * (noise prediction) + data * (data prediction) + x * (state)."""

    eps: Coefficient
    data: Coefficient
    x: Coefficient


DATA = Target(0.0, 1.0, 0.0)
NOISE = Target(1.0, 0.0, 0.0)
VELOCITY = Target(1.0, -1.0, 0.0)
"""eps - x0, the derivative of x in t along the straight path of flow matching."""
