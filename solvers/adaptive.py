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

from .adaptive_options import AdaptiveRun
from .denoiser import Denoiser, check_start
from .grids import check_range, node_at
from .hermite import Hermite
from .keywords import takes
from .methods.dpm_solver import stages
from .methods.multistep import SPACES, first_order
from .methods.pure_noise import DEEP
from .noise import noise_source
from .plan import DATA, Node, Plan, Row
from .prediction import check_prediction, check_signal, to_data
from .requests import Evaluation, drive, single
from .running import executor_for
from .schedules import NoiseSchedule

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


@takes(AdaptiveRun)
def sample_adaptive(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    options: AdaptiveRun,
) -> tuple[Tensor, AdaptiveStats]:
    """Solve the probability-flow ODE from x_T (B, *event) with automatic steps.

    Parameters
    ----------
    denoise, x_T : as for ``sample``.
    schedule : whose ODE it is.
    options : those of `AdaptiveSteps` and of `AdaptiveRun`.

    Returns (sample, `AdaptiveStats`). Raises ValueError for bad input before the network is
    called.
    """
    check_start(x_T, denoise)
    prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
    # A clone: an attempt may start from it again, and x_T is the caller's.
    process = adaptive(schedule, x_T.clone(), prediction, options=options)
    with torch.no_grad():
        return drive(process, single(denoise))


@takes(AdaptiveRun)
def adaptive(
    schedule: NoiseSchedule, x: Tensor, prediction: str, *, options: AdaptiveRun
) -> Generator[Evaluation, Tensor | None, tuple[Tensor, AdaptiveStats]]:
    """The algorithm of `sample_adaptive` as a generator over evaluations; see there."""
    check_prediction(prediction)
    order, space, solver_type = options.order, options.space, options.solver_type
    t_start = schedule.t_start if options.t_start is None else options.t_start
    t_end = schedule.t_end if options.t_end is None else options.t_end
    check_range(schedule, t_start, t_end)
    start, end = (node_at(schedule, float(t)) for t in (t_start, t_end))
    if not math.isfinite(end.lam):
        raise ValueError(f"t_end={t_end!r}: lambda must be finite there, but is {end.lam:g}")
    dtype = x.dtype
    state = x.to(torch.promote_types(dtype, torch.float32))
    previous = state
    controller = options.controller()
    nfe = rejected = 0
    times = [start.t]
    path = Hermite(schedule, dtype, float(t_end)) if options.dense else None

    def evaluate(at: Tensor, node: Node) -> Generator[Evaluation, Tensor | None, Tensor]:
        nonlocal nfe
        output = None
        while output is None:  # None: the network wrote to its input, which is a copy
            output = yield Evaluation(at.to(dtype, copy=True), node, nfe)
        nfe += 1
        return output.to(at.dtype)

    def data(output: Tensor, at: Tensor, node: Node) -> Tensor:
        return to_data(prediction, node)(output, at)

    inner = node_at(schedule, schedule.time(math.log(min(DEEP, math.sqrt(options.atol) / 7))))
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
    while abs(start.t - t_end) > options.t_err:
        if nfe + order > options.max_nfe:
            raise NFELimitError(state.to(dtype), start.t, nfe, options.max_nfe)
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
        delta = torch.clamp(
            options.rtol * torch.maximum(low.abs(), previous.abs()), min=options.atol
        )
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
