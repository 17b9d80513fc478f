"""The statistics of DPM-Solver-v3 for a pipeline's own network, guidance and prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from logsnr.solvers.estimation import OWN_NFE, estimation

from .pipeline_algorithm import Algorithm, Loop, Process
from .pipeline_algorithms import finite_ends


def statistics(
    data: Any = None, *, nodes: int = 120, samples: int = 256, groups: int = 8, **options: Any
) -> Algorithm:
    """Empirical model statistics as ``estimate_ems``, for the latents of a pipeline and one prompt.

    The result is an `EMS`, to be saved and handed to ``make_plan("dpm-solver-v3", ems=...)``; it
    belongs to the prompt's guidance scale. Nothing is sampled: call with ``output_type="latent"``.
    It takes about 5 samples (nodes + 1) evaluations, ``groups`` of them in one iteration.

    Parameters
    ----------
    data : latents (M, *event) as the pipeline's states are shaped, or None for samples that the
        model draws itself.
    nodes, samples, options : of ``estimate_ems``; the range is the pipeline's.
    """

    def process(x: Tensor, loop: Loop) -> Process:
        first, last = finite_ends(loop)
        return estimation(
            loop.schedule,
            data,
            first.t,
            last.t,
            nodes,
            samples,
            prediction=loop.prediction,
            batch_size=groups,
            shape=None if data is not None else x.shape[1:],
            dtype=x.dtype,
            device=x.device,
            **options,
        )

    # Five evaluations a sample and node, with a few nodes beyond the ends; its own samples first.
    # Standard errors come from at least eight groups of samples, which bounds what goes together.
    together = min(groups, max(1, samples // 8))
    iterations = -(-samples // together) * (5 * (nodes + 3) + OWN_NFE)
    return Algorithm(process, iterations=iterations, edits=False, groups=groups)
