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

import torch
from torch import Tensor

from .schedules import FlowMatching, NoiseSchedule

SCALE = 1.3


def default_location(schedule: NoiseSchedule) -> float:
    """The location of the grid for a schedule about whose data nothing is known."""
    return 0.0 if isinstance(schedule, FlowMatching) else -0.3


def logistic_lams(
    first: float,
    last: float,
    n: int,
    location: float,
    scale: float = SCALE,
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

    def share(lam: float) -> Tensor:
        # p and 1 - p, each without cancellation
        z = torch.tensor([(lam - location) / scale, (location - lam) / scale], dtype=torch.float64)
        return torch.sigmoid(z)

    def between(end: float, steps: int) -> Tensor:
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None]
        p, q = ((1 - ramp) * share(first) + ramp * share(end)).unbind(1)
        lams = location + scale * (torch.log(p) - torch.log(q))
        lams[0], lams[-1] = first, end
        return lams

    lams = between(last, n)
    if n > 1 and first < highest < lams[-2]:
        lams = torch.cat([between(highest, n - 1), lams[-1:]])
    return lams
