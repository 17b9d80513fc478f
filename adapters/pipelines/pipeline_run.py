"""Any of our algorithms through an unmodified diffusers pipeline.

A `Plan` has its times beforehand and is what `PlanScheduler` runs. Adaptive steps, a reference
solution, parallel sampling choose theirs as they go; `run_pipeline` lets them choose in the loop
of a pipeline, which brings its own prompts, guidance, ControlNet, decoding.

    run = run_pipeline(pipe, adaptive(rtol=0.02), prompt="an owl", num_inference_steps=60)
    run.output.images[0]; run.stats.evaluations
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from logsnr.solvers import Plan
from logsnr.solvers.fitted_to import fitted_to, warn

from .algorithm import Algorithm, as_algorithm
from .call_arguments import spread
from .loop_scheduler import LoopScheduler
from .networks import Networks

BEGIN_LATER = ("strength", "denoising_start")
_MISSING = object()


@dataclass(frozen=True)
class PipelineStats:
    """What a run did.

    Attributes
    ----------
    iterations : of the pipeline's loop, up to the algorithm's end.
    evaluations : what the algorithm asked for: its NFE (batched: of B states each).
    unused : evaluations that it did not ask for: of the start state, if it begins elsewhere, and
        batched the repeats that fill an iteration.
    after_end : iterations that the loop made after the end; they cost no network call.
    calls : of each network that is told a time. Guidance in two calls an iteration counts twice.
    """

    iterations: int
    evaluations: int
    unused: int
    after_end: int
    calls: dict[str, int]


@dataclass(frozen=True)
class PipelineRun:
    """What `run_pipeline` returns: the pipeline's own output, the algorithm's result, the cost.

    ``result`` is None if the pipeline was interrupted before the algorithm ended.
    """

    output: Any
    result: Any
    stats: PipelineStats


def run_pipeline(
    pipe: Any,
    algorithm: Plan | Algorithm | Callable[..., Any],
    *,
    whole_timesteps: bool = False,
    noise: Any = None,
    **call_kwargs: Any,
) -> PipelineRun:
    """Call ``pipe(**call_kwargs)`` with ``algorithm`` in the place of its scheduler's steps.

    Parameters
    ----------
    pipe : a diffusers pipeline. Its scheduler's config says what the model is and where a run
        begins and ends, as `PlanScheduler.from_config` reads it; for another grid give the pipeline
        a `PlanScheduler` with it, which is kept to. Nothing of the pipeline is changed after the
        call.
    algorithm : a `Plan`; or `adaptive`, `reference`, `parallel`, any `Algorithm`; or a function
        (x_T, loop) -> generator of `Evaluation`, see `Loop`.
    whole_timesteps : tell variance-preserving networks the nearest whole training step, not the
        time itself (a float32 with a fraction). Flow models are always told the time itself.
    noise : of stochastic plans, as that of `sample`. None is that of the pipeline's `PlanScheduler`
        (its ``noise`` or ``noise_seed``), else what the call's ``generator`` draws.
    call_kwargs : of the pipeline's call. ``num_inference_steps`` is the most iterations that an
        algorithm may make which does not know beforehand how many it needs.

    Raises ValueError, and leaves the pipeline as it was,

    * for a ``pipe`` without a scheduler or an ``algorithm`` of another kind,
    * for self-attention guidance, which works at whole training steps only, without
      ``whole_timesteps``, and for that and FreeInit with an algorithm that works in batches,
    * if the algorithm needs more iterations than ``num_inference_steps``,
    * for pipelines that read their times up front, that step copies of their scheduler, or that
      change the state between evaluations, if the algorithm cannot follow,
    * for everything that `PlanScheduler` refuses.
    """
    chosen = as_algorithm(algorithm)
    own: Any = getattr(pipe, "scheduler", None)
    if not hasattr(own, "config"):
        raise ValueError(f"pipe={type(pipe).__name__} has no scheduler: need a diffusers pipeline")
    _check_loop(pipe, chosen, call_kwargs, whole_timesteps)
    parameters = inspect.signature(type(pipe).__call__).parameters
    if isinstance(algorithm, Plan) and (note := fitted_to(algorithm)) is not None:
        warn(algorithm, note.differences(guidance=_guidance(parameters, call_kwargs)))
    generator = call_kwargs.get("generator")
    if chosen.groups is not None:
        call_kwargs = spread(pipe, call_kwargs, chosen.groups)
    # A PlanScheduler's grid is kept; on another scheduler's model the algorithm may name a solver.
    keep = chosen.solver is None or "solver" in own.config
    named: dict[str, Any] = {} if keep else {"solver": chosen.solver}
    # Statistics and a plan are for PlanScheduler's own runs, and may be those that are being made.
    scheduler = LoopScheduler.from_config(own.config, ems=None, plan=None, **named)
    scheduler.noise = getattr(own, "noise", None) if noise is None else noise
    flag = vars(pipe).pop("_interrupt", _MISSING)
    with Networks(pipe) as networks:
        scheduler.attach(
            pipe,
            chosen,
            networks,
            generator=generator,
            whole_timesteps=whole_timesteps,
            may_begin_later=any(name in parameters for name in BEGIN_LATER),
        )
        pipe.scheduler = scheduler
        try:
            output = pipe(**call_kwargs)
            interrupted = bool(getattr(pipe, "_interrupt", False))
        finally:
            pipe.scheduler = own
            vars(pipe).pop("_interrupt", None)
            if flag is not _MISSING:
                pipe._interrupt = flag
    algorithm_run, counts = scheduler.algorithm_run, scheduler.counts
    if algorithm_run is None or not (algorithm_run.done or interrupted):
        raise ValueError(
            f"{type(pipe).__name__} ended its loop after {counts.iterations} iterations, before "
            "the algorithm did (denoising_end?)"
        )
    stats = PipelineStats(
        iterations=counts.iterations,
        evaluations=counts.evaluations,
        unused=counts.unused,
        after_end=counts.after_end,
        calls=dict(networks.calls),
    )
    return PipelineRun(output, algorithm_run.result, stats)


def _guidance(
    parameters: Mapping[str, inspect.Parameter], call_kwargs: Mapping[str, Any]
) -> tuple[float, ...]:
    """The scale of guidance of a call; none where the pipeline has no argument of that name."""
    if "guidance_scale" not in parameters:
        return ()
    scale = call_kwargs.get("guidance_scale", parameters["guidance_scale"].default)
    return (float(scale),) if isinstance(scale, int | float) else ()


def _check_loop(
    pipe: Any, algorithm: Algorithm, call_kwargs: Mapping[str, Any], whole_timesteps: bool
) -> None:
    """ValueError if the loop of ``pipe`` does something that the algorithm cannot follow."""
    truncation = call_kwargs.get("cfg_truncation")
    if truncation is not None and truncation < 1:
        raise ValueError(
            f"cfg_truncation={truncation!r}: the pipeline reads its times up front to apply it; "
            "need None, or PlanScheduler"
        )
    batched, name = algorithm.groups is not None, type(pipe).__name__
    if batched and getattr(pipe, "free_init_enabled", False):
        raise ValueError(
            f"{name} runs its loop again on the samples of the first time (FreeInit), of which an "
            "algorithm that evaluates several at once hands back one for each prompt: call "
            "disable_free_init(), or use an algorithm that evaluates one at a time"
        )
    if hasattr(pipe, "sag_masking"):
        looked_up = f"{name} looks up the noise level of its timestep for self-attention guidance"
        if batched:
            raise ValueError(
                f"{looked_up}, which is another for each sample of an algorithm that evaluates "
                "several at once: use an algorithm that evaluates one at a time"
            )
        if not whole_timesteps:
            raise ValueError(
                f"{looked_up} in a table of the training steps: give whole_timesteps=True"
            )
