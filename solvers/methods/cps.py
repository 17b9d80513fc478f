r"""Coefficients-preserving sampling (Wang and Yu 2025): noise as an angle.

    x_t = alpha_t x0 + sigma_t cos(theta) eps + sigma_t sin(theta) z,     theta = eta pi / 2.

The same share of the predicted noise is replaced at every step, whatever its length, and none is
added: marginals are right. It is DDIM with another amount of noise.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..grids import Grid
from ..plan import Node, Plan, Row
from ..registry import count_steps, solver
from ..scalar import Number, cos, log, plain, sin
from .ancestral import first_order_step
from .pure_noise import Frame
from .stochastic import Split, Strength, recorded, strengths


@solver(
    "cps",
    order=lambda options: 1,
    nfe_per_step=1,
    strong=lambda options: 0.0,
    weak=lambda options: 0.0,
    title="CPS: coefficients-preserving sampling, noise as an angle",
    when="reinforcement learning on flow models: stochastic steps without excess noise",
    paper="wang2025cps",
    spaces=("data",),
)
def cps(grid: Grid, nfe: int | None = None, *, eta: Strength = 0.7) -> Plan:
    """Coefficients-preserving sampling, one evaluation a step; see the module's text.

    Parameters
    ----------
    eta : in [0, 1]: a number, a list of one a step, or a function of the time (see
        `stochastic.strengths`). 0 is DDIM; 1 keeps nothing of the state but the prediction.

    The share of fresh noise does not shrink with the steps, so that more of them lead to no limit:
    the orders are 0.

    Raises ValueError for eta outside [0, 1], and for noise in an inversion.
    """
    nodes = grid.nodes(count_steps(grid, nfe))
    etas = strengths("eta", eta, nodes, grid.schedule, most=1.0)
    rows, frame = [Row(nodes[0])], Frame.of("data", nodes)
    for step, share in zip(pairwise(nodes), etas, strict=True):
        rows.append(first_order_step(rows, _turned(*step, share * math.pi / 2), frame))
    return Plan(tuple(rows), options=recorded("eta", eta, etas))


def _turned(start: Node, end: Node, angle: Number) -> Split:
    left = cos(angle)
    down = Node(end.t, end.alpha, end.sigma * left)
    return Split(
        start, end, down, -log(left) if plain(left) > 0 else math.inf, end.sigma * sin(angle)
    )
