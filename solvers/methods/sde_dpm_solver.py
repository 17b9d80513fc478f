r"""SDE-DPM-Solver++ (Lu et al. 2022b, section 4.3 and appendix; k-diffusion's DPM++ SDE family).

The exponential integrators of DPM-Solver++ for the reverse SDE of strength eta: with E = eta h the
decay of the old noise (see `stochastic`), h = lambda_t - lambda_s, and z = -(h + E),

    x_t = (sigma_t / sigma_s) e^(-E) x_s - alpha_t z (phi_1(z) D_s + ...) + n z',
    n = sigma_t sqrt(1 - e^(-2E)),

where the dots are the terms of `dpm_solver` in the derivatives of D with respect to lambda. With
eta = 0 it is DPM-Solver++, with eta = 1 it follows the reverse SDE.

* multistep: orders 1, 2 ("2M SDE") and 3 ("3M SDE"), one evaluation a step. The published weights
  of the third order use half of the second derivative, see `dpm_solver`.
* singlestep, order 2 ("DPM++ SDE"): an inner node at lambda_s + r h, with noise of its own that is
  part of that of the step. There eta is the share of DDIM, sigma_down^2 = sigma_t^2 - n^2 with
  n = eta sigma_t sqrt(1 - e^(-2h)); both agree at 0 and at 1.

In noise space, as published,

    x_t = (alpha_t / alpha_s) x_s - (1 + eta) sigma_t h (phi_1(h) eps_s + ...) + n z',
    n = sigma_t sqrt(eta (e^(2h) - 1)),

which does not keep the marginals: on data of one point a step of eta = 1 and order 1 has the
variance sigma_t^2 (1 + 2 (e^h - 1)^2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .. import scalar
from ..checks import check_at_least_0, check_choice, check_order
from ..grids import Grid
from ..phi import z_phi
from ..plan import Node, Plan
from ..registry import count_steps, solver
from ..scalar import Number, plain
from .dpm_solver import multistep_weights
from .multistep import Predictor, multistep
from .pure_noise import Frame
from .stochastic import (
    Split,
    Strength,
    keeps_marginals,
    posterior_split,
    recorded,
    split,
    strengths,
)
from .stochastic_stages import SINGLE, Stages, stages

SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}
"""And what `dpm_solver` calls them."""


def _order(options: Mapping[str, Any]) -> int:
    published_3 = options["order"] == 3 and options["weights"] == "published"
    return 2 if published_3 else options["order"]


@solver(
    "sde-dpm-solver++",
    order=_order,
    nfe_per_step=lambda o: 1 if o["steps"] == "multistep" else o["order"],
    strong=lambda options: 1.0,
    weak=lambda options: float(min(options["order"], 2)),
    title="SDE-DPM-Solver++: exponential integrator of the reverse SDE",
    when="noise at every step, at order 2: detail and variety from 20 evaluations on",
    paper="lu2022dpmpp",
    spaces=("data",),
)
def sde_dpm_solver_pp(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 2,
    steps: str = "multistep",
    solver_type: str = "midpoint",
    prediction: str = "data",
    eta: Strength = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    weights: str = "published",
    lower_order_final: bool = True,
    keep_first: bool = True,
) -> Plan:
    """SDE-DPM-Solver++ of order 1, 2 or 3; see the module's text for the update rule.

    Parameters
    ----------
    steps : "multistep" (one evaluation a step) or "singlestep" (order 2, two evaluations a step;
        the nodes of the grid are the ends of the steps).
    solver_type : "midpoint" or "heun", the published variants of the term of order 2.
    prediction : "data", or "noise" (multistep, the SDE-DPM-Solver of diffusers), which of the two
        the rows combine. The latter does not keep the marginals.
    eta : strength of the noise, 0 the ODE and 1 the reverse SDE: a number, a list of one a step, or
        a function of the time (see `stochastic.strengths`). At most 1 with singlestep.
    s_noise : amplitude of the noise; other values than 1 leave the marginals.
    r : place of the inner node of a singlestep step, a share of the step in lambda.
    weights : of the third order: "published" or "taylor", which has the whole second derivative.
    lower_order_final : lower the order towards the last steps (multistep).
    keep_first : keep what the network said of pure noise for the later steps, see `multistep`;
        False drops it after the first, as published.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    check_order(order, (1, 2, 3))
    check_choice("steps", steps, ("multistep", "singlestep"))
    check_choice("solver_type", solver_type, tuple(SOLVER_TYPES))
    check_choice("prediction", prediction, ("data", "noise"))
    check_choice("weights", weights, ("published", "taylor"))
    check_at_least_0("s_noise", s_noise)
    if not 0 < r <= 1:
        raise ValueError(f"r={r!r}: need a number in (0, 1]")
    if steps == "multistep":
        kind = SOLVER_TYPES[solver_type], 2.0 if weights == "taylor" else 1.0
        return _multistep(
            grid, nfe, order, prediction, kind, eta, s_noise, lower_order_final, keep_first
        )
    if order != 2:
        raise ValueError(f"order={order!r}: steps='singlestep' has order 2")
    if prediction != "data":
        raise ValueError(f"prediction={prediction!r}: steps='singlestep' combines 'data'")
    methods = {1: SINGLE, 2: two_stages(r, solver_type == "heun")}
    return stages(grid, nfe, methods, posterior_split, eta, s_noise, most=1.0, power=2)


def two_stages(r: float, exact_slope: bool) -> Stages:
    """A step with an inner node at ``r`` h.

    The slope of D between the two has the weight of phi_2, or, as published, that of phi_1 / 2.
    """

    def exact(z: Number) -> list[Number]:
        slope = -z_phi(2, z) / r
        return [-scalar.expm1(z) - slope, slope]

    def published(z: Number) -> list[Number]:
        both = (0.0, 1.0) if r == 1 / 2 else (1 - 1 / (2 * r), 1 / (2 * r))
        return [-scalar.expm1(z) * share if share else 0.0 for share in both]

    return Stages((r,), (*SINGLE.weights, exact if exact_slope else published))


def _multistep(
    grid: Grid,
    nfe: int | None,
    order: int,
    space: str,
    kind: tuple[str, float],
    eta: Strength,
    s_noise: float,
    lower_order_final: bool,
    keep_first: bool,
) -> Plan:
    nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
    rates = strengths("eta", eta, nodes, grid.schedule)
    frame = Frame.of(space, nodes)
    make = split if space == "data" else partial(_split_in_noise, frame)
    splits = [make(*step).scaled(s_noise) for step in zip(nodes, nodes[1:], rates, strict=False)]

    def predictor(part: Split) -> Predictor:
        return lambda past, end: multistep_weights(space, past, end, *kind, part.decay)

    rows = multistep(
        nodes,
        [predictor(part) for part in splits],
        order=order,
        space=space,
        lower_order_final=lower_order_final,
        keep_first=keep_first,
        splits=splits,
    )
    exact = keeps_marginals(s_noise if space == "data" else None, rates)
    return Plan(tuple(rows), options=recorded("eta", eta, rates), consistent=exact)


def _split_in_noise(frame: Frame, start: Node, end: Node, rate: Number) -> Split:
    """The published step; exact where the frame takes a first-order step."""
    exact = split(start, end, rate)
    if frame.starts(start) or frame.only_first_order(start, end) or plain(exact.scale) == 0:
        return exact
    h = end.lam - start.lam
    return exact._replace(scale=end.sigma * scalar.sqrt(rate * scalar.expm1(2 * h)))
