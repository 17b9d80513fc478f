"""The statistics of DPM-Solver-v3 for a pipeline's own network, guidance and prompt."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from logsnr.solvers import FlowMatching
from logsnr.solvers.keywords import takes
from logsnr.solvers.model_statistics import OWN_NFE, estimation
from logsnr.solvers.model_statistics.contest import EVALUATIONS, MOST_STARTS
from logsnr.solvers.model_statistics.derivatives import RIPPLE_STEP
from logsnr.solvers.model_statistics.options import Estimation

from .algorithm import Algorithm, Loop, Process

LARGEST_SHIFT = 16


@dataclass(frozen=True)
class PipelineEstimation(Estimation):
    """What an estimation through a pipeline is told; the pipeline says what its states are.

    Parameters
    ----------
    t_start, t_end : the range; by default all of training, wherever the pipeline begins and ends.
    lam_step : the step of the derivative along the ODE. The networks of pipelines embed their
        times by sines; the default averages over what ripple that leaves in their outputs.
    about : JSON values that name the network and its guidance.
    """

    nodes: int = 120
    samples: int = 256
    _: KW_ONLY
    lam_step: float | None = RIPPLE_STEP
    about: dict[str, Any] | None = None


@takes(PipelineEstimation)
def statistics(data: Any = None, *, options: PipelineEstimation, groups: int = 8) -> Algorithm:
    """Empirical model statistics as ``estimate_ems``, for the latents of a pipeline and one prompt.

    The result is an `EMS`, for ``PlanScheduler(solver="dpm-solver-v3", ems=...)``; it belongs to
    the prompt's guidance scale. Nothing is sampled: call with ``output_type="latent"``. It takes
    about 5 samples (nodes + 1) evaluations, and 640 a start for the check, ``groups`` of them in
    one iteration.

    Parameters
    ----------
    data : latents (M, *event) as the pipeline's states are shaped, or None for samples that the
        model draws itself.
    groups : evaluations in one iteration.
    options : those of `PipelineEstimation`.
    """

    def process(x: Tensor, loop: Loop) -> Process:
        start, end = training_range(loop)
        given = dict(vars(options))
        given["t_start"] = start if options.t_start is None else options.t_start
        given["t_end"] = end if options.t_end is None else options.t_end
        return estimation(
            loop.schedule,
            data,
            **given,
            prediction=loop.prediction,
            batch_size=groups,
            shape=None if data is not None else x.shape[1:],
            dtype=x.dtype,
            device=x.device,
        )

    nodes, samples = options.nodes, options.samples
    # Five evaluations a sample and node, with a few nodes beyond the ends; its own samples first.
    # Standard errors come from at least eight groups of samples, which bounds what goes together.
    together = min(groups, max(1, samples // 8))
    iterations = -(-samples // together) * (5 * (nodes + 3) + OWN_NFE)
    if options.check:
        iterations += -(-min(MOST_STARTS, samples) // groups) * EVALUATIONS
    return Algorithm(process, iterations=iterations, edits=False, groups=groups)


def training_range(loop: Loop) -> tuple[float, float]:
    """The times between which a pipeline's nodes of finite lambda lie, whatever its steps.

    Where lambda is infinite at t = 0 or 1, the range ends one training step inside; for flow
    models at t = 1 nearer by `LARGEST_SHIFT`, because their nodes are shifted towards the noise.
    """
    schedule, step = loop.schedule, 1 / loop.training_steps
    start = schedule.t_start
    if schedule.alpha(start) == 0:
        start = 1 - (step / LARGEST_SHIFT if isinstance(schedule, FlowMatching) else step)
    return start, schedule.t_end or step
