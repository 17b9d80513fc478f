"""Parallel in time through a pipeline: a window of a plan's evaluations in each iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from logsnr.solvers import Plan
from logsnr.solvers.keywords import takes
from logsnr.solvers.parallel import Sweep, picard
from logsnr.solvers.parallel.options import Picard

from .algorithm import Algorithm, Loop, Process, called, check_fits


@dataclass(frozen=True)
class WindowedPicard(Picard):
    """How a plan is swept through a pipeline.

    Parameters
    ----------
    window : evaluations of the plan in one iteration.
    """

    window: int | None = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is None:
            raise ValueError("window=None: need a whole number of at least 1, through a pipeline")


@takes(WindowedPicard)
def parallel(
    plan: Plan | str | Callable[[Loop], Plan],
    *,
    options: WindowedPicard,
    callback: Callable[[Sweep], None] | None = None,
) -> Algorithm:
    """Picard sweeps over a plan, as `sample_parallel`: an iteration of the pipeline is a sweep.

    The pipeline is called for ``window`` samples of each prompt, and its memory grows with that.
    There are at most as many iterations as the plan has evaluations. The result is (sample,
    `ParallelStats`), for tolerance = 0 the sample of the sequential run.

    Parameters
    ----------
    plan : a plan on the pipeline's schedule; or the name of a solver, whose run is then that of
        ``PlanScheduler.from_config(pipe.scheduler.config, solver=plan)``; or a function of the
        `Loop` (``lambda loop: loop.plan("unipc", order=3)``).
    options : those of `WindowedPicard`.
    callback : called with a `Sweep` after every sweep.

    Raises ValueError for values out of range.
    """
    if not (isinstance(plan, Plan | str) or callable(plan)):
        raise ValueError(f"plan={plan!r}: need a Plan, a solver's name or a function of the loop")

    def chosen(loop: Loop) -> Plan:
        if isinstance(plan, Plan):
            return plan
        return loop.plan(plan) if isinstance(plan, str) else plan(loop)

    def process(x: Tensor, loop: Loop) -> Process:
        if isinstance(plan, Plan):
            check_fits(plan, loop)
        return picard(
            chosen(loop),
            x,
            loop.prediction,
            draw=loop.noise,
            options=options,
            from_start=True,
            watch=callback,
        )

    return Algorithm(
        process,
        iterations=plan.nfe if isinstance(plan, Plan) else None,
        edits=False,
        groups=options.window,
        solver=plan if isinstance(plan, str) else None,
        opening=lambda loop: called(chosen(loop))[: options.window],
    )
