"""From a network and start states to the plan that a validation lets pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..denoiser import Denoiser
from ..fitted_to import noted
from ..plan import Plan
from ..progress import progress_bar
from ..schedules import NoiseSchedule
from . import bases
from .bases import Base
from .errors import better, summary
from .family import Family
from .grid_fit import fit_grid
from .optimiser import Fit
from .options import Tuning
from .problem import Part, Parts, check, solved_parts
from .report import fitted_model, listed, reason, settings
from .state import Checkpoint


@dataclass(frozen=True)
class Fitted:
    """A plan and how it was come by: a JSON ``report``, which is ``plan.options["tuned"]`` too."""

    plan: Plan
    report: Mapping[str, Any]


def fit(denoise: Denoiser, starts: Tensor, options: Tuning) -> Fitted:
    """See `tune`, whose report it gives beside the plan."""
    check(denoise, starts, options)
    schedule, nfe = denoise.schedule, options.nfe
    base, choices = _bases(options, schedule)
    untuned = base.plan(schedule, nfe)
    about = settings(denoise, starts, options)
    kept = Checkpoint(options.checkpoint, about, options.seconds)
    train, held = solved_parts(denoise, starts, options, kept).halves(options.validation)
    before = held.errors(untuned)
    begins = bases.ranked(choices, train, schedule, nfe)[: options.beginnings]
    if options.method == "gradient":
        results = _with_gradients(options, begins, schedule, train, held, untuned, kept)
        results["located"] = begins[0].plan(schedule, nfe)  # where more than that was too much
    else:
        results = {"grid": _without_gradients(options, begins[0], train.each[0])}
    errors = {name: held.errors(plan) for name, plan in results.items()}
    name = min(errors, key=lambda name: summary(errors[name]).of(options.measure))
    found = better(errors[name], before, options.confidence, measure=options.measure)
    report = {
        **about,
        "base": begins[0].described(),
        "untuned": base.described(),
        "rows": name,
        "errors": {
            "untuned": listed(summary(before)),
            **{key: listed(summary(value)) for key, value in errors.items()},
        },
        "comparison": listed(found),
        "accepted": found.better,
        "reason": reason(found),
        "train": train.count,
        "held_out": held.count,
    }
    if not found.better:
        plan = untuned.labelled(untuned.solver, {**untuned.options, "tuned": report})
        return Fitted(plan, report)
    plan = results[name]
    plan = plan.labelled(plan.solver or "tuned", {**plan.options, "tuned": report})
    return Fitted(noted(plan, fitted_model(denoise, starts, options)), report)


def _bases(options: Tuning, schedule: NoiseSchedule) -> tuple[Base, list[Base]]:
    """The plan that is left as it is, and those among which the fit begins with the best."""
    ends = {"t_start": options.t_start, "t_end": options.t_end}
    if options.solver is None:
        usual = bases.usual(schedule, options.nfe, ends)
        return usual, bases.candidates(schedule, options.nfe, ends)
    base = bases.named(options.solver, options.solver_options, schedule, options.nfe, ends)
    return base, [base]


def _with_gradients(
    options: Tuning,
    begins: list[Base],
    schedule: NoiseSchedule,
    train: Parts,
    held: Parts,
    untuned: Plan,
    kept: Checkpoint,
) -> dict[str, Plan]:
    """The best of every family from every beginning, by name."""
    scale = summary(train.errors(untuned)).median
    if not 0 < scale < math.inf:
        scale = 1.0
    families = {
        name if not number else f"{name} {number + 1}": family
        for number, base in enumerate(begins)
        for name, family in _families(options, base, schedule)
    }
    results = {}
    with progress_bar(options.steps * len(families), options.progress, unit="step") as show:
        for number, (name, family) in enumerate(families.items()):
            one = Fit(name, family, train, held, options, scale, kept)
            results[name] = family.plan(one.run(_from(number * options.steps, show)))
    return results


def _families(options: Tuning, base: Base, schedule: NoiseSchedule) -> Iterator[tuple[str, Family]]:
    plan = base.plan(schedule, options.nfe)
    remade = None if options.level == "coefficients" else base.remaking(schedule)
    if options.level == "grid":
        yield "grid", Family(schedule, plan, remade, False, True, False)
        return
    told = options.told and options.level == "full"
    for rows in ("consistent", "free"):
        if options.rows in (rows, "both"):
            yield rows, Family(schedule, plan, remade, True, rows == "consistent", told)


def _from(done: int, show: Callable[[int], None]) -> Callable[[int], None]:
    return lambda step: show(done + step)


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
