r"""``estimate_ems``: the estimation driven with a network; ``estimation``: left to a driver."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as Folder
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..plan import Plan
from ..progress import Show, progress_bar
from ..registry import check_choice, check_kind
from ..requests import Batch, evaluator
from ..schedules import NoiseSchedule
from .accumulators import read_settings
from .conditions import check_conditions, conditioned
from .contest import check as check_of
from .derivatives import (
    WAYS,
    Ways,
    choose_step,
    choose_ways,
    default_steps,
    differences,
    measure,
    ripples,
)
from .ems import EMS
from .memory import budget, bytes_of
from .probes import Probe, SampleBatch, Steps
from .rounds import Estimation, Setup, process
from .samples import Data
from .setup import prepare, trial
from .shared import World

Result = TypeVar("Result")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def estimate_ems(
    denoise: Denoiser,
    data: Any,
    t_start: float | None = None,
    t_end: float | None = None,
    nodes: int = 240,
    samples: int = 1024,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    group: int | None = None,
    granularity: str = "coordinate",
    jacobian: str = "auto",
    derivative: str = "auto",
    lam_step: float | None = None,
    stop: float | None = None,
    checkpoint: str | Folder | None = None,
    shape: Sequence[int] | None = None,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    check: bool = True,
    progress: Show = False,
) -> EMS:
    """The empirical model statistics of a network, for ``make_plan("dpm-solver-v3", ems=...)``.

    It takes about 5 samples (nodes + 1) evaluations of one state, and 640 a start for the check.

    Parameters
    ----------
    denoise : the network, with its condition or guidance: statistics belong to a guidance scale.
        A condition tensor has one entry for all samples, or ``samples`` entries, entry i for
        sample i.
    data : training data, or None for the model's own samples (then ``shape`` is needed). A
        tensor or array (M, *event); a dataset, or an iterable, of samples (labels beside them are
        ignored); the path of a folder of images of one size, or of an .npy or .safetensors file.
        8-bit values are scaled to [-1, 1]. Samples are taken in an order that ``seed`` shuffles,
        again from the start if there are too few; an iterable is read once, in its own order.
    t_start, t_end : the range to sample on later; the schedule's own by default.
    nodes : number of intervals in lambda; ``ems.lam`` has nodes + 1 entries.
    samples : number of samples, at most.
    seed : of samples, noise and signs. The result depends on the seed, not on the batch size.
    batch_size : states in one network call; by default as many as memory holds: half of what is
        free on an accelerator, else 128 MB, or a quarter of what is free if that is less.
    group : samples behind one of the estimates whose scatter gives the standard errors; by
        default that of the checkpoint, else the largest power of two up to 32 that leaves eight
        groups.
    granularity : "coordinate", "channel" (the first event axis) or "scalar": which coordinates
        share one value. Pooled moments take less disk and give smaller errors.
    jacobian : how the products with the Jacobian are had: "jvp" (forward mode), "difference"
        (central differences of outputs, for pipelines and exported networks), or "auto": "jvp" if
        it works and agrees with "difference".
    derivative : the same for the derivative along the ODE. "auto" takes differences for networks
        of discrete time, see `ways`.
    lam_step : step of the differences along the ODE, in lambda.
    stop : end when the standard errors of l, of s, and of b in units of the root mean square of
        df/dlambda are all below this number (median over the coordinates of a node and over the
        nodes); checked after every group from the eighth on.
    checkpoint : a folder that keeps the work: after a kill, the same call goes on from the last
        batch at the last node and gives the result of an undisturbed run. A finished estimation
        is extended by a larger ``samples``. Without it a temporary folder is used. Either holds
        208 bytes for each node and coordinate.
    shape : event shape of a sample; needed for data=None, else checked.
    plan : how the model's own samples are drawn; by default UniPC with 32 evaluations.
    dtype, device : of the states; by default those of the network's parameters, or of the data.
    check : end with a comparison with the degenerate statistics, on 16 starts at 5 to 20
        evaluations: ``ems.verdict``, by which a plan decides whether it uses the statistics.
    progress : show a progress bar; or what to call with the number of probes done and of all.

    Where torch.distributed is initialised, its processes share the work and all get the result,
    which is that of one process.

    Returns statistics with standard errors (from two groups on), and with all settings in
    ``ems.about``. Raises ValueError for a bad argument before the network is called, and for a
    checkpoint of another estimation or network.
    """
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser, for its schedule and prediction")
    check_choice("jacobian", jacobian, WAYS)
    check_choice("derivative", derivative, WAYS)
    _check_no_dropout(denoise)
    parameter = _parameter(denoise)
    if dtype is None and parameter is not None:
        dtype = parameter.dtype if denoise.dtype is None else torch.float32
    if device is None and parameter is not None:
        device = parameter.device
    setup, source = prepare(
        denoise.schedule,
        data,
        prediction=denoise.prediction,
        t_start=t_start,
        t_end=t_end,
        nodes=nodes,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        group=_stored_group(checkpoint) if group is None else group,
        granularity=granularity,
        stop=stop,
        lam_step=lam_step,
        shape=shape,
        plan=plan,
        dtype=dtype,
        device=device,
    )
    check_kind("check", check, True)
    own_conditions = check_conditions(denoise, samples)
    denoise.check_input(torch.empty(0, *setup.event, dtype=setup.dtype, device=setup.device))
    precision = setup.dtype if denoise.dtype is None else denoise.dtype
    rippling = ripples(denoise.schedule, denoise.network_time)
    steps = default_steps(precision, lam_step, rippling=rippling)

    def answer(request: Batch | Probe, ways: Ways, rows: int) -> Any:
        assert isinstance(request, Probe | SampleBatch)
        here = conditioned(denoise, request.samples, samples)
        evaluate = evaluator(here, max_groups=max(1, rows // len(request.samples)))
        if isinstance(request, Probe):
            return measure(request, here, setup.path, ways, evaluate)
        return evaluate(request.x, [node.t for node in request.nodes])

    def choose(ways: Ways, rows: int) -> Ways:
        probe = trial(setup)
        if lam_step is None and not rippling and derivative != "jvp":
            chosen = choose_step(probe, denoise.prediction, setup.path, steps)
            found, note = _drive(chosen, lambda batch: answer(batch, ways, rows))
            ways = replace(ways, steps=found, note=note)
        return choose_ways(ways, denoise, lambda ways: answer(probe, ways, rows))

    with torch.no_grad(), _folder(checkpoint) as folder:
        stored = _stored(folder)
        rows = batch_size or stored.get("rows") or _rows(denoise, setup, samples)
        wanted = Ways(jacobian, derivative, steps)
        ways = _agreed(_stored_ways(stored, wanted, lam_step) or choose(wanted, rows))
        setup = replace(setup, rows=rows)
        settings = {**setup.settings, **ways.settings()}
        if own_conditions:
            settings["conditions"] = "one for each sample"
        if denoise.guidance is not None:
            settings["guidance"] = denoise.guidance.scale
        setup = replace(setup, settings=settings)
        with progress_bar(
            samples * len(setup.nodes), World().rank == 0 and progress, unit="probe"
        ) as watch:
            whole = _whole(setup, source, denoise.prediction, folder, checkpoint, check, watch)
            return _drive(whole, lambda request: answer(request, ways, rows))


def estimation(
    schedule: NoiseSchedule,
    data: Any,
    t_start: float | None = None,
    t_end: float | None = None,
    nodes: int = 240,
    samples: int = 1024,
    *,
    prediction: str = "epsilon",
    seed: int = 0,
    batch_size: int = 32,
    group: int | None = None,
    granularity: str = "coordinate",
    lam_step: float | None = None,
    stop: float | None = None,
    checkpoint: str | Folder | None = None,
    shape: Sequence[int] | None = None,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    about: dict[str, Any] | None = None,
    check: bool = True,
    progress: Show = False,
) -> Generator[Batch, Tensor, EMS]:
    """``estimate_ems`` without a network: a generator of `Batch` for any driver.

    It is sent outputs of type ``prediction`` and uses differences throughout. Every batch has
    ``batch_size`` samples in a row where that divides the group size and ``samples``. ``dtype``
    is that in which the network computes (by default that of the data), ``about`` JSON values
    that name the network and its guidance; the other arguments are those of `estimate_ems`.

    Raises ValueError as ``estimate_ems`` does, when the first batch is asked for.
    """
    setup, source = prepare(
        schedule,
        data,
        prediction=prediction,
        t_start=t_start,
        t_end=t_end,
        nodes=nodes,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        group=_stored_group(checkpoint) if group is None else group,
        granularity=granularity,
        stop=stop,
        lam_step=lam_step,
        shape=shape,
        plan=plan,
        dtype=dtype,
        device=device,
    )
    check_kind("check", check, True)
    rippling = ripples(schedule)
    wanted = Ways(
        "difference", "difference", default_steps(setup.dtype, lam_step, rippling=rippling)
    )
    with (
        _folder(checkpoint) as folder,
        progress_bar(
            samples * len(setup.nodes), World().rank == 0 and progress, unit="probe"
        ) as watch,
    ):
        ways = _stored_ways(_stored(folder), wanted, lam_step)
        if ways is None and lam_step is None and not rippling:
            chosen = choose_step(trial(setup), prediction, setup.path, wanted.steps)
            steps, note = yield from chosen
            ways = replace(wanted, steps=steps, note=note)
        ways = _agreed(ways or wanted)
        setup = replace(setup, settings={**setup.settings, **ways.settings(), **(about or {})})
        whole = _whole(setup, source, prediction, folder, checkpoint, check, watch)
        request = next(whole)
        while True:
            answer: Any
            if isinstance(request, Probe):
                answer = yield from differences(request, prediction, setup.path, ways.steps)
            else:
                answer = yield request
            try:
                request = whole.send(answer)
            except StopIteration as result:
                return result.value


def _whole(
    setup: Setup,
    source: Data,
    prediction: str,
    folder: Folder,
    checkpoint: str | Folder | None,
    check: bool,
    watch: Callable[[int], None],
) -> Estimation:
    """The estimation and its check."""
    durable = checkpoint is not None
    ems = yield from process(setup, source, folder, durable=durable, watch=watch)
    if check:
        ems = yield from check_of(setup, source, ems, prediction, folder, durable=durable)
    return ems


def _rows(denoise: Denoiser, setup: Setup, samples: int) -> int:
    """States in one call, by memory, and no more than there are at all."""
    probe = trial(setup)
    here = conditioned(denoise, probe.samples, samples)
    each = bytes_of(lambda x: here.evaluate(x, probe.nodes[0].t), probe.x[0])
    most = 3 * setup.group * len(setup.nodes)  # of a probe's three states
    return max(1, min(budget(setup.device) // each, most))


def _agreed(ways: Ways) -> Ways:
    """What the first process found, in all: a borderline case may look different elsewhere."""
    own = [ways.jacobian == "jvp", ways.derivative == "jvp", *ways.steps]
    jacobian, derivative, *steps = World().broadcast(np.array(own, dtype=np.float64), 0)
    names = ["jvp" if chosen else "difference" for chosen in (jacobian, derivative)]
    return replace(
        ways, jacobian=names[0], derivative=names[1], steps=Steps(*(float(s) for s in steps))
    )


def _check_no_dropout(denoise: Denoiser) -> None:
    if not isinstance(denoise.network, nn.Module):
        return
    for name, module in denoise.network.named_modules():
        if isinstance(module, DROPOUTS) and module.training and module.p > 0:
            raise ValueError(
                f"network is in training mode: its {name or 'module'} drops a share of "
                f"{module.p:g} at random, so its outputs are not a function of (x, t). Call .eval()"
            )


def _parameter(denoise: Denoiser) -> Tensor | None:
    """A floating-point parameter of the network, if it is a module that has any."""
    if not isinstance(denoise.network, nn.Module):
        return None
    return next((p for p in denoise.network.parameters() if p.is_floating_point()), None)


def _stored(folder: Folder) -> dict[str, Any]:
    """The settings of an estimation that goes on."""
    return read_settings(folder / f"process{World().rank}") or {}


def _stored_ways(stored: dict[str, Any], wanted: Ways, lam_step: float | None) -> Ways | None:
    """What was chosen when the checkpoint was begun, so that a resumed run does the same."""
    if not stored:
        return None
    return Ways(
        stored["jacobian"] if wanted.jacobian == "auto" else wanted.jacobian,
        stored["derivative"] if wanted.derivative == "auto" else wanted.derivative,
        Steps(*stored["steps"]) if lam_step is None else wanted.steps,
        stored["derivatives"],
    )


def _stored_group(checkpoint: str | Folder | None) -> int | None:
    """The group of an estimation that goes on, which more samples must not change."""
    return None if checkpoint is None else _stored(Folder(checkpoint)).get("group")


@contextmanager
def _folder(checkpoint: str | Folder | None) -> Iterator[Folder]:
    """The folder of the accumulators: the one that was named, or a temporary one."""
    if checkpoint is not None:
        yield Folder(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="logsnr-ems-") as folder:
        yield Folder(folder)


def _drive(process: Generator[Any, Any, Result], answer: Callable[[Any], Any]) -> Result:
    try:
        request = next(process)
        while True:
            request = process.send(answer(request))
    except StopIteration as stop:
        return stop.value
