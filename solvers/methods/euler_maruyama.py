r"""The Euler-Maruyama method on reverse SDEs, in the schedule's own time.

Every SDE

    dx = [f x - (g^2 + d^2) / 2 score] dt + d dw,    f = (log alpha)',  g^2 = -2 sigma^2 lambda',

with t running down from noise to data, has the marginals of the forward process, whatever the
diffusion coefficient d(t) is: d = 0 is the probability-flow ODE, d = g the reverse of the forward
process (Song et al. 2021). With score = -eps / sigma, a step from s to t = s - D is

    x_t = x_s - D (alpha' x0 + sigma' eps) - D d^2 / (2 sigma_s) eps + d sqrt(D) z,

where alpha', sigma' and d are those of s. On flow models it is, with v = eps - x0,

    x_t = x_s - D [v + d^2 / (2 s) (x_s + (1 - s) v)] + d sqrt(D) z.

The coefficient d is ``eta`` times a unit, which ``diffusion`` names:

    "sde"          g: with eta = 1 the reverse SDE;
    "flow-grpo"    sqrt(sigma / alpha), on flow models sqrt(t / (1 - t)) = g / sqrt(2)
                   (Flow-GRPO, Liu et al. 2025, where eta is called a, or the noise level);
    "constant"     1 (DanceGRPO, Xue et al. 2025).

At pure noise, where f is infinite, the part of the ODE is the first-order step of the data
prediction (on flow models the same as above) and d takes alpha and lambda' of the step's end, as
Flow-GRPO does.
At sigma = 0 the result is x0, without noise, unless ``final_noise`` asks for it.

The steps are finite, so the variance of their states is not that of the marginals: these plans do
not obey the identities, and leave noise in the sample. `cps` has none of that.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from .. import scalar
from ..checks import check_choice
from ..grids import Grid
from ..noise_terms import reading
from ..plan import DATA, Node, Noise, Plan, Row
from ..registry import count_steps, solver
from ..scalar import Number
from ..schedules import NoiseSchedule
from .multistep import first_order
from .pure_noise import Frame
from .stochastic import Strength, recorded, strengths

DIFFUSIONS = ("sde", "flow-grpo", "constant")


@solver(
    "euler-maruyama",
    order=lambda options: 1,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: 1.0,
    title="Euler-Maruyama on the reverse SDE, in the schedule's time",
    when="reinforcement learning on flow models (Flow-GRPO, DanceGRPO); many small steps",
    paper="song2021score",
    spaces=("data",),
)
def euler_maruyama(
    grid: Grid,
    nfe: int | None = None,
    *,
    eta: Strength = 1.0,
    diffusion: str = "sde",
    final_noise: bool = False,
) -> Plan:
    """The Euler-Maruyama method, one evaluation a step; see the module's text.

    Parameters
    ----------
    eta : the diffusion coefficient in the unit of ``diffusion``, at least 0: a number, a list of
        one a step, or a function of the time (see `stochastic.strengths`). 0 is Euler's method on
        the probability-flow ODE in t.
    diffusion : "sde", "flow-grpo" or "constant".
    final_noise : keep the noise of a last step to sigma = 0.

    Raises ValueError for values out of range, and for noise in an inversion.
    """
    check_choice("diffusion", diffusion, DIFFUSIONS)
    nodes = grid.nodes(count_steps(grid, nfe))
    frame = Frame.of("data", nodes)
    etas = strengths("eta", eta, nodes, grid.schedule, power=2)
    rows = [Row(nodes[0])]
    for k, (start, end) in enumerate(pairwise(nodes)):
        target = frame.first_target if frame.starts(start) else DATA
        d2: Number = 0.0
        if frame.starts(start) or (frame.ends(end) and not final_noise):
            a, b = first_order(target, start, end)
            if not frame.ends(end):
                finite = end._replace(sigma=start.sigma)
                d2 = _squared_diffusion(grid.schedule, finite, etas[k], diffusion)
        else:
            a, b = _euler(grid.schedule, start, end)
            d2 = _squared_diffusion(grid.schedule, start, etas[k], diffusion)
        if d2:
            share = (start.t - end.t) * d2 / (2 * start.sigma**2)
            a, b = a - share, b + start.alpha * share
        n = scalar.sqrt((start.t - end.t) * d2) if d2 else 0.0
        noise = (Noise(n, reading("snr", start), reading("snr", end), "snr"),) if n else ()
        rows[k] = replace(rows[k], target=target)
        rows.append(Row(end, ((k, a),) if a else (), ((k, b),), noise=noise))
    return Plan(tuple(rows), options=recorded("eta", eta, etas), consistent=False)


def _euler(schedule: NoiseSchedule, start: Node, end: Node) -> tuple[Number, Number]:
    """(a, b) of Euler's step on dx/dt = alpha' x0 + sigma' eps, in the data prediction."""
    step = start.t - end.t
    rate = schedule.dlam(start.t)
    return 1 - step * (schedule.dlog_alpha(start.t) - rate), -step * start.alpha * rate


def _squared_diffusion(schedule: NoiseSchedule, node: Node, eta: Number, unit: str) -> Number:
    """d^2 at ``node``."""
    if unit == "constant":
        return eta**2
    if unit == "flow-grpo":
        return eta**2 * node.sigma / node.alpha
    return -2 * (eta * node.sigma) ** 2 * schedule.dlam(node.t)
