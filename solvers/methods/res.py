r"""RES, the refined exponential solver (Zhang, Song and Chen 2023), as a multistep method.

    x_t = (sigma_d / sigma_s) x_s - alpha_t z (phi_1(z) D_s + phi_2(z) (D_s - D_r) / c) + n z',

with z = -(h + E), E the decay of the old noise, sigma_d = sigma_t e^(-E) and n what brings it back
up to sigma_t (`stochastic.posterior_split`), and c the length of the last step, stretched by its
own noise, over that of this one. Without noise it is the exponential Adams method of order 2 in
data space (`adams`); with eta > 0 it is what ComfyUI calls res_multistep_ancestral.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .. import scalar
from ..checks import check_at_least_0
from ..grids import Grid
from ..phi import z_phi
from ..plan import Node, Plan
from ..registry import count_steps, solver
from ..scalar import Number, plain
from .multistep import Predictor, Weights, exponential, multistep
from .stochastic import Split, Strength, keeps_marginals, posterior_split, recorded, strengths


@solver(
    "res",
    order=lambda options: 2,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 2.0,
    title="RES: exponential multistep with exact weights, deterministic or ancestral",
    when="as dpm-solver++; with eta=1.0 noise at each step",
    paper="zhang2023res",
    spaces=("data",),
)
def res(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 0.0,
    s_noise: float = 1.0,
    lower_order_final: bool = True,
    keep_first: bool = True,
) -> Plan:
    """RES of order 2, one evaluation a step; see the module's text for the update rule.

    Parameters
    ----------
    eta : share of the DDPM posterior's standard deviation, in [0, 1]: a number, a list of one a
        step, or a function of the time (see `stochastic.strengths`).
    s_noise : amplitude of the noise; other values than 1 leave the marginals.
    lower_order_final : lower the order at the last step.
    keep_first : keep what the network said of pure noise for the later steps, see `multistep`;
        False drops it after the first, as published.

    Raises ValueError for a value out of range, and for noise in an inversion.
    """
    check_at_least_0("s_noise", s_noise)
    nodes = grid.nodes(count_steps(grid, nfe))
    shares = strengths("eta", eta, nodes, grid.schedule, most=1.0, power=2)
    splits = [
        posterior_split(*step).scaled(s_noise)
        for step in zip(nodes, nodes[1:], shares, strict=False)
    ]
    rows = multistep(
        nodes,
        [_predictor(*both) for both in zip(splits, [splits[0], *splits], strict=False)],
        order=2,
        lower_order_final=lower_order_final,
        keep_first=keep_first,
        splits=splits,
    )
    consistent = keeps_marginals(s_noise, shares)
    return Plan(tuple(rows), options=recorded("eta", eta, shares), consistent=consistent)


def _predictor(step: Split, before: Split) -> Predictor:
    def predictor(past: Sequence[Node], end: Node) -> Weights:
        a, scale, z = exponential("data", past[0], end, step.decay)
        if len(past) == 1:
            return a, [-scale * scalar.expm1(z)]
        slope = scale * z_phi(2, z) * -z / ((past[0].lam - past[1].lam) * _stretch(before))
        return a, [-scale * scalar.expm1(z) - slope, slope]

    return predictor


def _stretch(step: Split) -> Number:
    """(h + E) / h of a step of finite length, 1 of another."""
    h = step.end.lam - step.start.lam
    return 1 + step.decay / h if 0 < plain(h) < math.inf else 1.0
