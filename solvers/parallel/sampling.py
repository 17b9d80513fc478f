"""``sample_parallel``: a plan run parallel in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, check_start
from ..noise import along, check_noise, noise_source
from ..plan import Plan
from ..prediction import check_signals
from ..progress import progress_bar
from ..requests import Evaluate, drive_batches, evaluator
from .cost import predict, warn_if_slower
from .fixed_point import system_of
from .options import check_options
from .sweeps import Init, ParallelStats, Sweep, picard


def sample_parallel(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    plan: Plan,
    window: int | None = None,
    tolerance: float = 0.0,
    *,
    update: str = "semilinear",
    acceleration: str | None = "secant",
    data_scale: float = 1.0,
    published: bool = False,
    noise: Any = None,
    init: Init | None = None,
    evaluate: Evaluate | None = None,
    max_groups: int | None = None,
    devices: int | None = None,
    throughput: Mapping[int, float] | None = None,
    callback: Callable[[Sweep], None] | None = None,
    progress: bool = False,
) -> tuple[Tensor, ParallelStats]:
    """Run ``plan`` from x_T with many of its evaluations in one network call (ParaDiGMs).

    The result is that of ``sample``, up to the tolerance: equal to it for tolerance = 0. The
    network is called fewer times one after the other (``stats.sweeps``) but on more states in all
    (``stats.evaluations``): faster where a large batch costs little more than a small one.

    Parameters
    ----------
    denoise, x_T, plan, noise : as for ``sample``. A function (x, t) -> x0 that is not a `Denoiser`
        takes a single time, and is called once a point.
    window : at most so many evaluations of the plan in one network call; None is all of them. The
        memory grows with the window, not with the plan.
    tolerance : relative error of the sample, |x - x_sequential| / |x_sequential|, that is allowed,
        as estimated from the last two sweeps. 0.1 is the published choice for images; below some
        1e-2 the result cannot be told from the sequential one. For ``published``: a state is
        accepted once its root mean square changes by less than this share of the deviation of
        the noise that DDPM would add there.
    update : "semilinear", which keeps the linear part of the network that N(0, data_scale^2) has,
        or "literal", the published one. Both have the same limit.
    acceleration : "secant" learns the network's slope along the last change of every state (for
        "semilinear" only); None does not.
    data_scale : standard deviation of the data. Rough is enough: 1 for latents, 0.5 for images.
    published : guess and accept as the published code does: the last state is the guess, and the
        end of the plan is never accepted by the tolerance. With update="literal" the run is the
        published one, sweep by sweep.
    init : a function from a node to a guess (B, *event) of the states there, from an earlier or
        coarser run. Default: the plan itself, for the network of N(0, data_scale^2) at the start
        and with the newest data prediction held later.
    evaluate : how a batch of states is evaluated, in place of one call of ``denoise`` here; see
        ``batches.evaluator``.
    max_groups : at most so many points in one network call.
    devices : warn if ``sample`` is predicted to be faster than so many devices together; see
        ``parallel.cost``. Default: no prediction.
    throughput : groups -> seconds of one network call, for that prediction.
    callback : called with a `Sweep` after every sweep.
    progress : show a progress bar over the evaluated rows of the plan.

    Returns (sample, `ParallelStats`), the sample with the shape, dtype and device of x_T. No graph
    is kept, whatever requires grad: gradients are had from ``sample``, at the same result. Raises
    ValueError for bad input before the network is called, and for outputs that are not finite.
    """
    check_start(x_T, denoise)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r}: need a Plan, as make_plan returns it")
    check_options(window, tolerance, update, acceleration, data_scale)
    prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
    system_of(plan, prediction)  # raises where the prediction gives no target
    check_signals(plan, prediction, x_T.dtype)
    check_noise(noise, plan, x_T)
    if len(x_T) == 0:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}: need at least one sample")
    for name, function in (("init", init), ("evaluate", evaluate), ("callback", callback)):
        if function is not None and not callable(function):
            raise ValueError(f"{name}={function!r}: need a function, or None")
    evaluate = evaluate or evaluator(denoise, max_groups=max_groups)
    if devices is not None:
        options: dict[str, Any] = {"update": update, "acceleration": acceleration}
        options |= {"data_scale": data_scale, "published": published}
        warn_if_slower(
            predict(plan, window, tolerance, devices=devices, throughput=throughput, **options)
        )

    def watch(sweep: Sweep) -> None:
        if callback is not None:
            callback(sweep)
        show(sweep.accepted)

    process = picard(
        plan,
        x_T,
        prediction,
        draw=along(plan, noise_source(noise)),
        window=window,
        tolerance=tolerance,
        update=update,
        acceleration=acceleration,
        data_scale=data_scale,
        published=published,
        init=init,
        watch=watch,
    )
    with torch.no_grad(), progress_bar(plan.nfe, progress, unit="row") as show:
        return drive_batches(process, evaluate)
