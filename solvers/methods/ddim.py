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
from ..plan import DATA, Node, Noise, Plan, Row
from ..registry import count_steps, solver
from ..scalar import Number
from .multistep import Predictor, Weights, exponential, multistep
from .pure_noise import Frame
from .unipc import unic


@solver(
    "ddim",
    order=lambda options: 1 + bool(options["corrector"]),
    nfe_per_step=1,
    title="DDIM: exponential Euler, deterministic or ancestral",
    when="a baseline; with eta=1.0 it adds noise at each step",
    paper="song2021ddim",
)
def ddim(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: float = 0.0,
    space: str = "data",
    corrector: bool = False,
) -> Plan:
    """DDIM, order 1, one evaluation a step.

    Parameters
    ----------
    eta : share of the DDPM posterior's standard deviation, in [0, 1].
    space : "data" or "noise", the prediction that the rows combine (the same update rule).
    corrector : correct every step but the last with UniC, which makes the order 2 (eta = 0).

    Raises ValueError for eta outside [0, 1], an unknown space, or a corrector with eta > 0.
    """
    check_choice("space", space, ("data", "noise"))
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta!r}: need a value in [0, 1]")
    if corrector and eta > 0:
        raise ValueError(f"corrector=True needs eta=0, not eta={eta!r}")
    nodes = grid.nodes(count_steps(grid, nfe))
    if eta > 0 and Frame.of(space, nodes).inverted:
        raise ValueError(f"eta={eta!r}: an inversion is deterministic, and needs eta=0")
    if eta == 0:
        rows = multistep(
            nodes,
            _first_order(space),
            order=1,
            space=space,
            corrector=unic(space) if corrector else None,
        )
        return Plan(tuple(rows))
    rows = [Row(nodes[0], target=DATA)]
    for k, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False)):
        n = eta * end.sigma * scalar.sqrt(-scalar.expm1(-2 * (end.lam - start.lam)))
        a = _rest(end.sigma, n) / start.sigma
        noise = (Noise(n, start.lam, end.lam),) if n else ()
        target = DATA if k < len(nodes) - 2 else None
        state = ((k, a),) if a != 0 or scalar.is_tensor(a) else ()
        rows.append(Row(end, state, ((k, end.alpha - a * start.alpha),), target, noise=noise))
    return Plan(tuple(rows))


def _rest(sigma: Number, n: Number) -> Number:
    return scalar.sqrt(max(0.0, sigma**2 - n**2))


def _first_order(space: str) -> Predictor:
    def predictor(past: Sequence[Node], end: Node) -> Weights:
        a, scale, z = exponential(space, past[0], end)
        return a, [-scale * scalar.expm1(z)]

    return predictor
