r"""iPNDM (Zhang and Chen 2023, appendix; after PNDM, Liu et al. 2022).

The classical Adams-Bashforth weights w of equal steps, applied to the first-order step:

    x_t = a x_s + b sum_j w_j eps_j,      (a, b) of DDIM.

They are of their nominal order only on grids that are uniform in rho = sigma / alpha. On any
other smooth grid neighbouring steps differ by a share O(h), and the order is at most 2.
``variant="variable"`` (iPNDM-v) takes the Adams-Bashforth weights of the actual steps in rho,
which are those of DEIS rhoAB, and keeps its order on every grid.

On flow matching the same can be done in t (``variable="time"``): the first-order step is Euler's,
(a, b) = (1, t' - t), and eps becomes the velocity eps - x0. That is finite at pure noise and at the
data, so the first evaluation counts and the last step keeps its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..grids import Grid
from ..plan import Node, Plan
from ..registry import check_choice, check_order, count_steps, solver
from ..schedules import FlowMatching
from .deis import in_rho
from .lagrange import means, panels, step_weights
from .multistep import Weights, multistep

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _order(options: Mapping[str, Any]) -> int:
    return options["order"] if options["variant"] == "variable" else min(2, options["order"])


@solver(
    "ipndm",
    order=_order,
    nfe_per_step=1,
    title="iPNDM: Adams-Bashforth weights of equal steps times the DDIM step",
    when="unguided and flow models from 8 evaluations on, at order 3",
    paper="zhang2023deis",
    spaces=("noise",),
)
def ipndm(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 4,
    variant: str = "fixed",
    variable: str = "sigma",
    lower_order_final: bool = False,
) -> Plan:
    """iPNDM of order 1 to 4, one evaluation a step; see the module's text.

    Parameters
    ----------
    variant : "fixed", the weights of equal steps, or "variable", those of the actual steps.
    variable : "sigma", or "time" on `FlowMatching`.
    lower_order_final : lower the order towards the last steps.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, (1, 2, 3, 4))
    check_choice("variant", variant, ("fixed", "variable"))
    check_choice("variable", variable, ("sigma", "time"))
    straight = variable == "time"
    if straight and not isinstance(grid.schedule, FlowMatching):
        raise ValueError(f"variable='time' is for FlowMatching, not for {grid.schedule!r}")
    space = "velocity" if straight else "noise"
    rows = multistep(
        grid.nodes(count_steps(grid, nfe, at_least=order)),
        partial(_equal_steps, space) if variant == "fixed" else _in_t if straight else in_rho,
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        through_zero=straight,
    )
    return Plan(tuple(rows))


def _equal_steps(space: str, past: Sequence[Node], end: Node) -> Weights:
    return step_weights(space, past[0], end, np.array(ADAMS_BASHFORTH[len(past) - 1]))


def _in_t(past: Sequence[Node], end: Node) -> Weights:
    times = np.array([node.t for node in [*past, end]])
    scaled = (times - times[0]) / (times[-1] - times[0])
    return step_weights("velocity", past[0], end, means(scaled[:-1], *panels(0.0, 1.0)))
