r"""Ancestral samplers: a deterministic step to less noise than the end has, then fresh noise.

In y = x / alpha and rho = sigma / alpha, k-diffusion's step from rho_s to rho_t is

    rho_up = eta rho_t sqrt(1 - rho_t^2 / rho_s^2),     rho_down^2 = rho_t^2 - rho_up^2,
    y_t = (a step of the probability-flow ODE from rho_s to rho_down) + s_noise rho_up z,

and x_t = alpha_t y_t: the level ``down`` of `stochastic.posterior_split`. Said in rho it has the
right marginals on every schedule. The samplers differ in their deterministic step,

    Euler        that of DDIM, so that the whole is DDIM(eta);
    DPM2         y_t = y_s + (rho_down - rho_s) eps_m,
    DPM++ 2S     y_t = (rho_down / rho_s) y_s + (1 - rho_down / rho_s) x0_m,

where m is half way from s to ``down`` in lambda, reached by Euler's step: one midpoint rule, in the
noise and in the data prediction. With eta = 1 half way to ``down`` is the level of t itself.

A step to sigma = 0, or one from pure noise, is Euler's.

The flow of the ODE takes the distribution at s to that at ``down``, and the noise takes that to the
one at t. Both are exact, so that the weak order is the order of the deterministic step, although
as a solution of the SDE, path by path, the whole is of order 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ..checks import check_at_least_0
from ..grids import Grid
from ..plan import Node, Plan, Row
from ..registry import solver
from ..scalar import is_tensor, plain
from ..schedules import NoiseSchedule
from .multistep import SPACES, first_order
from .pure_noise import Frame
from .runge_kutta import at_lams, layout
from .stochastic import Split, Strength, keeps_marginals, posterior_split, recorded, strengths


@solver(
    "euler-ancestral",
    order=lambda options: 1,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 1.0,
    title="Ancestral Euler: DDIM with fresh noise at each step",
    when="pictures with more variety and less of the solver's error, at 30 evaluations and more",
    paper="song2021ddim",
    spaces=("data",),
)
def euler_ancestral(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 1.0,
    s_noise: float = 1.0,
) -> Plan:
    """Ancestral Euler (k-diffusion's "Euler a"), one evaluation a step; it equals DDIM(eta).

    Parameters
    ----------
    eta : share of the DDPM posterior's standard deviation, in [0, 1]: a number, a list of one a
        step, or a function of the time (see `stochastic.strengths`).
    s_noise : amplitude of the noise; other values than 1 leave the marginals.

    Raises ValueError for values out of range, and for noise in an inversion.
    """
    return _ancestral(grid, nfe, 1, "data", eta, s_noise)


@solver(
    "dpm2-ancestral",
    order=lambda options: 2,
    nfe_per_step=2,
    strong=lambda options: 1.0,
    weak=lambda options: 2.0,
    title="Ancestral DPM2: a midpoint rule in sigma with fresh noise",
    when="as euler-ancestral, with a second evaluation a step",
    paper="lu2022dpm",
    spaces=("noise",),
)
def dpm2_ancestral(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 1.0,
    s_noise: float = 1.0,
) -> Plan:
    """Ancestral DPM2 (k-diffusion's "DPM2 a"), two evaluations a step.

    ``nfe`` evaluations make (nfe + e) / 2 steps, where e counts the Euler steps from pure noise and
    to sigma = 0; if that is not whole, the last step with sigma > 0 is an Euler step too. Options
    as in `euler_ancestral`.
    """
    return _ancestral(grid, nfe, 2, "noise", eta, s_noise)


@solver(
    "dpm++2s-ancestral",
    order=lambda options: 2,
    nfe_per_step=2,
    strong=lambda options: 1.0,
    weak=lambda options: 2.0,
    title="Ancestral DPM++ 2S: a midpoint rule of the data prediction with fresh noise",
    when="as euler-ancestral, with a second evaluation a step; guided models",
    paper="lu2022dpmpp",
    spaces=("data",),
)
def dpmpp_2s_ancestral(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 1.0,
    s_noise: float = 1.0,
) -> Plan:
    """Ancestral DPM++ 2S (k-diffusion's "DPM++ 2S a"), two evaluations a step.

    Steps as in `dpm2_ancestral`, options as in `euler_ancestral`.
    """
    return _ancestral(grid, nfe, 2, "data", eta, s_noise)


def _ancestral(
    grid: Grid, nfe: int | None, stages: int, space: str, eta: Strength, s_noise: float
) -> Plan:
    check_at_least_0("s_noise", s_noise)
    nodes, counts = layout(grid, nfe, stages)
    etas = strengths("eta", eta, nodes, grid.schedule, most=1.0, power=2)
    parts = [posterior_split(*step, e) for step, e in zip(pairwise(nodes), etas, strict=True)]
    halved = [part for part, count in zip(parts, counts, strict=True) if count == 2]
    middles = iter(_middles(grid.schedule, halved))
    rows, frame = [Row(nodes[0])], Frame.of(space, nodes)
    for part, count in zip(parts, counts, strict=True):
        if count == 2:
            rows += midpoint_step(rows, part, next(middles), space, s_noise)
        else:
            rows.append(first_order_step(rows, part, frame, s_noise))
    consistent = keeps_marginals(s_noise, etas)
    return Plan(tuple(rows), options=recorded("eta", eta, etas), consistent=consistent)


def _middles(schedule: NoiseSchedule, parts: Sequence[Split]) -> list[Node]:
    """The nodes half way from the start to ``down`` in lambda."""
    lams = [(part.start.lam + part.down.lam) / 2 for part in parts]
    # With eta = 1 it is the end, which rounding would put beyond the range.
    return [
        part.end if abs(plain(node.lam - part.end.lam)) < 1e-12 * abs(plain(part.end.lam)) else node
        for part, node in zip(parts, at_lams(schedule, lams), strict=True)
    ]


def first_order_step(rows: list[Row], part: Split, frame: Frame, s_noise: float = 1.0) -> Row:
    """The row of a first-order step from the last of ``rows``, which it has evaluated."""
    base = len(rows) - 1
    target = frame.first_target
    rows[base] = replace(rows[base], target=target)
    return _end(part, base, base, first_order(target, part.start, part.down), s_noise)


def midpoint_step(
    rows: list[Row], part: Split, middle: Node, space: str, s_noise: float = 1.0
) -> tuple[Row, Row]:
    """The rows of an evaluation at ``middle`` and of the step that takes it."""
    base, target = len(rows) - 1, SPACES[space]
    rows[base] = replace(rows[base], target=target)
    a, b = first_order(target, part.start, middle)
    inner = Row(middle, ((base, a),), ((base, b),), target)
    return inner, _end(part, base, base + 1, first_order(target, part.start, part.down), s_noise)


def _end(part: Split, state: int, output: int, weights: tuple[float, float], s_noise: float) -> Row:
    a, b = weights
    states = ((state, a),) if a != 0 or is_tensor(a) else ()
    return Row(part.end, states, ((output, b),), noise=part.scaled(s_noise).noise)
