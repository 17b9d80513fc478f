r"""DEIS, the diffusion exponential integrator sampler (Zhang and Chen 2023; monograph 9.3).

In y = x / alpha and rho = sigma / alpha the probability-flow ODE is dy / d rho = eps. The
multistep variants replace eps by the polynomial through its last ``order`` values,

    x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j eps_j int_{rho_s}^{rho_t} L_j d rho,

in the time t ("tab") or in rho ("rhoab"). The paper counts the degree of the polynomial: tABk has
degree k, order k + 1. "rhork" are Runge-Kutta methods in rho (Heun, Kutta, the classical one;
"rhork-heun" has Heun's method of order 3).

The grids of the paper are ``spacing="quadratic"`` (t^(1/2)), ``"time"``, and ``"karras"``
(rho^(1/7)). The integrals are exact; the authors' code sums 10,000 rectangles, which limits
tAB2 and tAB3 to an error of about 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from .. import scalar
from ..checks import check_choice, check_order
from ..grids import Grid
from ..plan import Node, Plan
from ..registry import count_steps, solver
from ..scalar import plain
from ..schedules import DiscreteVP, NoiseSchedule
from .lagrange import (
    Array,
    lambda_measure,
    means,
    noise_ratio,
    polynomial_weights,
    step_weights,
)
from .multistep import Predictor, Weights, multistep
from .runge_kutta import CLASSICAL, HEUN3, runge_kutta
from .unipc import unic

VARIANTS = ("tab", "rhoab", "rhork", "rhork-heun")


def _order(options: Mapping[str, Any]) -> int:
    return options["order"] + bool(options["corrector"])


@solver(
    "deis",
    order=_order,
    nfe_per_step=lambda o: o["order"] if o["variant"].startswith("rhork") else 1,
    title="DEIS: exponential Adams-Bashforth in t or rho, Runge-Kutta in rho",
    when="smooth unguided problems, order 3 or 4",
    paper="zhang2023deis",
    spaces=("noise",),
)
def deis(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 3,
    variant: str = "tab",
    corrector: bool = False,
    lower_order_final: bool = False,
) -> Plan:
    """DEIS of order 1 to 4; see the module's text for the update rule.

    Parameters
    ----------
    variant : "tab" or "rhoab", one evaluation a step; "rhork" or "rhork-heun", ``order``
        evaluations a step and fewer in the last one if ``nfe`` is not a multiple.
    corrector : correct every step but the last with UniC in noise space, which adds one order
        (multistep variants).
    lower_order_final : lower the order towards the last steps (multistep variants; the paper
        does not).

    Raises ValueError for a value that is not listed here, or nfe < order ("tab", "rhoab").
    """
    check_order(order, (1, 2, 3, 4))
    check_choice("variant", variant, VARIANTS)
    if variant.startswith("rhork"):
        if corrector:
            raise ValueError(f"corrector=True needs a multistep variant, not {variant!r}")
        tableaus = CLASSICAL if variant == "rhork" else {**CLASSICAL, 3: HEUN3}
        return runge_kutta(grid, nfe, order, lambda count, start, end: tableaus[count])
    nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
    rows = multistep(
        nodes,
        in_time(grid.schedule, nodes) if variant == "tab" else in_rho,
        order=order,
        space="noise",
        lower_order_final=lower_order_final,
        corrector=unic("noise") if corrector else None,
    )
    return Plan(tuple(rows))


def in_rho(past: Sequence[Node], end: Node) -> Weights:
    """rhoAB: a, and one b for each of ``past`` (newest first). Finite at sigma = 0."""
    return polynomial_weights("noise", noise_ratio, past, end, past)


def in_time(schedule: NoiseSchedule, nodes: Sequence[Node]) -> Predictor:
    """tAB on ``nodes`` for the schedule's time, a smooth function of lambda on every panel."""
    finite = [node for node in nodes if math.isfinite(plain(node.lam))]
    steps = [(start, end) for start, end in pairwise(finite) if start.lam != end.lam]
    breaks = _kinks(schedule)
    measures = [lambda_measure("noise", start, end, breaks) for start, end in steps]
    # All times at once: a call per step would cost more than the rest of the plan.
    lams = [scalar.array([node.lam for node in finite]), *(points for points, _ in measures)]
    joined = torch.cat([torch.as_tensor(part) for part in lams])
    times = schedule.time(joined).split([len(part) for part in lams])
    at, *points = times if joined.requires_grad else [part.numpy() for part in times]
    time_of = dict(zip(finite, scalar.entries(at), strict=True))
    quadrature = {
        start: (u, weights)
        for (start, _), u, (_, weights) in zip(steps, points, measures, strict=True)
    }

    def predictor(past: Sequence[Node], end: Node) -> Weights:
        u, weights = quadrature[past[0]]
        shares = means([time_of[node] for node in past], u, weights)
        return step_weights("noise", past[0], end, shares)

    return predictor


def _kinks(schedule: NoiseSchedule) -> Array | None:
    """The lambdas at which t(lambda) is not smooth: the training steps of a discrete schedule."""
    if not isinstance(schedule, DiscreteVP):
        return None
    index = torch.arange(1, schedule.steps + 1, dtype=torch.float64)
    return schedule.lam(index / schedule.steps).numpy()
