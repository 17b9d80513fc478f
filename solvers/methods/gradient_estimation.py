r"""Gradient estimation (Permenter and Yuan 2024, algorithm 2).

The first-order step with a direction that is extrapolated from the last two,

    x_t = a x_s + b (gamma eps_s + (1 - gamma) eps_r),      (a, b) of DDIM.

gamma = 1 is DDIM, 3/2 is Adams-Bashforth of equal steps (`ipndm` of order 2), and 2, the published
choice, goes further. On flow matching it can be done in t, with velocities and Euler's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..grids import Grid
from ..plan import Node, Plan
from ..registry import count_steps, is_in_time, solver
from .multistep import SPACES, Weights, first_order, multistep


@solver(
    "gradient-estimation",
    order=lambda options: 2 if options["gamma"] == 1.5 else 1,
    nfe_per_step=1,
    title="Gradient estimation: the first-order step along an extrapolated direction",
    when="smooth models with few evaluations, as an extrapolated DDIM",
    paper="permenter2024interpreting",
    spaces=("noise",),
)
def gradient_estimation(
    grid: Grid,
    nfe: int | None = None,
    *,
    gamma: float = 2.0,
    variable: str = "sigma",
) -> Plan:
    """Gradient estimation, one evaluation a step; see the module's text for the update rule.

    Parameters
    ----------
    gamma : weight of the newest direction, positive; the one before has 1 - gamma.
    variable : "sigma", or "time" on `FlowMatching`.

    Raises ValueError for a value out of range.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma={gamma!r}: need a positive number")
    space = "velocity" if is_in_time(variable, grid.schedule) else "noise"

    def predictor(past: Sequence[Node], end: Node) -> Weights:
        a, b = first_order(SPACES[space], past[0], end)
        return a, [b] if len(past) == 1 else [b * gamma, b * (1 - gamma)]

    rows = multistep(
        grid.nodes(count_steps(grid, nfe)),
        predictor,
        order=2,
        space=space,
        lower_order_final=False,
    )
    return Plan(tuple(rows))
