"""``sample_parallel``: a plan run parallel in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..denoiser import Denoiser, check_start
from ..fitted_to import warn_if_other
from ..keywords import takes
from ..noise import check_noise, noise_source
from ..plan import Plan
from ..prediction import check_signals
from ..progress import progress_bar
from ..requests import drive_batches, evaluator
from .cost import predict, warn_if_slower
from .fixed_point import system_of
from .options import ParallelRun
from .sweeps import ParallelStats, Sweep, picard


@takes(ParallelRun)
def sample_parallel(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    plan: Plan,
    options: ParallelRun,
) -> tuple[Tensor, ParallelStats]:
    """Run ``plan`` from x_T with many of its evaluations in one network call (ParaDiGMs).

    The result is that of ``sample``, up to the tolerance: equal to it for tolerance = 0. The
    network is called fewer times one after the other (``stats.sweeps``) but on more states in all
    (``stats.evaluations``): faster where a large batch costs little more than a small one.

    Parameters
    ----------
    denoise, x_T, plan : as for ``sample``. A function (x, t) -> x0 that is not a `Denoiser` takes a
        single time, and is called once a point.
    options : those of `Picard` and of `ParallelRun`.

    Returns (sample, `ParallelStats`), the sample with the shape, dtype and device of x_T. No graph
    is kept, whatever requires grad: gradients are had from ``sample``, at the same result. Raises
    ValueError for bad input before the network is called, and for outputs that are not finite.
    """
    check_start(x_T, denoise)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r}: need a Plan, as make_plan returns it")
    prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
    system_of(plan, prediction)  # raises where the prediction gives no target
    check_signals(plan, prediction, x_T.dtype)
    check_noise(options.noise, plan, x_T)
    if len(x_T) == 0:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}: need at least one sample")
    evaluate = options.evaluate or evaluator(denoise, max_groups=options.max_groups)
    warn_if_other(plan, denoise, x_T)
    if options.devices is not None:
        devices, throughput = options.devices, options.throughput
        warn_if_slower(predict(plan, options=options, devices=devices, throughput=throughput))

    def watch(sweep: Sweep) -> None:
        if options.callback is not None:
            options.callback(sweep)
        show(sweep.accepted)

    process = picard(
        plan,
        x_T,
        prediction,
        draw=noise_source(options.noise, plan),
        options=options,
        init=options.init,
        watch=watch,
    )
    with torch.no_grad(), progress_bar(plan.nfe, options.progress, unit="row") as show:
        return drive_batches(process, evaluate)
