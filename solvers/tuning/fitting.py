"""From a network and start states to the plan that a validation lets pass."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, check_start
from ..guidance import ClassifierFree
from ..plan import Plan
from ..progress import progress_bar
from ..schedules import NoiseSchedule
from . import bases
from .bases import Base
from .errors import Comparison, Summary, better, summary
from .family import Family
from .grid_fit import fit_grid
from .optimiser import Fit
from .options import Tuning
from .problem import Part, Parts, divided
from .references import reference_plan, reference_targets
from .state import Checkpoint

SCALES_OF_RANGE = 4
LEAST_STARTS = 4


@dataclass(frozen=True)
class Fitted:
    """A plan and how it was come by: a JSON ``report``, which is ``plan.options["tuned"]`` too."""

    plan: Plan
    report: Mapping[str, Any]


def fit(denoise: Denoiser, starts: Tensor, options: Tuning) -> Fitted:
    """See `tune`, whose report it gives beside the plan."""
    began = time.monotonic()
    check(denoise, starts, options)
    schedule = denoise.schedule
    ends = {"t_start": options.t_start, "t_end": options.t_end}
    base = bases.usual(schedule, options.nfe, ends)
    if options.solver is not None:
        base = bases.named(options.solver, options.solver_options, schedule, options.nfe, ends)
    untuned = base.plan(schedule, options.nfe)
    kept = Checkpoint(options.checkpoint, settings(denoise, starts, options), options.seconds)
    parts = problem(denoise, starts, options, kept)
    train, held = parts.halves(options.validation)
    before = held.errors(untuned)
    scale = summary(train.errors(untuned)).median
    if not 0 < scale < math.inf:
        scale = 1.0
    choices = [base] if options.solver else bases.candidates(schedule, options.nfe, ends)
    begin, _ = bases.best(choices, train, schedule, options.nfe)
    results = {}
    families = dict(_families(options, begin, schedule)) if options.method == "gradient" else {}
    total = options.steps * len(families)
    with progress_bar(total, options.progress, unit="step") as show:
        for number, (name, family) in enumerate(families.items()):
            one = Fit(name, family, train, held, options, scale, kept)
            theta = one.run(_from(number * options.steps, show))
            results[name] = family.plan(theta)
    if options.method != "gradient":
        results["grid"] = _without_gradients(options, begin, train.each[0])
    errors = {name: held.errors(plan) for name, plan in results.items()}
    name = min(errors, key=lambda name: summary(errors[name]).of(options.measure))
    found = better(errors[name], before, options.confidence, measure=options.measure)
    report = {
        **settings(denoise, starts, options),
        "base": {"solver": begin.solver, "options": dict(begin.options), "grid": dict(begin.grid)},
        "untuned": {"solver": untuned.solver, "options": dict(untuned.options)},
        "rows": name,
        "errors": {
            "untuned": _listed(summary(before)),
            **{key: _listed(summary(value)) for key, value in errors.items()},
        },
        "comparison": _listed(found),
        "accepted": found.better,
        "reason": _reason(found),
        "train": train.count,
        "held_out": held.count,
        "seconds": round(time.monotonic() - began, 1) if options.checkpoint is None else None,
    }
    plan = results[name] if found.better else untuned
    label = results[name].solver or "tuned"
    return Fitted(
        plan.labelled(label if found.better else plan.solver, {**plan.options, "tuned": report}),
        report,
    )


def _without_gradients(options: Tuning, begin: Base, part: Part) -> Plan:
    """The nodes of the solver that a fit begins from, by one of the methods of `fit_grid`."""
    return fit_grid(
        part.denoise,
        part.starts,
        options.nfe,
        method=options.method,
        schedule=part.denoise.schedule,
        solver=begin.solver,
        targets=part.targets,
        measure=options.measure,
        sweeps=options.iterations,
        progress=options.progress,
        t_start=options.t_start,
        t_end=options.t_end,
        **begin.options,
    )


def _from(done: int, show: Callable[[int], None]) -> Callable[[int], None]:
    return lambda step: show(done + step)


def _families(options: Tuning, base: Base, schedule: NoiseSchedule) -> list[tuple[str, Family]]:
    plan = base.plan(schedule, options.nfe)
    remade = None if options.level == "coefficients" else base.remaking(schedule)
    if options.level == "grid":
        return [("grid", Family(schedule, plan, remade, False, True, False))]
    wanted = ("consistent", "free") if options.rows == "both" else (options.rows,)
    told = options.level == "full"
    return [
        (rows, Family(schedule, plan, remade, True, rows == "consistent", told)) for rows in wanted
    ]


def problem(denoise: Denoiser, starts: Tensor, options: Tuning, kept: Checkpoint) -> Parts:
    """The starts with their converged solutions; for a range of scales, some for each of a few."""
    ends = {"t_start": options.t_start, "t_end": options.t_end}
    plan = reference_plan(denoise.schedule, options.reference_nfe, **ends)
    denoisers = [denoise]
    if options.guidance is not None:
        low, high = options.guidance
        steps = [k / (SCALES_OF_RANGE - 1) for k in range(SCALES_OF_RANGE)]
        denoisers = [guided(denoise, low + (high - low) * step) for step in steps]
    found = []
    rows = divided(starts, len(denoisers))
    for number, (one, own) in enumerate(zip(denoisers, rows, strict=True)):
        mine = Part(one, starts, starts).rows(own)
        if options.targets is not None:
            targets = options.targets[own.to(options.targets.device)]
        elif f"targets{number}" in kept.tensors:
            targets = kept.tensors[f"targets{number}"].to(starts.device)
        else:
            targets = reference_targets(mine.denoise, mine.starts, plan)
            kept.tensors[f"targets{number}"] = targets.cpu()
            kept.save()
        found.append(replace(mine, targets=targets))
    return Parts(tuple(found))


def guided(denoise: Denoiser, scale: float) -> Denoiser:
    """The denoiser at another guidance scale."""
    assert denoise.guidance is not None
    return denoise.with_guidance(replace(denoise.guidance, scale=scale))


def check(denoise: Any, starts: Any, options: Tuning) -> None:
    """Raise ValueError for what cannot be fitted, before the network is called."""
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser")
    check_start(starts, denoise)
    least = LEAST_STARTS * (1 if options.guidance is None else SCALES_OF_RANGE)
    if len(starts) < least:
        raise ValueError(f"starts has {len(starts)} entries: need at least {least}, better 100")
    if options.guidance is not None and not isinstance(denoise.guidance, ClassifierFree):
        raise ValueError(f"guidance={options.guidance!r}: denoise has no ClassifierFree guidance")
    targets = options.targets
    if targets is None:
        return
    if options.guidance is not None:
        raise ValueError("targets were given beside guidance, whose scales have their own")
    if not isinstance(targets, Tensor) or targets.shape != starts.shape:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else targets
        raise ValueError(f"targets={shape!r}: need the shape of starts, {tuple(starts.shape)}")
    if not torch.isfinite(targets).all():
        raise ValueError("targets has values that are not finite")


def settings(denoise: Denoiser, starts: Tensor, options: Tuning) -> dict[str, Any]:
    """What makes two fits the same, as JSON: the options, the network's answers, the starts."""
    left_out = ("targets", "checkpoint", "seconds", "progress")
    chosen = {
        f.name: getattr(options, f.name)
        for f in dataclasses.fields(options)
        if f.name not in left_out
    }
    chosen |= {"solver_options": dict(options.solver_options), "iterations": options.steps}
    guidance = denoise.guidance
    about = {
        "options": chosen,
        "nfe": options.nfe,
        "level": options.level,
        "schedule": repr(denoise.schedule),
        "prediction": denoise.prediction,
        "guidance_scale": None if guidance is None else _scale(guidance),
        "event": list(starts.shape[1:]),
        "starts": [len(starts), _digest(starts)],
        "fingerprint": fingerprint(denoise, starts),
    }
    return json.loads(json.dumps(about))


def _scale(guidance: ClassifierFree) -> float | list[float]:
    scales = guidance.scales
    return scales if isinstance(guidance.scale, Tensor) else scales[0]


@torch.no_grad()
def fingerprint(denoise: Denoiser, starts: Tensor) -> list[float]:
    """A few numbers by which the network is known again: its data prediction of the first start."""
    schedule = denoise.schedule
    first = torch.arange(1)
    t = schedule.time(0.0)
    x0 = denoise.for_samples(first, len(starts))(starts[:1] * schedule.sigma(t), t)
    flat = x0.double().flatten().cpu()
    picked = torch.linspace(0, len(flat) - 1, min(8, len(flat)), dtype=torch.float64).long()
    return [float(f"{value:.4g}") for value in flat[picked].tolist()]


def _digest(starts: Tensor) -> str:
    numbers = starts.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


def _listed(found: Comparison | Summary) -> dict[str, Any]:
    numbers = asdict(found)
    return {key: value if _finite(value) else None for key, value in numbers.items()}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _reason(found: Comparison) -> str:
    held = f"{found.ratio:.3g} times the untuned error ({found.measure}) on {found.count} starts"
    if found.better:
        return f"the tuned plan has {held}, p = {found.p_value:.2g}"
    return (
        f"the untuned plan is kept: the tuned one has {held}, p = {found.p_value:.2g}, which is "
        f"not better with a confidence of {found.confidence:g}"
    )
