r"""The logistic grid, and where it is put when nobody says: what ``spacing="auto"`` means.

In data space a solver sees a model only through lambda, so one density over lambda serves every
noise schedule. Nodes at equal shares of a logistic distribution,

    lambda_k = c + s logit(p_k),    p_k equally spaced from F(lambda_0) to F(lambda_n),
    F(lambda) = 1 / (1 + exp(-(lambda - c) / s)),    F(-inf) = 0,  F(+inf) = 1,

put few evaluations where the state is noise or data already and most where the image is decided,
about lambda = c (``location``), over a width of s (``scale``). The uniform time of flow matching is
the case s = 1, c = 0, and a flow shift moves c by -log(shift). Both ends may be singular.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import scalar
from .scalar import Number
from .schedules import NoiseSchedule, is_straight

LARGEST_IMAGE = 32
WIDER = (5, 8, 10, 15, 20), (1.2, 1.45, 1.5, 1.8, 1.9)
WIDER_OF_FLOW = (10, 20), (1.2, 1.4)
"""Numbers of evaluations and the scales of their grids."""


def default_location(
    schedule: NoiseSchedule, *, shift: Number = 1.0, size: float | None = None
) -> float:
    """The location where nobody names one; docs/grids.md has the measurements.

    Parameters
    ----------
    shift : the resolution shift of a flow model. It was chosen for many equal steps of t; here it
        counts for a fifth.
    size : the side length of the images, None where it is not known. For images of up to 32 it
        tells the location of a variance-preserving model: a coarser look averages noise away.
        Larger arrays are mostly latents, which were made to look alike at every size.

    Raises ValueError unless shift > 0 and size > 0.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift={shift!r}: need a positive number")
    if size is not None and not 0 < size < math.inf:
        raise ValueError(f"sample_size={size!r}: need a positive number")
    if is_straight(schedule):
        return 0.5 - 0.2 * scalar.log(shift)
    if size is not None and size <= LARGEST_IMAGE:
        return 0.7 - math.log(size / 8)
    return -0.5


def default_scale(schedule: NoiseSchedule, n: int) -> float:
    """The scale of a grid of n evaluations where nobody names one; it grows with n."""
    if is_straight(schedule):
        return float(np.interp(n, *WIDER_OF_FLOW))
    return float(np.interp(n, *WIDER))


def logistic_lams(
    first: Number,
    last: Number,
    n: int,
    location: Number,
    scale: Number,
    highest: float = math.inf,
) -> Tensor:
    """n + 1 rising lambdas from ``first`` to ``last`` at equal shares of a logistic distribution.

    Parameters
    ----------
    first, last : the ends, -inf (alpha = 0) and +inf (sigma = 0) included.
    location, scale : c and s of the module's text.
    highest : no node but the last lies above it: a network knows nothing beyond its first training
        step. Where the rule would put some there, all but the last share what lies below.
    """

    def share(lam: Number) -> Tensor:
        # p and 1 - p, each without cancellation
        if abs(lam) == math.inf:
            return torch.tensor([0.0, 1.0] if lam < 0 else [1.0, 0.0], dtype=torch.float64)
        return torch.sigmoid(scalar.vector([(lam - location) / scale, (location - lam) / scale]))

    def between(end: Number, steps: int) -> Tensor:
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1, None]
        p, q = ((1 - ramp) * share(first) + ramp * share(end)).unbind(1)
        inner = location + scale * (torch.log(p) - torch.log(q))
        return torch.cat([scalar.vector([first]), inner, scalar.vector([end])])

    lams = between(last, n)
    if n > 1 and first < highest < lams[-2]:
        lams = torch.cat([between(highest, n - 1), lams[-1:]])
    return lams
