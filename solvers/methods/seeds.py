r"""SEEDS (Gonzalez et al. 2023): exponential Runge-Kutta methods for the reverse SDE.

As `sde_dpm_solver`, with the derivatives of the data prediction from evaluations inside the step,
at lambda_s + c h, and with noise that the inner nodes and the end of a step share as parts of one
Brownian path:

* order 1 is the exponential Euler-Maruyama method;
* order 2, with a node at r h. The slope between its two evaluations has the weight of phi_1 / 2
  ("phi_1", as published) or of phi_2. The former with r = 1/2 is DPM++ SDE of k-diffusion, but for
  its noise; the latter with r = 1 is the exponential Heun method;
* order 3, with nodes at r1 h and r2 h, and the weights of DPM-Solver-3.

The decay of the noise is E = eta h; eta = 0 is the ODE, eta = 1 the reverse SDE.
"""

from __future__ import annotations

from .. import scalar
from ..checks import check_at_least_0, check_choice, check_order
from ..grids import Grid
from ..phi import z_phi
from ..plan import Plan
from ..registry import solver
from ..scalar import Number
from .sde_dpm_solver import two_stages
from .stochastic import Strength, split
from .stochastic_stages import SINGLE, Stages, stages


@solver(
    "seeds",
    order=lambda options: options["order"],
    nfe_per_step=lambda options: options["order"],
    strong=lambda options: 1.0,
    weak=lambda options: float(min(options["order"], 2)),
    title="SEEDS: exponential Runge-Kutta for the reverse SDE",
    when="noise at every step without a history: many evaluations, changing guidance",
    paper="gonzalez2023seeds",
    spaces=("data",),
)
def seeds(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 2,
    solver_type: str = "phi_1",
    eta: Strength = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    r1: float = 1 / 3,
    r2: float = 2 / 3,
) -> Plan:
    """SEEDS of order 1, 2 or 3, with as many evaluations a step; see the module's text.

    The nodes of the grid are the ends of the steps. Steps from pure noise and to sigma = 0 have one
    evaluation; a budget that full steps do not fill ends with steps of fewer.

    Parameters
    ----------
    solver_type : "phi_1" or "phi_2", the weight of the slope at order 2.
    eta : strength of the noise, 0 the ODE and 1 the reverse SDE: a number, a list of one a step, or
        a function of the time (see `stochastic.strengths`).
    s_noise : amplitude of the noise; other values than 1 leave the marginals.
    r : place of the inner node at order 2, a share of the step in lambda, in (0, 1].
    r1, r2 : those at order 3, 0 < r1 < r2 <= 1.

    Raises ValueError for a value that is not listed here, or an nfe that does not fit the grid.
    """
    check_order(order, (1, 2, 3))
    check_choice("solver_type", solver_type, ("phi_1", "phi_2"))
    check_at_least_0("s_noise", s_noise)
    if not 0 < r <= 1:
        raise ValueError(f"r={r!r}: need a number in (0, 1]")
    if not 0 < r1 < r2 <= 1:
        raise ValueError(f"r1={r1!r}, r2={r2!r}: need 0 < r1 < r2 <= 1")
    every = {1: SINGLE, 2: two_stages(r, solver_type == "phi_2"), 3: _three_stages(r1, r2)}
    methods = {count: every[count] for count in range(1, order + 1)}
    return stages(grid, nfe, methods, split, eta, s_noise)


def _three_stages(r1: float, r2: float) -> Stages:
    def second(z: Number) -> list[Number]:
        slope = -r2 / r1 * z_phi(2, z)
        return [-scalar.expm1(z) - slope, slope]

    def end(z: Number) -> list[Number]:
        slope = -z_phi(2, z) / r2
        return [-scalar.expm1(z) - slope, 0.0, slope]

    return Stages((r1, r2), (*SINGLE.weights, second, end))
