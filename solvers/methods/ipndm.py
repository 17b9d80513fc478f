r"""iPNDM (Zhang and Chen 2023, appendix; after PNDM, Liu et al. 2022).

The classical Adams-Bashforth weights w of equal steps, applied to the first-order step:

    x_t = a x_s + b sum_j w_j eps_j,      (a, b) of DDIM.


They are of their nominal order only on grids that are uniform in rho = sigma / alpha. On any
other smooth grid neighbouring steps differ by a share O(h), and the order is at most 2.
``variant="variable"`` (iPNDM-v) takes the Adams-Bashforth weights of the actual steps in rho,
which are those of DEIS rhoAB, and keeps its order on every grid.

On flow matching the same can be done in t (``variable="time"``): the first-order step is Euler's,
(a, b) = (1, t' - t), and eps becomes the velocity eps - x0. That is finite at pure noise and at the
data, so the first evaluation counts and the last step can keep its order. There a corrector can
repeat the step with the Adams-Moulton weights, once the network was called at its end: that
evaluation is the next step's, so it costs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from ..checks import check_choice, check_order
from ..grids import Grid
from ..plan import Node, Plan
from ..registry import count_steps, is_in_time, solver
from .lagrange import noise_ratio, polynomial_weights, step_weights
from .multistep import Weights, multistep

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
# The evaluation at the end of the step comes last.
ADAMS_MOULTON = (
    (1 / 2, 1 / 2),
    (8 / 12, -1 / 12, 5 / 12),
    (19 / 24, -5 / 24, 1 / 24, 9 / 24),
    (646 / 720, -264 / 720, 106 / 720, -19 / 720, 251 / 720),
)


def _order(options: Mapping[str, Any]) -> int:
    order = options["order"] + bool(options["corrector"] and options["relaxation"] == 1)
    return order if options["variant"] == "variable" else min(2, order)


@solver(
    "ipndm",
    order=_order,
    nfe_per_step=1,
    title="iPNDM: Adams-Bashforth weights of equal steps times the DDIM step",
    when="flow models, in t (corrector without strong guidance); EDM models",
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
    corrector: bool = False,
    relaxation: float = 1.0,
    lower_order_final: bool = False,
) -> Plan:
    """iPNDM of order 1 to 4, one evaluation a step; see the module's text.

    Parameters
    ----------
    variant : "fixed", the weights of equal steps, or "variable", those of the actual steps.
    variable : "sigma", or "time" on `FlowMatching`.
    corrector : correct every step but the last by Adams-Moulton (in t).
    relaxation : the share of the correction that is made, in (0, 1]. Less than all of it is more
        robust where the prediction changes fast, as with large guidance scales.
    lower_order_final : lower the order towards the last steps.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, (1, 2, 3, 4))
    check_choice("variant", variant, ("fixed", "variable"))
    straight = is_in_time(variable, grid.schedule)
    if corrector and not straight:
        raise ValueError("corrector=True needs variable='time', of flow matching")
    if not 0 < relaxation <= 1:
        raise ValueError(f"relaxation={relaxation!r}: need a number in (0, 1]")
    space = "velocity" if straight else "noise"
    weights = partial(_equal_steps if variant == "fixed" else _actual_steps, space)
    rows = multistep(
        grid.nodes(count_steps(grid, nfe, at_least=order)),
        lambda past, end: weights(past, end, past),
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        corrector=partial(_correct, weights, relaxation) if corrector else None,
        through_zero=straight,
    )
    return Plan(tuple(rows))


AdamsWeights = Callable[[Sequence[Node], Node, Sequence[Node]], Weights]
"""(evaluated nodes, newest first; the node to step to; those of the weights) -> a and the b's."""


def _correct(weights: AdamsWeights, relaxation: float, past: Sequence[Node], end: Node) -> Weights:
    a, predicted = weights(past, end, past)
    _, corrected = weights(past, end, [*past, end])
    pairs = zip([*predicted, 0.0], corrected, strict=True)
    return a, [p + relaxation * (c - p) for p, c in pairs]


def _equal_steps(space: str, past: Sequence[Node], end: Node, at: Sequence[Node]) -> Weights:
    table = ADAMS_BASHFORTH if len(at) == len(past) else ADAMS_MOULTON
    return step_weights(space, past[0], end, np.array(table[len(past) - 1]))


def _actual_steps(space: str, past: Sequence[Node], end: Node, at: Sequence[Node]) -> Weights:
    """By the polynomial in t, or in rho = sigma / alpha, through the nodes ``at``."""
    u = attrgetter("t") if space == "velocity" else noise_ratio
    return polynomial_weights(space, u, past, end, at)
