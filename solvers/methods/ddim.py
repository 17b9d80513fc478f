r"""DDIM (Song, Meng and Ermon 2021, eq. 12; monograph section 9.2).

    x_t = alpha_t x0 + sqrt(sigma_t^2 - n^2) eps + n z,     n = eta sigma_t sqrt(1 - e^(-2h))

with x0 and eps the predictions at (x_s, s) and h = lambda_t - lambda_s. eta = 0 is the
deterministic sampler, the exponential Euler method (DPM-Solver-1) of order 1; eta = 1 is
ancestral sampling with the variance of the DDPM posterior.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import scalar
from ..checks import check_choice
from ..grids import Grid
from ..plan import DATA, Node, Plan, Row
from ..registry import count_steps, solver
from .multistep import Predictor, Weights, exponential, first_order, multistep
from .stochastic import Strength, posterior_split, recorded, strengths
from .unipc import unic


@solver(
    "ddim",
    order=lambda options: 1 + bool(options["corrector"]),
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 1.0,
    title="DDIM: exponential Euler, deterministic or ancestral",
    when="a baseline; with eta=1.0 it adds noise at each step",
    paper="song2021ddim",
)
def ddim(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 0.0,
    space: str = "data",
    corrector: bool = False,
) -> Plan:
    """DDIM, order 1, one evaluation a step.

    Parameters
    ----------
    eta : share of the DDPM posterior's standard deviation, in [0, 1]: a number, a list of one a
        step, or a function of the time (see `stochastic.strengths`).
    space : "data" or "noise", the prediction that the rows combine (the same update rule).
    corrector : correct every step but the last with UniC, which makes the order 2 (eta = 0).

    Raises ValueError for eta outside [0, 1], an unknown space, or a corrector with eta > 0.
    """
    check_choice("space", space, ("data", "noise"))
    nodes = grid.nodes(count_steps(grid, nfe))
    shares = strengths("eta", eta, nodes, grid.schedule, most=1.0, power=2)
    if not any(map(scalar.plain, shares)):
        rows = multistep(
            nodes,
            _first_order(space),
            order=1,
            space=space,
            corrector=unic(space) if corrector else None,
        )
        return Plan(tuple(rows), options=recorded("eta", eta, shares))
    if corrector:
        raise ValueError(f"corrector=True needs eta=0, not eta={eta!r}")
    rows = [Row(nodes[0], target=DATA)]
    for k, step in enumerate(zip(nodes, nodes[1:], shares, strict=False)):
        part = posterior_split(*step)
        a, b = first_order(DATA, part.start, part.down)
        target = DATA if k < len(nodes) - 2 else None
        state = ((k, a),) if a != 0 or scalar.is_tensor(a) else ()
        rows.append(Row(part.end, state, ((k, b),), target, noise=part.noise))
    return Plan(tuple(rows), options=recorded("eta", eta, shares))


def _first_order(space: str) -> Predictor:
    def predictor(past: Sequence[Node], end: Node) -> Weights:
        a, scale, z = exponential(space, past[0], end)
        return a, [-scale * scalar.expm1(z)]

    return predictor
