r"""``estimate_ems``: the estimation driven with a network; ``estimation``: left to a driver."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..keywords import takes
from ..processes import present
from ..progress import progress_bar
from ..requests import Batch, drive, evaluator, relay
from ..schedules import NoiseSchedule
from .checkpoint import stored_settings, stored_ways, work_folder
from .conditions import check_conditions, conditioned
from .contest import check
from .derivatives import (
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
from .options import NetworkEstimation, OutputsEstimation
from .probes import Probe, SampleBatch, Steps
from .rounds import WHEN, Requests, rounds
from .setup import Setup, prepare, trial

Result = TypeVar("Result")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@takes(NetworkEstimation)
def estimate_ems(denoise: Denoiser, data: Any, options: NetworkEstimation) -> EMS:
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
    options : those of `NetworkEstimation`.

    Where torch.distributed is initialised, its processes share the work and all get the result,
    which is that of one process; what is raised on one of them ends all (`RankError`).

    Returns statistics with standard errors (from two groups on), and with all settings in
    ``ems.about``. Raises ValueError for a bad argument before the network is called, and for a
    checkpoint of another estimation or network.
    """
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser, for its schedule and prediction")
    _check_no_dropout(denoise)
    samples, lam_step = options.samples, options.lam_step
    with present().together(WHEN), work_folder(options.checkpoint) as folder, torch.no_grad():
        setup = prepare(denoise.schedule, data, denoise.prediction, _placed(options, denoise))
        own_conditions = check_conditions(denoise, samples)
        denoise.check_input(torch.empty(0, *setup.event, dtype=setup.dtype, device=setup.device))
        precision = setup.dtype if denoise.dtype is None else denoise.dtype
        rippling = ripples(denoise.schedule, denoise.network_time)
        stored = stored_settings(folder)
        rows = options.batch_size or stored.get("rows") or _rows(denoise, setup)

        def answer(request: Batch | Probe, ways: Ways) -> Any:
            assert isinstance(request, Probe | SampleBatch)
            here = conditioned(denoise, request.samples, samples)
            evaluate = evaluator(here, max_groups=max(1, rows // len(request.samples)))
            if isinstance(request, Probe):
                return measure(request, here, setup.path, ways, evaluate)
            return evaluate(request.x, [node.t for node in request.nodes])

        def choose(ways: Ways) -> Ways:
            probe = trial(setup)
            if lam_step is None and not rippling and options.derivative != "jvp":
                chosen = choose_step(probe, denoise.prediction, setup.path, ways.steps)
                found, note = drive(chosen, lambda batch: answer(batch, ways), finite=False)
                ways = replace(ways, steps=found, note=note)
            return choose_ways(ways, denoise, lambda ways: answer(probe, ways))

        steps = default_steps(precision, lam_step, rippling=rippling)
        wanted = Ways(options.jacobian, options.derivative, steps)
        about: dict[str, Any] = {}
        if own_conditions:
            about["conditions"] = "one for each sample"
        if denoise.guidance is not None:
            about["guidance"] = denoise.guidance.scale
        _check_same(setup, wanted, about)
        ways = _agreed(stored_ways(stored, wanted, lam_step) or choose(wanted))
        setup = replace(setup, rows=rows, settings={**setup.settings, **ways.settings(), **about})
        return drive(_whole(setup, folder), lambda request: answer(request, ways), finite=False)


@takes(OutputsEstimation)
def estimation(
    schedule: NoiseSchedule, data: Any, options: OutputsEstimation
) -> Generator[Batch, Tensor, EMS]:
    """``estimate_ems`` without a network: a generator of `Batch` for any driver.

    It is sent outputs of type ``prediction`` and uses differences throughout. Every batch has
    ``batch_size`` samples in a row where that divides the group size and ``samples``. ``dtype``
    is that in which the network computes (by default that of the data).

    Parameters
    ----------
    schedule : the network's.
    data : as for `estimate_ems`.
    options : those of `OutputsEstimation`.

    Raises ValueError as ``estimate_ems`` does, for data when the first batch is asked for.
    """
    with present().together(WHEN), work_folder(options.checkpoint) as folder:
        setup = prepare(schedule, data, options.prediction, options)
        lam_step, about = options.lam_step, options.about or {}
        rippling = ripples(schedule)
        steps = default_steps(setup.dtype, lam_step, rippling=rippling)
        wanted = Ways("difference", "difference", steps)
        _check_same(setup, wanted, about)
        ways = stored_ways(stored_settings(folder), wanted, lam_step)
        if ways is None and lam_step is None and not rippling:
            chosen = choose_step(trial(setup), setup.prediction, setup.path, steps)
            steps, note = yield from chosen
            ways = replace(wanted, steps=steps, note=note)
        ways = _agreed(ways or wanted)
        setup = replace(setup, settings={**setup.settings, **ways.settings(), **about})

        def ask(request: Batch | Probe) -> Generator[Batch, Tensor, Any]:
            if isinstance(request, Probe):
                steps = ways.steps
                return (yield from differences(request, setup.prediction, setup.path, steps))
            return (yield request)

        return (yield from relay(_whole(setup, folder), ask))


def _whole(setup: Setup, folder: Path) -> Requests:
    """The estimation and its check."""
    show = present().rank == 0 and setup.options.progress
    with progress_bar(setup.samples * len(setup.nodes), show, unit="probe") as watch:
        ems = yield from rounds(setup, folder, watch)
        if setup.options.check:
            ems = yield from check(setup, ems, folder)
        return ems


def _placed(options: NetworkEstimation, denoise: Denoiser) -> NetworkEstimation:
    """The options with the dtype and device of the network's parameters, where it has any."""
    if not isinstance(denoise.network, nn.Module):
        return options
    found = next((p for p in denoise.network.parameters() if p.is_floating_point()), None)
    if found is None:
        return options
    dtype = found.dtype if denoise.dtype is None else torch.float32
    device = found.device if options.device is None else options.device
    return replace(options, dtype=options.dtype or dtype, device=device)


def _rows(denoise: Denoiser, setup: Setup) -> int:
    """States in one call, by memory, and no more than there are at all."""
    probe = trial(setup)
    here = conditioned(denoise, probe.samples, setup.samples)
    each = bytes_of(lambda x: here.evaluate(x, probe.nodes[0].t), probe.x[0])
    most = 3 * setup.group * len(setup.nodes)  # of a probe's three states
    return max(1, min(budget(setup.device) // each, most))


def _check_same(setup: Setup, wanted: Ways, about: dict[str, Any]) -> None:
    """Whether all processes work on the same."""
    given = {**setup.settings, **wanted.settings(), **about, "group": setup.group}
    given |= {name: getattr(setup.options, name) for name in ("samples", "stop", "check")}
    present().check_same(WHEN, "data and options", {**given, "kept": setup.durable})


def _agreed(ways: Ways) -> Ways:
    """What the first process found, in all: a borderline case may look different elsewhere."""
    own = [ways.jacobian == "jvp", ways.derivative == "jvp", *ways.steps]
    found = present().broadcast(WHEN, np.array(own, dtype=np.float64))
    jacobian, derivative, *steps = found.tolist()
    names = ["jvp" if chosen else "difference" for chosen in (jacobian, derivative)]
    return replace(ways, jacobian=names[0], derivative=names[1], steps=Steps(*steps))


def _check_no_dropout(denoise: Denoiser) -> None:
    if not isinstance(denoise.network, nn.Module):
        return
    for name, module in denoise.network.named_modules():
        if isinstance(module, DROPOUTS) and module.training and module.p > 0:
            raise ValueError(
                f"network is in training mode: its {name or 'module'} drops a share of "
                f"{module.p:g} at random, so its outputs are not a function of (x, t). Call .eval()"
            )
