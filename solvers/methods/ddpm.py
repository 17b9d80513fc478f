r"""DDPM's ancestral sampling (Ho, Jain and Abbeel 2020, section 3.2), from any node to any other.

With the forward process between two nodes, x_s = (alpha_s / alpha_t) x_t + N(0, beta),

    beta = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2,
    x_t = (the posterior's mean, with the data prediction for x0) + n z,

    variance="small":  n^2 = beta sigma_t^2 / sigma_s^2, that of the posterior for one known x0;
    variance="large":  n^2 = beta.

The small one is DDIM with eta = 1 and has the right marginals for data that are one point. The
large one is right for normal data that fill the space; its mean is still that of the posterior, so
that it adds more noise than it took away. Networks that predict a variance themselves (Nichol and
Dhariwal 2021) are not supported.
"""

from __future__ import annotations

from itertools import pairwise

from ..checks import check_choice
from ..grids import Grid
from ..plan import Plan, Row
from ..registry import count_steps, solver
from ..scalar import plain, sqrt
from .ancestral import first_order_step
from .pure_noise import Frame
from .stochastic import Split, posterior_split

VARIANCES = ("small", "large")


@solver(
    "ddpm",
    order=lambda options: 1,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 1.0,
    title="DDPM: ancestral sampling with the posterior's variance",
    when="the baseline with noise: a hundred evaluations and more",
    paper="ho2020ddpm",
    spaces=("data",),
)
def ddpm(grid: Grid, nfe: int | None = None, *, variance: str = "small") -> Plan:
    """DDPM's ancestral sampling, one evaluation a step; see the module's text.

    Parameters
    ----------
    variance : "small" (the posterior's, which keeps the marginals) or "large" (beta).

    Raises ValueError for another variance (a learned one needs a network that predicts it, which is
    not supported), and for an inversion.
    """
    if isinstance(variance, str) and variance.startswith("learned"):
        raise ValueError(
            f"variance={variance!r}: choose one of {', '.join(map(repr, VARIANCES))}; variances "
            "that the network predicts are not supported"
        )
    check_choice("variance", variance, VARIANCES)
    nodes = grid.nodes(count_steps(grid, nfe))
    frame = Frame.of("data", nodes)
    if frame.inverted:
        raise ValueError("invert=True: ddpm adds noise at each step; ddim has eta=0")
    rows = [Row(nodes[0])]
    for step in pairwise(nodes):
        part = posterior_split(*step, 1.0)
        rows.append(first_order_step(rows, part if variance == "small" else _large(part), frame))
    return Plan(tuple(rows), consistent=variance == "small")


def _large(part: Split) -> Split:
    if plain(part.scale) == 0:
        return part
    ratio = part.start.alpha / part.end.alpha
    return part._replace(scale=sqrt(part.start.sigma**2 - (ratio * part.end.sigma) ** 2))
