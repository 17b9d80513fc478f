r"""Running a plan: a generator that never sees a network.

``run`` yields `Evaluation` (a state and its node), is sent the network's output there, and
returns the sample. Whoever drives it decides where the network lives: `sample` is the plain
loop, a diffusers pipeline drives it from ``scheduler.step``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .denoiser import Denoiser, check_start
from .executor import Executor
from .fitted_to import warn_if_other
from .noise import check_noise, noise_source
from .plan import Node, Plan
from .prediction import check_prediction, check_signals, to_data
from .products import Products
from .progress import progress_bar
from .requests import Evaluation, drive, single
from .shared_noise import NoiseSource, along
from .state_edits import version
from .step_densities import StepDensities
from .terms import Terms

Run = Generator[Evaluation, Tensor | None, Tensor]


def run(
    plan: Plan,
    x: Tensor,
    prediction: str = "sample",
    *,
    noise: NoiseSource | None = None,
    differentiable: bool = False,
) -> Run:
    """Generator over the evaluations of ``plan`` from the start state x (B, *event).

    Send it the network's output, which is of type ``prediction``. States and history are kept in
    float32 or better; every state handed out has x's dtype. x itself is neither kept nor handed
    out, nor is any state still needed once its evaluation is over: what becomes of those tensors
    then does not touch the run.

    An edit of a state is transported to the other states that the plan still needs (the corrected
    state of a predictor-corrector, the start of a singlestep block) along the linear part of the
    plan's own rows, sigma_j / sigma_k in data space and alpha_j / alpha_k in noise space, and a
    corrector does not undo it (see `state_edits`).
    """
    check_prediction(prediction)
    check_noise(noise, plan, x)
    # One copy is the run's own, one is handed out: x is the caller's.
    executor = executor_for(plan, x.clone(), prediction, differentiable=differentiable)
    return proceed(executor, x.clone(), noise_source(noise, plan))


def executor_for(
    plan: Plan, x: Tensor, prediction: str, *, differentiable: bool = False
) -> Products | Terms:
    """What fills in the rows of ``plan`` from the start state x.

    Raises ValueError where the network's prediction tells nothing of what a row asks for.
    """
    check_signals(plan, prediction, x.dtype)
    if plan.numeric and not differentiable:
        return Products(plan, prediction, x)
    return Terms(plan, prediction, x)


def proceed(executor: Executor, handed: Tensor, draw: NoiseSource, begin: int = 0) -> Run:
    """`run` from row ``begin`` on, whose state was ``handed`` out and waits in ``executor``.

    A generator cannot be copied, but an executor can: this goes on from a copy.
    """
    rows, dtype = executor.plan.rows, handed.dtype
    draw = along(executor.plan, draw, executor.memory, begin)
    precise = executor.waiting
    as_given = precise.dtype == dtype
    for k, row in enumerate(rows[begin:], begin):
        if k > begin:
            precise = executor.combine(k, draw)
        if row.target is None:
            continue
        if k > begin:
            handed = precise if as_given else precise.to(dtype)
        output = None
        while output is None:
            handed_version = version(handed)
            evaluation = Evaluation(handed, row.node, k)
            output = yield evaluation
            if output is None:
                if as_given and k > begin:
                    precise = handed = executor.again(k)
                else:
                    handed = precise.to(dtype, copy=True)
        if output.shape != handed.shape:
            raise ValueError(
                f"output has shape {tuple(output.shape)}: need that of x, {tuple(handed.shape)}"
            )
        if evaluation.x is not handed or version(handed) != handed_version:
            edited = evaluation.x.to(precise.dtype)
            if not as_given:  # what was not changed keeps its precision
                edited = edited + (precise - precise.to(dtype))
            executor.edit(k, edited)
        executor.evaluate(k, output, shared=as_given)
    return precise.to(dtype)


@dataclass(frozen=True)
class Step:
    """What a callback of `sample` sees after each network evaluation.

    ``x`` (B, *event) is the state at ``node``, ``x0`` the data prediction there, ``evaluation``
    counts from 1 to ``plan.nfe``.
    """

    evaluation: int
    node: Node
    x: Tensor
    x0: Tensor
    plan: Plan


Denoise = Denoiser | Callable[[Tensor, float], Tensor]


@overload
def sample(
    denoise: Denoise,
    x_T: Tensor,
    plan: Plan,
    *,
    noise: Any = ...,
    callback: Callable[[Step], None] | None = ...,
    progress: bool = ...,
    differentiable: bool = ...,
    log_prob: Literal[False] = ...,
    states: Literal[False] = ...,
) -> Tensor: ...


@overload
def sample(
    denoise: Denoise,
    x_T: Tensor,
    plan: Plan,
    *,
    noise: Any = ...,
    callback: Callable[[Step], None] | None = ...,
    progress: bool = ...,
    differentiable: bool = ...,
    log_prob: bool = ...,
    states: bool = ...,
) -> Any: ...


def sample(
    denoise: Denoise,
    x_T: Tensor,
    plan: Plan,
    *,
    noise: Any = None,
    callback: Callable[[Step], None] | None = None,
    progress: bool = False,
    differentiable: bool = False,
    log_prob: bool = False,
    states: bool = False,
) -> Any:
    """Run ``plan`` from x_T: the plain loop over `run`.

    Parameters
    ----------
    denoise : a `Denoiser`, or any data prediction (x, t) -> x0 with t a float of the schedule.
    x_T : start states (B, *event) at the plan's first node: alpha x0 + sigma eps, so about
        N(0, sigma^2). float64 keeps the run in float64, every other type accumulates in float32.
    noise : for plans that add noise, see ``noise_source``.
    callback : called with a `Step` after every evaluation.
    progress : show a progress bar over the evaluations.
    differentiable : keep the graph. Implied by coefficients or x_T that require grad, unless
        gradients are switched off; otherwise the run happens under ``torch.no_grad``.
    log_prob : return the log density of each stochastic step given the states before it, too:
        (B, S) in nats, float64, summed over the event, for the S steps that add noise, in order
        (see `step_densities`). Where the graph is kept it is that of the densities, for which the
        states of the steps are given values: neither they nor what follows from them alone have a
        gradient, and that of ``log_prob`` is what the policy gradient multiplies by the reward.
    states : return x_T and the states of those S steps, too: (B, S + 1, *event), in the precision
        in which the run accumulates. `step_log_prob` takes them.

    Returns the sample, with the shape, dtype and device of x_T; or the tuple (sample, log_prob),
    (sample, states) or (sample, log_prob, states), as asked for. Raises ValueError for bad input
    before the network is called, and for network outputs that are not finite, naming the time.
    """
    check_start(x_T, denoise)
    prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
    if not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r}: need a Plan, as make_plan returns it")
    source = noise_source(noise, plan)
    check_noise(noise, plan, x_T)
    wanted = x_T.requires_grad or plan.requires_grad
    differentiable = differentiable or (wanted and torch.is_grad_enabled())
    warn_if_other(plan, denoise, x_T)
    executor = executor_for(plan, x_T.clone(), prediction, differentiable=differentiable)
    if log_prob or states:
        executor.densities = StepDensities(plan, keep_states=states)
    process = proceed(executor, x_T.clone(), source)

    counts = count(1)

    def watch(evaluation: Evaluation, output: Tensor) -> None:
        done, x, node = next(counts), evaluation.x, evaluation.node
        if callback is not None:
            callback(Step(done, node, x, to_data(prediction, node)(output, x), plan))
        show(done)

    bar = progress_bar(plan.nfe, progress, unit="evaluation")
    with torch.set_grad_enabled(differentiable), bar as show:
        result = drive(process, single(denoise, plan), watch)
        return _with_steps(result, x_T, executor.densities, log_prob, states)


def _with_steps(
    result: Tensor, x_T: Tensor, steps: StepDensities | None, log_prob: bool, states: bool
) -> Tensor | tuple[Tensor, ...]:
    if steps is None:
        return result
    found = [result]
    if log_prob:
        each = list(steps.log_probs.values())
        none = torch.zeros(len(x_T), 0, dtype=torch.float64, device=x_T.device)
        found.append(torch.stack(each, dim=1) if each else none)
    if states:
        dtype = torch.promote_types(x_T.dtype, torch.float32)
        found.append(torch.stack([x_T.detach().to(dtype), *steps.states.values()], dim=1))
    return tuple(found)
