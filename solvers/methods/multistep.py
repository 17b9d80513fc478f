r"""The frame of every multistep method: one state, the last few outputs, optionally a corrector.

A multistep method is two functions of the nodes. The predictor gives the weights of the step to
node t from the last p evaluations,

    x_t = a x_s + sum_i b_i g_i,

and the corrector those of the same step repeated with the evaluation at t itself, which the next
step needs anyway and which therefore costs nothing (Zhao et al. 2023, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..plan import DATA, NOISE, Node, Row, Target

Weights = tuple[float, Sequence[float]]
Predictor = Callable[[Sequence[Node], Node], Weights]
"""(evaluated nodes, newest first; the node to step to) -> a and one b for each given node."""
Corrector = Callable[[Sequence[Node], Node], Weights]
"""The same, returning one more b, for the evaluation at the node stepped to, at the end."""

SPACES = {"data": DATA, "noise": NOISE}


def exponential(space: str, start: Node, end: Node) -> tuple[float, float, float]:
    """(a, S, z) of the exponential step in ``space``: x_t = a x_s - S z (phi_1(z) g_s + ...).

    data:  a = sigma_t / sigma_s, S = alpha_t, z = -h;
    noise: a = alpha_t / alpha_s, S = sigma_t, z = h;   h = lambda_t - lambda_s.
    """
    h = end.lam - start.lam
    if space == "data":
        return end.sigma / start.sigma, end.alpha, -h
    return end.alpha / start.alpha, end.sigma, h


def first_order(target: Target, start: Node, end: Node) -> tuple[float, float]:
    """(a, b) of the first-order step, exact in both limits sigma_t = 0 and alpha_s = 0.

    It is DDIM: the unique combination of x_s and one prediction that satisfies the identities.
    """
    if target == DATA:
        a = end.sigma / start.sigma
        return a, end.alpha - a * start.alpha
    a = end.alpha / start.alpha
    return a, end.sigma - a * start.sigma


def multistep(
    nodes: Sequence[Node],
    predictor: Predictor,
    *,
    order: int,
    space: str = "data",
    lower_order_final: bool = True,
    corrector: Corrector | None = None,
    through_zero: bool = False,
) -> list[Row]:
    """Rows of a multistep method over ``nodes``, with warm-up orders 1, 2, .., ``order``.

    With ``lower_order_final`` the order falls again to 1 at the last step. Evaluations at
    alpha = 0 (lambda = -inf) never enter a history; the step to sigma = 0 is of order 1, which
    is exact there, unless ``through_zero`` says that the predictor is finite there; a step
    between equal nodes leaves the state alone.
    """
    rows = [Row(nodes[0], target=_target(space, nodes[0]))]
    history: list[int] = []  # evaluated rows at distinct finite lambda, newest first
    base = newest = 0
    for i, end in enumerate(nodes[1:], start=1):
        start = rows[newest].node
        if math.isfinite(start.lam):
            repeated = bool(history) and rows[history[0]].node.lam == start.lam
            history = [newest, *history[1 if repeated else 0 :]]
        past = history[: min(order, len(nodes) - i) if lower_order_final else order]
        at = [rows[j].node for j in past]
        single = not past or (end.sigma == 0 and not through_zero) or end.lam == start.lam
        if single:
            a, b = first_order(rows[newest].target or DATA, start, end)
            outputs = [(newest, b)] if b != 0 else []
        else:
            a, weights = predictor(at, end)
            outputs = list(zip(past, weights, strict=True))
        states = ((base, a),) if a != 0 else ()
        if i == len(nodes) - 1:
            rows.append(Row(end, states, tuple(outputs)))
            break
        newest = len(rows)
        rows.append(Row(end, states, tuple(outputs), _target(space, end)))
        if corrector is None or single:
            base = newest
        else:
            a, weights = corrector(at, end)
            used = tuple(zip([*past, newest], weights, strict=True))
            rows.append(Row(end, ((base, a),), used))
            base = newest + 1
    return rows


def _target(space: str, node: Node) -> Target:
    # A noise prediction carries no information about x0 where alpha = 0.
    return DATA if node.alpha == 0 else SPACES[space]
