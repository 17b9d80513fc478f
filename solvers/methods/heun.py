r"""One-step methods in sigma of Karras et al. 2022 and k-diffusion, for any schedule.

In y = x / alpha and s = sigma / alpha the probability-flow ODE is dy / ds = eps:

    Euler   y' = y + (s' - s) eps(y, s), which is DDIM;
    Heun    y_r = y + r (s' - s) eps(y, s),
            y' = y + (s' - s) ((1 - 1/(2r)) eps(y, s) + 1/(2r) eps(y_r, s + r (s' - s)));
    DPM2    the same with the inner node at s^(1-r) s'^r, a share r of the way in lambda.

r = 1 is Heun's method and r = 1/2 the midpoint rule. The step to sigma = 0 (or from pure noise) is
an Euler step. All three can add EDM's churn before every step.

On the straight path of flow matching, Heun's method can also be that of dx / dt = v, the ODE which
the network was trained on (``variable="time"``), as in diffusers' FlowMatchHeunDiscreteScheduler:

            x_r = x + r (t' - t) v(x, t),
            x' = x + (t' - t) ((1 - 1/(2r)) v(x, t) + 1/(2r) v(x_r, t + r (t' - t))),

which is of order 2 from pure noise at t = 1 on. (Euler's method is the same in both.)
"""

from __future__ import annotations

from .. import scalar
from ..grids import Grid
from ..keywords import takes
from ..plan import Node, Plan
from ..registry import is_in_time, solver
from .runge_kutta import EULER, Churn, Tableau, runge_kutta


@solver(
    "euler",
    order=lambda options: 1,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 1.0,
    title="Euler in sigma (EDM), with churn",
    when="a baseline; with churn it is the stochastic sampler of EDM",
    paper="karras2022edm",
    spaces=("noise",),
)
@takes(Churn)
def euler(
    grid: Grid,
    nfe: int | None = None,
    *,
    options: Churn,
) -> Plan:
    """Euler's method in sigma, order 1, one evaluation a step; options as in `heun`."""
    return runge_kutta(grid, nfe, 1, lambda count, start, end: EULER, options)


@solver(
    "heun",
    order=lambda options: 2,
    nfe_per_step=2,
    strong=lambda options: 1.0,
    weak=lambda options: 2.0,
    title="Heun's method in sigma (EDM), with churn",
    when="EDM models at 30 evaluations and more, also with churn",
    paper="karras2022edm",
    spaces=("noise",),
)
@takes(Churn)
def heun(
    grid: Grid,
    nfe: int | None = None,
    *,
    r: float = 1.0,
    variable: str = "sigma",
    options: Churn,
) -> Plan:
    """Heun's method, order 2, two evaluations a step.

    ``nfe`` evaluations make (nfe + e) / 2 steps, where e counts the Euler steps from pure noise and
    to sigma = 0; if that is not whole, the last step with sigma > 0 is an Euler step too.

    Parameters
    ----------
    r : place of the second evaluation, in (0, 1].
    variable : "sigma" (EDM's sampler), or "time" on `FlowMatching`, where only the step to
        sigma = 0 is an Euler step.
    options : those of `Churn`.

    Raises ValueError for values out of range.
    """
    _check_r(r)
    straight = is_in_time(variable, grid.schedule)
    return runge_kutta(
        grid,
        nfe,
        2,
        lambda count, start, end: _two_stage(count, r, r),
        options,
        straight=straight,
    )


@solver(
    "dpm2",
    order=lambda options: 2,
    nfe_per_step=2,
    strong=lambda options: 1.0,
    weak=lambda options: 2.0,
    title="DPM-Solver-2 in sigma (k-diffusion), with churn",
    when="as heun, with an inner evaluation instead of a last one",
    paper="lu2022dpm",
    spaces=("noise",),
)
@takes(Churn)
def dpm2(
    grid: Grid,
    nfe: int | None = None,
    *,
    r: float = 0.5,
    options: Churn,
) -> Plan:
    """A midpoint rule whose midpoint is one in lambda, order 2, two evaluations a step.

    Options as in `heun`; r is the place of the inner node in lambda, in (0, 1].
    """
    _check_r(r)

    def method(count: int, start: Node, end: Node) -> Tableau:
        if count == 1:
            return EULER
        h = end.lam - start.lam
        c = scalar.expm1(-r * h) / scalar.expm1(-h) if h != 0 else r
        return _two_stage(count, c, r)

    return runge_kutta(grid, nfe, 2, method, options)


def _two_stage(count: int, c: float, r: float) -> Tableau:
    if count == 1:
        return EULER
    return Tableau(((), (c,)), (1 - 1 / (2 * r), 1 / (2 * r)), (0.0, c))


def _check_r(r: float) -> None:
    if not 0 < r <= 1:
        raise ValueError(f"r={r!r}: need a number in (0, 1]")
