r"""UniPC, the unified predictor-corrector (Zhao et al. 2023; monograph section 9.5).

With z = -h, S = alpha_t in data space and z = h, S = sigma_t in noise space, both members have
the form

    x_t = a x_s - S (expm1(z) g_s + B(h) sum_k rho_k (g_k - g_s) / r_k),
    r_k = (lambda_k - lambda_s) / h

over earlier evaluations (UniP) and, for the corrector UniC, the one at t itself (r = 1). The
rho solve  sum_k r_k^(i-1) rho_k = i! z phi_{i+1}(z) / B(h),  i = 1..p, where B(h) = z ("bh1") or
expm1(z) ("bh2"). As published, rho = 1/2 where there is a single unknown. UniP-p has order p,
with its corrector p + 1; the corrector costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..grids import Grid
from ..phi import z_phi
from ..plan import Node, Plan
from ..registry import check_choice, check_order, count_steps, solver
from .multistep import Weights, exponential, multistep

VARIANTS = ("bh1", "bh2")


@solver(
    "unipc",
    order=lambda options: options["order"] + bool(options["corrector"]),
    nfe_per_step=1,
    title="UniPC: multistep predictor with a corrector that costs no evaluation",
    paper="zhao2023unipc",
)
def unipc(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 3,
    variant: str = "bh2",
    space: str = "data",
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Plan:
    """UniPC of any order >= 1; see the module's text for the update rule.

    Parameters
    ----------
    variant : "bh1" or "bh2", the choice of B(h).
    space : "data" or "noise".
    corrector : False leaves UniP alone. The last step is never corrected.
    lower_order_final : lower the order towards the last steps.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, range(1, 10))
    check_choice("variant", variant, VARIANTS)
    check_choice("space", space, ("data", "noise"))
    rows = multistep(
        grid.nodes(count_steps(grid, nfe, at_least=order)),
        lambda past, end: predict(space, variant, past, end),
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        corrector=(lambda past, end: correct(space, variant, past, end)) if corrector else None,
    )
    return Plan(tuple(rows))


def predict(space: str, variant: str, past: Sequence[Node], end: Node) -> Weights:
    """UniP weights: a, and one b for each of ``past`` (newest first)."""
    return _weights(space, variant, past, end, [node.lam for node in past[1:]])


def correct(space: str, variant: str, past: Sequence[Node], end: Node) -> Weights:
    """UniC weights: a, one b for each of ``past``, and one for the evaluation at ``end``."""
    return _weights(space, variant, past, end, [node.lam for node in past[1:]] + [end.lam])


def _weights(
    space: str, variant: str, past: Sequence[Node], end: Node, lams: Sequence[float]
) -> Weights:
    a, scale, z = exponential(space, past[0], end)
    h = end.lam - past[0].lam
    r = [(lam - past[0].lam) / h for lam in lams]
    big_b = z if variant == "bh1" else math.expm1(z)
    differences = [big_b * rho / rk for rho, rk in zip(_rho(r, z, big_b), r, strict=True)]
    return a, [-scale * (math.expm1(z) - sum(differences)), *(-scale * d for d in differences)]


def _rho(r: Sequence[float], z: float, big_b: float) -> list[float]:
    if len(r) <= 1:
        return [0.5] * len(r)
    order = range(1, len(r) + 1)
    vandermonde = np.array([[rk ** (i - 1) for rk in r] for i in order])
    moments = np.array([math.factorial(i) * z_phi(i + 1, z) / big_b for i in order])
    return np.linalg.solve(vandermonde, moments).tolist()
