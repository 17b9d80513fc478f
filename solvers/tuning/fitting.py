"""From a network and start states to the plan that a validation lets pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
from .objective import passes_gradients
from .optimiser import Fit
from .options import Tuning
from .problem import Part, Parts, check, solved_parts
from .references import reference_plan
from .regression import along_the_way, paths_of, regressed
from .report import fitted_model, listed, reason, settings
from .state import Checkpoint
from .tables import Table, table_of

STARTS = 48
"""On which solvers and grids are compared."""
LONG = 60
"""Evaluations of the run that rows are fitted along."""


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
    options = with_gradients(options, denoise, starts)
    about = settings(denoise, starts, options)
    kept = Checkpoint(options.checkpoint, about, options.seconds)
    train, held = solved_parts(denoise, starts, options, kept).halves(options.validation)
    if options.intermediate:
        long = _long(options, schedule)
        train = along_the_way(train, long, schedule, options.intermediate)
    before = held.errors(untuned)
    if options.method == "gradient":
        begins = _begins(options, choices, schedule, train)
        results = _with_gradients(options, begins, schedule, train, held, untuned, kept)
    else:
        begins = [Begin(choices[0])]
        results = {"grid": _without_gradients(options, choices[0], train.each[0])}
    errors = {name: held.errors(plan) for name, plan in results.items()}
    name = min(errors, key=lambda name: options.score(errors[name]))
    found = better(errors[name], before, options.confidence, measure=options.measure)
    report = {
        **about,
        "base": begins[0].base.described(),
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


def with_gradients(options: Tuning, denoise: Denoiser, starts: Tensor) -> Tuning:
    """The options with the way to gradients that the network has."""
    if options.gradients != "auto" or options.method != "gradient":
        return options
    way = "reverse" if passes_gradients(Part(denoise, starts, starts)) else "differences"
    return replace(options, gradients=way)


def _bases(options: Tuning, schedule: NoiseSchedule) -> tuple[Base, list[Base]]:
    """The plan that is left as it is, and those among which the fit begins with the best."""
    ends = {"t_start": options.t_start, "t_end": options.t_end}
    if options.solver is None:
        usual = bases.usual(schedule, options.nfe, ends)
        return usual, bases.candidates(schedule, options.nfe, ends)
    base = bases.named(options.solver, options.solver_options, schedule, options.nfe, ends)
    return base, [base]


@dataclass(frozen=True)
class Begin:
    """Where a fit begins: a solver on a grid, and its rows by regression where rows are fitted."""

    base: Base
    rows: Mapping[bool, Tensor] = field(default_factory=dict)


def _begins(
    options: Tuning, choices: list[Base], schedule: NoiseSchedule, train: Parts
) -> list[Begin]:
    """The best few, by the errors of their runs, or of their rows by regression."""
    nfe = options.nfe
    if options.level == "grid":
        few = train.first(STARTS)
        by_runs = bases.ranked(
            choices, lambda b: options.score(few.errors(b.plan(schedule, nfe))), schedule, nfe
        )
        return [Begin(base) for base in by_runs[: options.beginnings]]
    paths = paths_of(train, _long(options, schedule))

    def rows(base: Base, consistent: bool) -> tuple[Table, Tensor]:
        return regressed(table_of(base.plan(schedule, nfe)), paths, consistent=consistent)

    kept = options.rows == "consistent"
    # Whatever the solver's coefficients are: only its nodes count.
    found = bases.ranked(
        choices[:1], lambda base: options.score(rows(base, kept)[1]), schedule, nfe
    )
    return [
        Begin(base, {consistent: rows(base, consistent)[0].weights for consistent in (True, False)})
        for base in found[: options.beginnings]
    ]


def _long(options: Tuning, schedule: NoiseSchedule) -> Plan:
    """The run that rows are fitted along."""
    return reference_plan(schedule, LONG, t_start=options.t_start, t_end=options.t_end)


def _with_gradients(
    options: Tuning,
    begins: list[Begin],
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
    few = train.first(STARTS)
    found: dict[str, Tensor] = {}
    results = {"located": begins[0].base.plan(schedule, options.nfe)}
    families = [
        (name, number, family)
        for number, begin in enumerate(begins)
        for name, family in _families(options, begin.base, schedule)
    ]
    with progress_bar(options.steps * len(families), options.progress, unit="step") as show:
        for done, (rows, number, family) in enumerate(families):
            name = rows if not number else f"{rows} {number + 1}"
            begin = _first(family, begins[number], found.get("consistent"), few, options)
            one = Fit(
                name, family, train, held, options, scale, kept, begin, reverse=options.reverse
            )
            found[rows] = one.run(_from(done * options.steps, show))
            results[name] = family.plan(found[rows])
    return results


def _first(
    family: Family, begin: Begin, before: Tensor | None, few: Parts, options: Tuning
) -> Tensor | None:
    """Where a fit begins: the base, rows by regression, or for free rows the consistent ones."""
    if family.consistent not in begin.rows:
        return None
    theta = family.theta_of(begin.rows[family.consistent])
    if family.consistent or before is None:
        return theta
    freed = family.freed(before)
    return min(theta, freed, key=lambda each: options.score(few.errors(family.plan(each))))


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
