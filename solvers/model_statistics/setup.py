"""From the arguments of an estimation to a checked `Setup` and a source of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..grids import check_range, nodes_at
from ..plan import Plan
from ..prediction import check_prediction, to_noise
from ..registry import check_choice, check_kind, make_plan
from ..schedule_notes import schedule_note
from ..schedules import NoiseSchedule
from .probes import Path, Probe
from .rounds import GRANULARITIES, Setup
from .samples import Data, data_of, own_samples, signs_and_noise

OWN_NFE = 32
"""Evaluations a sample, where the model has to draw its own: 3 % of what its probes take."""


def prepare(
    schedule: NoiseSchedule,
    data: Any,
    *,
    prediction: str,
    t_start: float | None,
    t_end: float | None,
    nodes: int,
    samples: int,
    seed: int,
    batch_size: int | None,
    group: int | None,
    granularity: str,
    stop: float | None,
    lam_step: float | None,
    shape: Sequence[int] | None,
    plan: Plan | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Setup, Data]:
    """The checked arguments and the source of samples. No network is called.

    ``batch_size`` None, the number that fits memory, is left open: one state a call.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(f"schedule={schedule!r}: need a NoiseSchedule")
    check_prediction(prediction)
    check_choice("granularity", granularity, GRANULARITIES)
    for name, value, least in (
        ("nodes", nodes, 4),
        ("samples", samples, 1),
        ("seed", seed, 0),
        ("batch_size", 1 if batch_size is None else batch_size, 1),
        ("group", 4 if group is None else group, 4),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: need a whole number of at least {least}")
    for name, number in (("t_start", t_start), ("t_end", t_end)):
        if number is not None:
            check_kind(name, number, 0.0)
    for name, number in (("stop", stop), ("lam_step", lam_step)):
        if number is not None:
            check_kind(name, number, 0.0)
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name}={number!r}: need a positive number, or None")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r}: need a floating-point dtype")
    sizes = shape if isinstance(shape, Sequence) else ()
    if shape is not None and (not sizes or any(not isinstance(n, int) or n < 1 for n in sizes)):
        raise ValueError(f"shape={shape!r}: need the event shape of a sample, such as (3, 32, 32)")
    start = float(schedule.t_start if t_start is None else t_start)
    end = float(schedule.t_end if t_end is None else t_end)
    check_range(schedule, start, end)
    first, last = schedule.lam(start), schedule.lam(end)
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(
            f"t_start={start!r}, t_end={end!r} have lambda {first} and {last}: need finite values, "
            "so a smaller t_start or a larger t_end"
        )
    times = schedule.time(torch.linspace(first, last, nodes + 1, dtype=torch.float64))
    times[0], times[-1] = start, end
    grid = tuple(nodes_at(schedule, times))
    for node in (grid[0], grid[-1]):
        to_noise(prediction, node)  # raises where it does not exist
    place = torch.device("cpu" if device is None else device)
    if data is None:
        source = _own(schedule, prediction, start, end, shape, plan, dtype, seed, place)
    elif plan is not None:
        raise ValueError("plan was given beside data: it draws the model's own samples, data=None")
    else:
        source = data_of(data, seed=seed, shape=shape)
    if group is None:
        group = max(4, min(32, 2 ** int(math.log2(max(samples, 32) / 8))))
    settings = {
        **schedule_note(schedule, first, last),
        "t_start": start,
        "t_end": end,
        "intervals": nodes,
        "seed": seed,
        "granularity": granularity,
        "event": list(source.event),
        "prediction": prediction,
        "data": source.name,
        "dtype": str(dtype or source.dtype),
    }
    setup = Setup(
        Path(schedule, first, last),
        grid,
        source.event,
        samples,
        group,
        batch_size or 1,
        seed,
        granularity,
        dtype or source.dtype,
        place,
        stop,
        settings,
    )
    return setup, source


def _own(
    schedule: NoiseSchedule,
    prediction: str,
    start: float,
    end: float,
    shape: Sequence[int] | None,
    plan: Plan | None,
    dtype: torch.dtype | None,
    seed: int,
    device: torch.device,
) -> Data:
    if shape is None:
        raise ValueError("shape=None: data=None needs the event shape of a sample")
    if plan is None:
        plan = make_plan("unipc", schedule, nfe=OWN_NFE, spacing="logsnr", t_start=start, t_end=end)
    elif not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r}: need a Plan, as make_plan returns it")
    elif plan.stochastic:
        raise ValueError(f"plan={plan!r} adds noise: need a deterministic one")
    return own_samples(plan, prediction, tuple(shape), dtype or torch.float32, seed, device)


def trial(setup: Setup) -> Probe:
    """States near both ends and in the middle on which ways and steps are compared."""
    samples = range(min(4, setup.group, setup.samples))
    drawn = [signs_and_noise(setup.seed, i, setup.event) for i in samples]
    n, signs = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    signs = signs.to(setup.device, setup.dtype)
    last = len(setup.nodes) - 1
    nodes = [setup.nodes[k] for k in (last // 8, last // 2, last - last // 8)]
    return Probe(setup.states(n, n, nodes), signs, nodes, samples)
