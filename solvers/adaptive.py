r"""Adaptive step size: DPM-Solver-12 and -23 with the published controller.

A step of size h in lambda is taken twice, by a method of order p - 1 and one of order p that
shares its evaluations (Lu et al. 2022a, appendix C). With

    delta = max(atol, rtol max(|x_low|, |x_prev|)),
    E = max over the batch of rms((x_high - x_low) / delta),

the step is accepted if E <= 1, and the next size is min(theta h E^(-1/p), lambda_end - lambda).
x_prev is the lower solution of the last accepted step. The algorithm is a generator, so it works
through every driver; the size of a step depends on the states, so it is not a `Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .denoiser import Denoiser, check_start
from .grids import check_range, node_at
from .methods.dpm_solver import SOLVER_TYPES, stages
from .methods.multistep import SPACES
from .plan import DATA, Node, Row
from .prediction import check_prediction, to_target
from .registry import check_choice
from .run import Evaluation, drive
from .schedules import NoiseSchedule

INNER = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where the inner evaluations lie, as shares of the step in lambda."""


@dataclass(frozen=True)
class AdaptiveStats:
    """What an adaptive run did. ``times`` are those of the accepted nodes, start and end included.

    ``nfe`` counts every evaluation, those of rejected steps too. ``dense`` maps a time between
    the ends to the state there (cubic Hermite interpolation in lambda), if it was asked for.
    """

    nfe: int
    rejected: int
    times: tuple[float, ...]
    dense: Callable[[float], Tensor] | None = field(default=None, repr=False)


class NFELimitError(RuntimeError):
    """The run would need more than ``max_nfe`` evaluations.

    ``x`` is the state that was reached, ``t`` its time, ``nfe`` the evaluations spent.
    """

    def __init__(self, x: Tensor, t: float, nfe: int, max_nfe: int):
        super().__init__(
            f"max_nfe={max_nfe}: {nfe} evaluations reached t={t:.6g}, short of t_end. Allow more, "
            "or loosen rtol and atol. The state is in this error's x, its time in t"
        )
        self.x, self.t, self.nfe = x, t, nfe


def sample_adaptive(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    order: int = 3,
    space: str = "noise",
    solver_type: str = "dpmsolver",
    atol: float = 0.0078,
    rtol: float = 0.05,
    h_init: float = 0.05,
    theta: float = 0.9,
    t_start: float | None = None,
    t_end: float | None = None,
    t_err: float = 1e-5,
    max_nfe: int = 1000,
    dense: bool = False,
) -> tuple[Tensor, AdaptiveStats]:
    """Solve the probability-flow ODE from x_T (B, *event) with automatic steps.

    Parameters
    ----------
    order : 2 (DPM-Solver-12) or 3 (DPM-Solver-23); an attempted step costs ``order`` evaluations.
    space : "noise" (DPM-Solver) or "data" (DPM-Solver++).
    atol, rtol : tolerances of the controller; the defaults are the published ones for 8-bit
        images in [-1, 1].
    h_init, theta : first step in lambda, safety factor in (0, 1).
    t_start, t_end : default the schedule's; lambda must be finite at both.
    t_err : the run ends when it is this close to t_end.
    max_nfe : raise `NFELimitError`, which holds the state reached, rather than go on.
    dense : also return an interpolant, for one evaluation more (at t_end).

    Returns (sample, `AdaptiveStats`). Raises ValueError for bad input before the network is
    called.
    """
    check_start(x_T, denoise)
    process = adaptive(
        schedule,
        x_T,
        denoise.prediction if isinstance(denoise, Denoiser) else "sample",
        order=order,
        space=space,
        solver_type=solver_type,
        atol=atol,
        rtol=rtol,
        h_init=h_init,
        theta=theta,
        t_start=schedule.t_start if t_start is None else t_start,
        t_end=schedule.t_end if t_end is None else t_end,
        t_err=t_err,
        max_nfe=max_nfe,
        dense=dense,
    )
    with torch.no_grad():
        return drive(process, denoise)


def adaptive(
    schedule: NoiseSchedule,
    x: Tensor,
    prediction: str,
    *,
    order: int,
    space: str,
    solver_type: str,
    atol: float,
    rtol: float,
    h_init: float,
    theta: float,
    t_start: float,
    t_end: float,
    t_err: float,
    max_nfe: int,
    dense: bool,
) -> Generator[Evaluation, Tensor, tuple[Tensor, AdaptiveStats]]:
    """The algorithm of `sample_adaptive` as a generator over evaluations; see there."""
    check_prediction(prediction)
    check_choice("order", order, tuple(INNER))
    check_choice("space", space, tuple(SPACES))
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    positive = {"atol": atol, "rtol": rtol, "h_init": h_init, "t_err": t_err}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: need a positive number")
    if not 0 < theta < 1:
        raise ValueError(f"theta={theta!r}: need a value in (0, 1)")
    if max_nfe < order:
        raise ValueError(f"max_nfe={max_nfe!r}: need at least order={order}")
    check_range(schedule, t_start, t_end)
    start, end = (node_at(schedule, float(t)) for t in (t_start, t_end))
    if not math.isfinite(start.lam) or not math.isfinite(end.lam):
        raise ValueError(
            f"t_start={t_start!r}, t_end={t_end!r}: lambda must be finite at both, but is "
            f"{start.lam:g} and {end.lam:g}"
        )
    dtype = x.dtype
    state = x.to(torch.promote_types(dtype, torch.float32))
    previous, h = state, h_init
    nfe = rejected = 0
    knots = [(start, state)]
    slopes: list[Tensor] = []

    def convert(output: Tensor, at: Tensor, node: Node) -> Tensor:
        map_ = to_target(prediction, node, SPACES[space])
        return map_.out * output.to(at.dtype) + map_.x * at

    while abs(start.t - t_end) > t_err:
        if nfe + order > max_nfe:
            raise NFELimitError(state.to(dtype), start.t, nfe, max_nfe)
        lams = [start.lam + r * h for r in (*INNER[order], 1.0)]
        nodes = [start, *(node_at(schedule, schedule.time(lam)) for lam in lams)]
        at = state
        outputs: list[Tensor] = []
        for index, node in enumerate(nodes[:-1]):
            if index:
                at = _combine(stages(space, nodes, 0, range(index), solver_type), state, outputs)
            output = yield Evaluation(at.to(dtype), node, nfe)
            nfe += 1
            outputs.append(convert(output, at, node))
        short = [*nodes[: order - 1], nodes[-1]]
        low = _combine(stages(space, short, 0, range(order - 1), solver_type), state, outputs)
        high = _combine(stages(space, nodes, 0, range(order), solver_type), state, outputs)
        delta = torch.clamp(rtol * torch.maximum(low.abs(), previous.abs()), min=atol)
        error = float(((high - low) / delta).flatten(1).square().mean(1).sqrt().max())
        if not math.isfinite(error):
            raise ValueError(f"the states are not finite after a step from t={start.t:.6g}")
        if error <= 1:
            slopes.append(_slope(start, state, outputs[0], space))
            start, state, previous = nodes[-1], high, low
            knots.append((start, state))
        else:
            rejected += 1
        h = min(theta * h * max(error, 1e-12) ** (-1 / order), end.lam - start.lam)
    interpolant = None
    if dense:
        output = yield Evaluation(state.to(dtype), start, nfe)
        nfe += 1
        slopes.append(_slope(start, state, convert(output, state, start), space))
        interpolant = _hermite(schedule, knots, slopes, dtype)
    times = tuple(node.t for node, _ in knots)
    return state.to(dtype), AdaptiveStats(nfe, rejected, times, interpolant)


def _combine(row: Row, state: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    result = row.states[0][1] * state
    for j, b in row.outputs:
        result = result + b * outputs[j]
    return result


def _slope(node: Node, x: Tensor, output: Tensor, space: str) -> Tensor:
    """d u / d lambda = a (x0 - a u) of the rotated state u = x / r; see `reference`."""
    r = math.hypot(node.alpha, node.sigma)
    a = node.alpha / r
    x0 = output if SPACES[space] == DATA else (x - node.sigma * output) / node.alpha
    return a * (x0 - a * x / r)


def _hermite(
    schedule: NoiseSchedule,
    knots: Sequence[tuple[Node, Tensor]],
    slopes: Sequence[Tensor],
    dtype: torch.dtype,
) -> Callable[[float], Tensor]:
    """Cubic Hermite interpolation of u over lambda, returned as states x at a time."""
    lams = [node.lam for node, _ in knots]
    scaled = [x / math.hypot(node.alpha, node.sigma) for node, x in knots]

    def dense(t: float) -> Tensor:
        low, high = knots[-1][0].t, knots[0][0].t
        if not low <= t <= high:
            raise ValueError(f"t={t!r}: need a time in [{low:g}, {high:g}]")
        node = node_at(schedule, t)
        left = max(i for i in range(len(lams) - 1) if i == 0 or lams[i] <= node.lam)
        h = lams[left + 1] - lams[left]
        s = (node.lam - lams[left]) / h
        u = (1 + 2 * s) * (1 - s) ** 2 * scaled[left] + s**2 * (3 - 2 * s) * scaled[left + 1]
        u = u + h * s * (1 - s) * ((1 - s) * slopes[left] - s * slopes[left + 1])
        return (u * math.hypot(node.alpha, node.sigma)).to(dtype)

    return dense
