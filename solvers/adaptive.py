r"""Adaptive step size: DPM-Solver-12 and -23 with the published controller.

A step of size h in lambda is taken twice, by a method of order p - 1 and one of order p that
shares its evaluations (Lu et al. 2022a, appendix C). With

    delta = max(atol, rtol max(|x_low|, |x_prev|)),

x_prev the lower solution of the last accepted step, the ratios (x_high - x_low) / delta tell the
controller (see `step_size`) whether to accept the step and how long the next one is.

Near pure noise the difference of two solutions says nothing, and a controller either creeps or
jumps over everything. A start with alpha / sigma below 1 / 1000, alpha = 0 included, therefore
begins with one first-order step to rho = sigma / alpha = max(200, 7 / sqrt(atol)), whose error,
about 1 / (2 rho^2) for data of scale 1, is far below the tolerance.

The algorithm is a generator, so it works through every driver; the size of a step depends on the
states, so it is not a `Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .denoiser import Denoiser, check_start
from .grids import check_range, node_at
from .hermite import Hermite
from .methods.dpm_solver import SOLVER_TYPES, stages
from .methods.multistep import SPACES, first_order
from .methods.pure_noise import DEEP
from .noise import noise_source
from .plan import DATA, Node, Plan, Row
from .prediction import check_prediction, check_signal, to_data
from .registry import check_choice
from .requests import Evaluation, drive, single
from .running import executor_for
from .schedules import NoiseSchedule
from .step_size import PID, Controller, Published

INNER = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where the inner evaluations lie, as shares of the step in lambda."""

NEAR = 1e-3
"""alpha / sigma below which a start is too near to pure noise for a controller."""


@dataclass(frozen=True)
class AdaptiveStats:
    """What an adaptive run did. ``times`` are those of the accepted nodes, start and end included.

    ``nfe`` counts every evaluation, those of rejected steps too. ``dense`` maps a time between
    the ends to the state there (see `Hermite`), if it was asked for.
    """

    nfe: int
    rejected: int
    times: tuple[float, ...]
    dense: Hermite | None = field(default=None, repr=False)


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
    pid: PID | None = None,
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
    pid : the coefficients of k-diffusion's controller, in place of the published one and theta.
    t_start, t_end : default the schedule's; lambda must be finite at t_end.
    t_err : the run ends when it is this close to t_end.
    max_nfe : raise `NFELimitError`, which holds the state reached, rather than go on.
    dense : also return an interpolant, for one evaluation more (at t_end).

    Returns (sample, `AdaptiveStats`). Raises ValueError for bad input before the network is
    called.
    """
    check_start(x_T, denoise)
    process = adaptive(
        schedule,
        x_T.clone(),  # which an attempt may start from again, and which is the caller's
        denoise.prediction if isinstance(denoise, Denoiser) else "sample",
        order=order,
        space=space,
        solver_type=solver_type,
        atol=atol,
        rtol=rtol,
        h_init=h_init,
        theta=theta,
        pid=pid,
        t_start=schedule.t_start if t_start is None else t_start,
        t_end=schedule.t_end if t_end is None else t_end,
        t_err=t_err,
        max_nfe=max_nfe,
        dense=dense,
    )
    with torch.no_grad():
        return drive(process, single(denoise))


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
    pid: PID | None = None,
    t_start: float,
    t_end: float,
    t_err: float,
    max_nfe: int,
    dense: bool,
) -> Generator[Evaluation, Tensor | None, tuple[Tensor, AdaptiveStats]]:
    """The algorithm of `sample_adaptive` as a generator over evaluations; see there."""
    check_prediction(prediction)
    check_choice("order", order, tuple(INNER))
    check_choice("space", space, ("data", "noise"))
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    positive = {"atol": atol, "rtol": rtol, "h_init": h_init, "t_err": t_err}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: need a positive number")
    if not 0 < theta < 1:
        raise ValueError(f"theta={theta!r}: need a value in (0, 1)")
    if pid is not None and not isinstance(pid, PID):
        raise ValueError(f"pid={pid!r}: need a PID, or None")
    if pid is not None and theta != 0.9:
        raise ValueError(f"theta={theta!r} was given beside pid, which has no such factor")
    if max_nfe < order:
        raise ValueError(f"max_nfe={max_nfe!r}: need at least order={order}")
    check_range(schedule, t_start, t_end)
    start, end = (node_at(schedule, float(t)) for t in (t_start, t_end))
    if not math.isfinite(end.lam):
        raise ValueError(f"t_end={t_end!r}: lambda must be finite there, but is {end.lam:g}")
    dtype = x.dtype
    state = x.to(torch.promote_types(dtype, torch.float32))
    previous = state
    controller: Controller = Published(h_init, order, theta)
    if pid is not None:
        controller = pid.start(h_init, order)
    nfe = rejected = 0
    times = [start.t]
    path = Hermite(schedule, dtype, float(t_end)) if dense else None

    def evaluate(at: Tensor, node: Node) -> Generator[Evaluation, Tensor | None, Tensor]:
        nonlocal nfe
        output = None
        while output is None:  # None: the network wrote to its input, which is a copy
            output = yield Evaluation(at.to(dtype, copy=True), node, nfe)
        nfe += 1
        return output.to(at.dtype)

    def data(output: Tensor, at: Tensor, node: Node) -> Tensor:
        return to_data(prediction, node)(output, at)

    inner = node_at(schedule, schedule.time(math.log(min(DEEP, math.sqrt(atol) / 7))))
    if start.alpha < NEAR * start.sigma and start.lam < inner.lam:
        check_signal(prediction, start, dtype)
        inner = inner if inner.t > end.t else end
        x0 = data((yield from evaluate(state, start)), state, start)
        if path is not None:
            path.begin(start, state, x0)
        a, b = first_order(DATA, start, inner)
        start, state = inner, a * state + b * x0
        previous = state
        times.append(start.t)
    while abs(start.t - t_end) > t_err:
        if nfe + order > max_nfe:
            raise NFELimitError(state.to(dtype), start.t, nfe, max_nfe)
        left = end.lam - start.lam
        h = min(controller.h, left)
        lams = [start.lam + r * h for r in (*INNER[order], 1.0)]
        nodes = [start, *(node_at(schedule, schedule.time(lam)) for lam in lams)]
        plan = _step(nodes, space, solver_type)
        step = executor_for(plan, state, prediction, differentiable=torch.is_grad_enabled())
        outputs: list[Tensor] = []
        for k, row in enumerate(plan.rows):
            if k > 0:
                step.combine(k, noise_source(None))
            if row.evaluated:
                outputs.append((yield from evaluate(step.waiting, row.node)))
                step.evaluate(k, outputs[-1], shared=False)
        low, high = step.held(order), step.waiting
        delta = torch.clamp(rtol * torch.maximum(low.abs(), previous.abs()), min=atol)
        ratios = (high - low) / delta
        if not torch.isfinite(ratios.square()).all():
            raise ValueError(f"the states are not finite after a step from t={start.t:.6g}")
        if controller.judge(ratios, left):
            if path is not None:
                path.add(start, state, data(outputs[0], state, start))
            start, state, previous = nodes[-1], high, low
            times.append(start.t)
        else:
            rejected += 1
    if path is not None:
        path.add(start, state, data((yield from evaluate(state, start)), state, start))
    return state.to(dtype), AdaptiveStats(nfe, rejected, tuple(times), path)


def _step(nodes: Sequence[Node], space: str, solver_type: str) -> Plan:
    """A step by both methods: the rows evaluated, the lower solution, and the higher one."""
    order, target = len(nodes) - 1, SPACES[space]
    inner = [stages(space, nodes, 0, range(k), solver_type) for k in range(1, order)]
    low = stages(space, [*nodes[:-2], nodes[-1]], 0, range(order - 1), solver_type)
    high = stages(space, nodes, 0, range(order), solver_type)
    evaluated = [replace(row, target=target) for row in (Row(nodes[0]), *inner)]
    return Plan((*evaluated, low, high))
