r"""Predictor-corrector sampling of Score-SDE (Song et al. 2021, algorithms 2 to 5).

At a node the state is corrected by steps of Langevin dynamics, each with an evaluation of its own,

    x' = x + e score + sqrt(2 e) z,     score = -eps / sigma,

and then the predictor leads to the next node. The published step is e = 2 (snr |z| / |score|)^2
with the norms of that very draw and output, which no table of numbers can hold. Here they are those
expected, |z| / |score| = sigma (the score of a point; in d dimensions both norms are sqrt(d) times
a unit), so that e = 2 snr^2 sigma^2 and, with c = 1 - 2 snr^2,

    x' = alpha x0 + c sigma eps + n z,     correction="published":  n = 2 snr sigma,
                                           correction="exact":      n = sqrt(1 - c^2) sigma.

The published one makes the variance of the noise larger by 4 snr^4 of it at each correction; the
exact one keeps it. The predictors are

    "ancestral"           DDIM with eta = 1, the posterior of DDPM;
    "reverse-diffusion"   x_t = (2 - r) x_s + G^2 score + G z,
                          r = alpha_s / alpha_t,  G^2 = sigma_s^2 - r^2 sigma_t^2,

of which the second does not keep the marginals. Steps from pure noise and to sigma = 0 take no
corrections. The noise of the corrections is that of the clock "langevin", which counts them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from ..checks import check_choice, check_whole
from ..grids import Grid
from ..plan import DATA, Node, Noise, Plan, Row
from ..registry import solver
from ..scalar import sqrt
from .ancestral import first_order_step
from .pure_noise import Frame
from .runge_kutta import layout
from .stochastic import Split, posterior_split

PREDICTORS = ("ancestral", "reverse-diffusion")
CORRECTIONS = ("exact", "published")
MOST = math.sqrt(0.5)


@solver(
    "langevin",
    order=lambda options: 1,
    nfe_per_step=lambda options: 1 + options["corrections"],
    weak=lambda options: 0.0,
    title="Predictor-corrector of Score-SDE: ancestral steps and Langevin dynamics",
    when="to compare with Score-SDE, at hundreds of evaluations",
    paper="song2021score",
    spaces=("data",),
)
def langevin(
    grid: Grid,
    nfe: int | None = None,
    *,
    corrections: int = 1,
    snr: float = 0.16,
    predictor: str = "ancestral",
    correction: str = "exact",
) -> Plan:
    """Predictor-corrector sampling, 1 + ``corrections`` evaluations a step; see the module's text.

    ``nfe`` evaluations make as many full steps as fit; the last with sigma > 0 have fewer
    corrections if it does not divide.

    Parameters
    ----------
    corrections : Langevin steps at a node, at least 0.
    snr : their size, in [0, sqrt(1/2)]; published are 0.16 and 0.17, and 0.01 for CIFAR-10 on VP.
    predictor : "ancestral" or "reverse-diffusion".
    correction : "exact" (the marginals are kept) or "published".

    The corrections do not shrink with the steps, so that more of them lead to no limit: the weak
    order is 0. Raises ValueError for values out of range, and for an inversion.
    """
    check_whole("corrections", corrections, 0)
    if not 0 <= snr <= MOST:
        raise ValueError(f"snr={snr!r}: need a number in [0, {MOST:.4f}]")
    check_choice("predictor", predictor, PREDICTORS)
    check_choice("correction", correction, CORRECTIONS)
    nodes, counts = layout(grid, nfe, 1 + corrections)
    frame = Frame.of("data", nodes)
    if frame.inverted:
        raise ValueError("invert=True: langevin adds noise at each step; ddim has eta=0")
    kept = 1 - 2 * snr**2
    fresh = 2 * snr if correction == "published" else math.sqrt(1 - kept**2)
    rows, corrected = [Row(nodes[0])], 0
    for step, count in zip(pairwise(nodes), counts, strict=True):
        for _ in range(count - 1):
            rows.append(_correction(rows, step[0], kept, fresh, corrected))
            corrected += 1
        part = posterior_split(*step, 1.0)
        if predictor == "ancestral" or frame.starts(step[0]) or step[1].sigma == 0:
            rows.append(first_order_step(rows, part, frame))
        else:
            rows.append(_reverse_diffusion(rows, part))
    exact = predictor == "ancestral" and (correction == "exact" or not corrected or snr == 0)
    return Plan(tuple(rows), consistent=exact)


def _correction(rows: list[Row], node: Node, kept: float, fresh: float, index: int) -> Row:
    base = len(rows) - 1
    rows[base] = replace(rows[base], target=DATA)
    n = fresh * node.sigma
    noise = (Noise(n, float(index), index + 1.0, "langevin"),) if fresh else ()
    return Row(node, ((base, kept),), ((base, (1 - kept) * node.alpha),), noise=noise)


def _reverse_diffusion(rows: list[Row], part: Split) -> Row:
    base, start, end = len(rows) - 1, part.start, part.end
    rows[base] = replace(rows[base], target=DATA)
    ratio = start.alpha / end.alpha
    g2 = start.sigma**2 - (ratio * end.sigma) ** 2
    share = g2 / start.sigma**2
    noise = part._replace(scale=sqrt(g2)).noise
    return Row(end, ((base, 2 - ratio - share),), ((base, share * start.alpha),), noise=noise)
