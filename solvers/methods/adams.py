r"""Exact exponential Adams methods in lambda (Hochbruck and Ostermann 2010, section 2.7).

The prediction g is replaced by the polynomial in lambda through its last p values, and the
exponential integral of that polynomial is taken exactly:

    x_t = a x_s + b sum_j g_j int L_j(lambda) w(lambda) d lambda,    see `lagrange`.

Of order p (Adams-Bashforth). With the value at t among the nodes (Adams-Moulton), which the next
step evaluates anyway, it is a corrector of order p + 1 that costs nothing. UniPC approximates
these weights: its variant "vary_coeff" with all rows summed is this method.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import check_choice, check_order
from ..grids import Grid
from ..plan import Node, Plan
from ..registry import count_steps, solver
from .lagrange import lambda_measure, means, step_weights
from .multistep import Weights, multistep


@solver(
    "adams",
    order=lambda options: options["order"] + bool(options["corrector"]),
    nfe_per_step=1,
    title="Exact exponential Adams-Bashforth in lambda, optionally with Adams-Moulton",
    when="high accuracy: many evaluations at a high order",
    paper="hochbruck2010exponential",
)
def adams(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 3,
    space: str = "data",
    corrector: bool = False,
    lower_order_final: bool = True,
    keep_first: bool = True,
) -> Plan:
    """Exponential Adams-Bashforth of order 1 to 9; see the module's text for the update rule.

    Parameters
    ----------
    space : "data" or "noise".
    corrector : correct every step but the last with Adams-Moulton, which adds one order.
    lower_order_final : lower the order towards the last steps.
    keep_first : keep what the network said of pure noise (alpha = 0: flow models, zero terminal
        SNR) for the later steps, see `multistep`; False drops it after the first, as published.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, range(1, 10))
    check_choice("space", space, ("data", "noise"))
    rows = multistep(
        grid.nodes(count_steps(grid, nfe, at_least=order)),
        lambda past, end: bashforth(space, past, end),
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        keep_first=keep_first,
        corrector=(lambda past, end: moulton(space, past, end)) if corrector else None,
    )
    return Plan(tuple(rows))


def bashforth(space: str, past: Sequence[Node], end: Node) -> Weights:
    """Weights of the step to ``end``: a, and one b for each of ``past`` (newest first)."""
    return _weights(space, past, end, past)


def moulton(space: str, past: Sequence[Node], end: Node) -> Weights:
    """The same with one more b, for the evaluation at ``end``."""
    return _weights(space, past, end, [*past, end])


def _weights(space: str, past: Sequence[Node], end: Node, at: Sequence[Node]) -> Weights:
    lams, weights = lambda_measure(space, past[0], end)
    shares = means([node.lam for node in at], lams, weights)
    return step_weights(space, past[0], end, shares)
