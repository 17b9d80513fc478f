"""The registry of solvers and ``make_plan``, the one way to a Plan by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .checks import check_choice, check_kind, check_whole
from .grids import Grid, as_number, as_numbers, nodes_at, nodes_at_lams, nodes_at_sigmas
from .names import also_named, find_name, meaning, nearest
from .plan import DATA, Node, Plan, Row
from .schedules import FlowMatching, NoiseSchedule

Build = Callable[..., Plan]
Metadata = Callable[[Mapping[str, Any]], int]
StochasticOrder = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Solver:
    """A solver as the registry knows it.

    ``build(grid, nfe, **options)`` makes the plan. ``order`` and ``nfe_per_step`` map the full set
    of options to the order of a deterministic run and to the cost of a full step. ``spaces`` are
    the predictions that its rows can combine; ``finite_lambda`` says that it cannot start at
    alpha = 0 or end at sigma = 0; ``paper`` is a key of the bibliography (see ``cite``); ``when``
    says in a few words when to use it. ``strong`` and ``weak`` map the options to the orders of a
    run with noise, pathwise and of the distribution; None for solvers that have none.
    """

    name: str
    build: Build
    order: Metadata
    nfe_per_step: Metadata
    title: str
    paper: str
    spaces: tuple[str, ...]
    finite_lambda: bool = False
    when: str = ""
    strong: StochasticOrder | None = None
    weak: StochasticOrder | None = None

    @cached_property
    def _options(self) -> list[inspect.Parameter]:
        parameters = inspect.signature(self.build).parameters.values()
        return [p for p in parameters if p.kind is p.KEYWORD_ONLY]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The solver's own options with their default values."""
        return {p.name: p.default for p in self._options}

    def check_kind(self, option: str, value: Any) -> None:
        """ValueError unless ``value`` is of the option's kind, where it has one kind alone."""
        kind = next(str(p.annotation) for p in self._options if p.name == option)
        if kind != "Strength" and "Callable" not in kind:
            check_kind(option, value, self.defaults[option])


SOLVERS: dict[str, Solver] = {}


def solver(
    name: str,
    *,
    order: Metadata,
    nfe_per_step: Metadata | int = 1,
    title: str,
    paper: str,
    spaces: tuple[str, ...] = ("data", "noise"),
    finite_lambda: bool = False,
    when: str = "",
    strong: StochasticOrder | None = None,
    weak: StochasticOrder | None = None,
) -> Callable[[Build], Build]:
    """Register the decorated function (grid, nfe, *, options) -> Plan; see `Solver`.

    Raises ValueError for a name that means another solver already. The same function may be
    registered again, as when a cell of a notebook is run twice.
    """
    cost = nfe_per_step if callable(nfe_per_step) else lambda options: nfe_per_step

    def register(build: Build) -> Build:
        taken = meaning(name, {key: entry.defaults for key, entry in SOLVERS.items()})
        if taken is not None and not _same_place(SOLVERS[taken[0]].build, build):
            raise ValueError(f"solver({name!r}): the name means {taken[0]!r} already; take another")
        SOLVERS[name] = Solver(
            name, build, order, cost, title, paper, spaces, finite_lambda, when, strong, weak
        )
        return build

    return register


def _same_place(one: Build, other: Build) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


PLACES: dict[str, Callable[[NoiseSchedule, Any], list[Node]]] = {
    "times": nodes_at,
    "sigmas": nodes_at_sigmas,
    "lams": nodes_at_lams,
}
"""Explicit grids, by what is listed."""


@also_named({"solver_order": "order", "predictor_order": "order", "timestep_spacing": "spacing"})
def make_plan(
    solver: str,
    schedule: NoiseSchedule,
    *,
    nfe: int | None = None,
    times: Sequence[float] | Tensor | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    lams: Sequence[float] | Tensor | None = None,
    spacing: str | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rho: float = 7.0,
    location: float | None = None,
    scale: float | None = None,
    shift: float = 1.0,
    snap: bool = False,
    denoise_to_zero: bool = False,
    invert: bool = False,
    **options: Any,
) -> Plan:
    """The plan of a registered solver on a grid of ``schedule``.

    Parameters
    ----------
    solver : a key of ``SOLVERS``, or another name of one (see `names`), such as "dpmpp_2m".
    nfe : number of network evaluations. Not needed with an explicit grid.
    times, sigmas, lams : an explicit grid, from noise to data: times of the schedule, its own
        sigma_t, or lambda; used exactly as given. At most one.
    spacing, rho, location, scale, shift, snap : see `Grid`; the default is "auto".
    t_start, t_end : the ends; the defaults are the schedule's.
    denoise_to_zero : end with the data prediction at t_end, one evaluation beyond ``nfe``.
    invert : run from data to noise, over the nodes of the same grid read backwards; the lists of an
        explicit grid may stand in either order. Deterministic solvers only.
    options : the solver's own, see its docstring.

    Raises ValueError for an unknown solver or option and for values out of range.
    """
    entry, options = chosen_solver(solver, options)
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(f"schedule={schedule!r}: need a NoiseSchedule, such as VPLinear()")
    if nfe is not None:
        check_whole("nfe", nfe, 1)
    given = {"times": times, "sigmas": sigmas, "lams": lams}
    explicit = {name: value for name, value in given.items() if value is not None}
    if len(explicit) > 1:
        raise ValueError(f"{' and '.join(explicit)} were given: choose one explicit grid")
    rho, shift = as_number("rho", rho), as_number("shift", shift)
    chosen = {"t_start": t_start, "t_end": t_end, "location": location, "scale": scale}
    t_start, t_end, location, scale = (
        None if value is None else as_number(name, value) for name, value in chosen.items()
    )
    if explicit:
        (name, values), *_ = explicit.items()
        ruled = {"spacing": spacing, "t_start": t_start, "t_end": t_end, "snap": snap or None}
        ruled |= {"shift": None if shift == 1 else shift, "rho": None if rho == 7 else rho}
        ruled |= {"location": location, "scale": scale}
        for key, value in ruled.items():
            if value is not None:
                raise ValueError(f"{key}={value!r} was given beside {name}, which is the grid")
        nodes = tuple(PLACES[name](schedule, _downwards(name, values) if invert else values))
        if len(nodes) < 2:
            raise ValueError(f"{name} has {len(nodes)} entries: need at least 2")
        grid = Grid(schedule, nodes[0].t, nodes[-1].t, explicit=nodes, invert=invert)
    else:
        if nfe is None:
            raise ValueError("nfe is missing: give the number of network evaluations, or a grid")
        grid = Grid(
            schedule,
            t_start=float(schedule.t_start) if t_start is None else t_start,
            t_end=float(schedule.t_end) if t_end is None else t_end,
            spacing=spacing or "auto",
            rho=rho,
            location=location,
            scale=scale,
            shift=shift,
            snap=snap,
            invert=invert,
        )
    return plan_on_grid(entry.name, grid, nfe, denoise_to_zero=denoise_to_zero, **options)


def _downwards(name: str, values: Sequence[float] | Tensor) -> Tensor:
    """The list from noise to data, whichever way it was given."""
    listed = as_numbers(name, values, gradients=True)
    if listed.ndim != 1 or len(listed) < 2:
        return listed
    return listed.flip(0) if (listed[0] < listed[-1]) == (name != "lams") else listed


def plan_on_grid(
    solver: str,
    grid: Grid,
    nfe: int | None = None,
    *,
    denoise_to_zero: bool = False,
    **options: Any,
) -> Plan:
    """``make_plan`` on a Grid that is already there (duplicated nodes allowed if explicit)."""
    entry, options = chosen_solver(solver, options)
    plan = entry.build(grid, nfe, **options)
    if denoise_to_zero and grid.invert:
        raise ValueError("denoise_to_zero=True: an inversion ends in noise")
    if denoise_to_zero:
        plan = end_with_data_prediction(plan)
        options["denoise_to_zero"] = True
    if grid.invert:
        options["invert"] = True
    # A solver notes an option that is not a JSON value in its own words: statistics, say.
    return plan.labelled(entry.name, {**options, **plan.options})


def find_solver(name: str) -> Solver:
    """The solver of a registered name or another of its names; ValueError with the choices."""
    return SOLVERS[implied(name)[0]]


def implied(name: str) -> tuple[str, dict[str, Any]]:
    """The registered name that ``name`` means, and the options that it implies."""
    if isinstance(name, str) and name in SOLVERS:  # plans are made often, and mostly by this name
        return name, {}
    return find_name(name, {key: entry.defaults for key, entry in SOLVERS.items()})


def chosen_solver(name: str, options: Mapping[str, Any]) -> tuple[Solver, dict[str, Any]]:
    """A solver by any of its names, and ``options`` beside those that the name implies.

    Raises ValueError for an unknown solver or option, a value of another kind, and one that
    contradicts the name.
    """
    key, preset = implied(name)
    entry = SOLVERS[key]
    for option, value in options.items():
        if option not in entry.defaults:
            near = nearest(option, entry.defaults)
            raise ValueError(
                f"{option}={value!r} is not an option of {name!r}: it has "
                f"{', '.join(sorted(entry.defaults)) or 'none'}"
                + ("" if near is None else f"; did you mean {near!r}?")
            )
        entry.check_kind(option, value)
        if option in preset and preset[option] != value:
            raise ValueError(
                f"{option}={value!r}: solver={name!r} means {option}={preset[option]!r}; give "
                f"solver={key!r} with your own"
            )
    return entry, preset | dict(options)


def end_with_data_prediction(plan: Plan) -> Plan:
    """The plan with one more evaluation: its result becomes the data prediction at its end."""
    *rows, last = plan.rows
    if last.node.sigma == 0:
        raise ValueError("denoise_to_zero=True: the grid ends at sigma = 0 already")
    result = Row(Node(0.0, 1.0, 0.0), outputs=((len(rows), 1.0),))
    return replace(plan, rows=(*rows, replace(last, target=DATA), result))


def count_steps(grid: Grid, nfe: int | None, *, at_least: int = 1) -> int:
    """The number of one-evaluation steps: nfe, or what the explicit grid has. ValueError if few."""
    steps = grid.intervals if nfe is None else nfe
    if steps is None or steps < at_least:
        raise ValueError(f"nfe={steps!r}: the solver needs at least {at_least} at this order")
    if grid.intervals not in (None, steps):
        raise ValueError(f"nfe={nfe} does not fit the explicit grid of {grid.intervals} steps")
    return steps


def is_in_time(variable: Any, schedule: NoiseSchedule) -> bool:
    """Whether a method in "sigma" or "time" is one in t; ValueError where that is not its path."""
    check_choice("variable", variable, ("sigma", "time"))
    if variable == "time" and not isinstance(schedule, FlowMatching):
        raise ValueError(f"variable='time' is for FlowMatching, not for {schedule!r}")
    return variable == "time"
