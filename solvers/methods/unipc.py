r"""UniPC, the unified predictor-corrector (Zhao et al. 2023; monograph section 9.5).

With z = -h, S = alpha_t in data space and z = h, S = sigma_t in noise space, both members have
the form

    x_t = a x_s - S (expm1(z) g_s + B(h) sum_k rho_k (g_k - g_s) / r_k),
    r_k = (lambda_k - lambda_s) / h

over earlier evaluations (UniP) and, for the corrector UniC, the one at t itself (r = 1). The
rho solve  sum_k r_k^(i-1) rho_k = i! z phi_{i+1}(z) / B(h),  i = 1..p, where B(h) = z ("bh1") or
expm1(z) ("bh2"). As published, rho = 1/2 where there is a single unknown. UniP-p has order p,
with its corrector p + 1; the corrector costs no evaluation.

The variant "vary_coeff" has no B(h): with C_ki = r_k^(i-1) / i! and A = C^-1,

    x_t = a x_s - S (expm1(z) g_s + sum_i z phi_{i+1}(z) sum_k A_ik (g_k - g_s) / r_k),

which is the exact exponential Adams method (`adams`). The published corrector leaves out the last
i for the earlier evaluations and takes the last but one A for the new one, which reduces it to
order 1 from p = 2 on (``weights="published"``); the default sums all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import scalar
from ..checks import check_choice, check_order
from ..grids import Grid
from ..phi import z_phi
from ..plan import Node, Plan
from ..registry import count_steps, solver
from .adams import bashforth, moulton
from .multistep import Corrector, Predictor, Weights, exponential, multistep

VARIANTS = ("bh1", "bh2", "vary_coeff")


def _order(options: Mapping[str, Any]) -> int:
    stale = options["variant"] == "vary_coeff" and options["weights"] == "published"
    if stale and options["corrector"] and options["order"] > 1:
        return 1
    return options["order"] + bool(options["corrector"])


@solver(
    "unipc",
    order=_order,
    nfe_per_step=1,
    title="UniPC: multistep predictor with a corrector that costs no evaluation",
    when="the first choice for VP models, at order 2",
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
    weights: str = "taylor",
    lower_order_final: bool = True,
    keep_first: bool = True,
) -> Plan:
    """UniPC of any order >= 1; see the module's text for the update rule.

    Parameters
    ----------
    variant : "bh1" or "bh2", the choice of B(h), or "vary_coeff".
    space : "data" or "noise".
    corrector : False leaves UniP alone. The last step is never corrected.
    weights : of the corrector of "vary_coeff": "taylor" (order p + 1) or "published" (order 1).
    lower_order_final : lower the order towards the last steps.
    keep_first : keep what the network said of pure noise (alpha = 0: flow models, zero terminal
        SNR) for the later steps, see `multistep`; False drops it after the first, as published.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, range(1, 10))
    check_choice("variant", variant, VARIANTS)
    check_choice("space", space, ("data", "noise"))
    check_choice("weights", weights, ("published", "taylor"))
    rows = multistep(
        grid.nodes(count_steps(grid, nfe, at_least=order)),
        unip(space, variant),
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        keep_first=keep_first,
        corrector=unic(space, variant, weights) if corrector else None,
    )
    return Plan(tuple(rows))


def unip(space: str, variant: str = "bh2") -> Predictor:
    """The predictor UniP."""
    if variant == "vary_coeff":
        return lambda past, end: bashforth(space, past, end)
    return lambda past, end: predict(space, variant, past, end)


def unic(space: str, variant: str = "bh2", weights: str = "taylor") -> Corrector:
    """The corrector UniC, for any predictor in ``space``; of order p + 1 after p evaluations."""
    if variant == "vary_coeff":
        if weights == "published":
            return lambda past, end: correct_published(space, past, end)
        return lambda past, end: moulton(space, past, end)
    return lambda past, end: correct(space, variant, past, end)


def predict(space: str, variant: str, past: Sequence[Node], end: Node) -> Weights:
    """UniP weights: a, and one b for each of ``past`` (newest first)."""
    return _weights(space, variant, past, end, [node.lam for node in past[1:]])


def correct(space: str, variant: str, past: Sequence[Node], end: Node) -> Weights:
    """UniC weights: a, one b for each of ``past``, and one for the evaluation at ``end``."""
    return _weights(space, variant, past, end, [node.lam for node in past[1:]] + [end.lam])


def correct_published(space: str, past: Sequence[Node], end: Node) -> Weights:
    """UniC weights of "vary_coeff" as published, with its stale row; see the module's text."""
    if len(past) == 1:
        return moulton(space, past, end)
    a, scale, z = exponential(space, past[0], end)
    r = [(node.lam - past[0].lam) / (end.lam - past[0].lam) for node in [*past[1:], end]]
    order = range(1, len(r) + 1)
    powers = [[rk ** (i - 1) / math.factorial(i) for i in order] for rk in r]
    inverse = scalar.inverse(scalar.array(powers))
    terms = scalar.array([z_phi(i + 1, z) for i in order])
    differences = scalar.entries(terms[:-1] @ inverse[:-1] / scalar.array(r))
    differences[-1] = scalar.entries(terms[-1:] * inverse[-2, -1:])[0]
    return a, [-scale * (scalar.expm1(z) - sum(differences)), *(-scale * d for d in differences)]


def _weights(
    space: str, variant: str, past: Sequence[Node], end: Node, lams: Sequence[float]
) -> Weights:
    a, scale, z = exponential(space, past[0], end)
    h = end.lam - past[0].lam
    r = [(lam - past[0].lam) / h for lam in lams]
    big_b = z if variant == "bh1" else scalar.expm1(z)
    differences = [big_b * rho / rk for rho, rk in zip(_rho(r, z, big_b), r, strict=True)]
    return a, [-scale * (scalar.expm1(z) - sum(differences)), *(-scale * d for d in differences)]


def _rho(r: Sequence[float], z: float, big_b: float) -> list[float]:
    if len(r) <= 1:
        return [0.5] * len(r)
    order = range(1, len(r) + 1)
    vandermonde = scalar.array([[rk ** (i - 1) for rk in r] for i in order])
    moments = scalar.array([math.factorial(i) * z_phi(i + 1, z) / big_b for i in order])
    return scalar.entries(scalar.solve(vandermonde, moments))
