r"""The order of a solver, measured: local order with exact history, and global order.

A solver of order p makes an error O(h^(p+1)) in one step of size h in lambda if its history is
exact, and O(h^p) over a fixed range of lambda. Both are read off the rows of its `Plan`:

* A *step* leads from one carried state (a row that a later row continues from) to the next; the
  rows between are its stages. Steps in the steady state are those that use the most history, so
  that the warm-up and any lower orders at the end are not measured.
* Local: states and outputs of all rows before the step are put on an exact solution, the rows of
  the step are executed, and the result is compared with the exact solution at its node. The error
  is the root mean square over many solutions and several places on the schedule.
* Global: the same for the whole run of steady steps, started from exact history. A start with
  the solver's own warm-up would limit multistep methods to order 2 on some grids, and a lower
  order at the end would limit all: neither is a property of the method.

`exact_history` has the exact solutions and the steps from them. `assert_order` is meant for
anyone's tests.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from logsnr.solvers import SOLVERS, Grid, Plan, Row
from logsnr.solvers.grids import nodes_at_lams
from logsnr.solvers.registry import Build, find_solver, implied

from .exact_history import SCHEDULE, exact_flows, mean_square_error, steady_steps

LAM_RANGE = (-2.0, 2.0)
PLACES = (-1.5, -0.5, 0.5, 1.5)
STEP_SIZES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
STEP_COUNTS = (80, 160, 320)
FLOOR = 1e-12
"""Smaller errors are not used: rounding and the reference's own error blur them."""
GRIDS = ("logsnr", "ratio", "uneven")
_INTERVALS = 12  # of the grids of local order: enough history, and whole blocks of 1, 2, 3, 4


@dataclass(frozen=True)
class Curve:
    """Errors over step sizes h in lambda, both falling, and the slope at the fine end."""

    h: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """d log(error) / d log(h) between the finest two usable points; inf without an error."""
        usable = [(h, e) for h, e in zip(self.h, self.errors, strict=True) if e > FLOOR]
        if len(usable) < 2:
            return math.inf
        (h0, e0), (h1, e1) = usable[-2:]
        return math.log(e0 / e1) / math.log(h0 / h1)


@dataclass(frozen=True)
class Measurement:
    """Orders of one solver: ``local`` and ``global_`` map the name of a problem to its `Curve`.

    ``declared`` is None for a function that is not registered. The slope of a local curve is
    one more than the order.
    """

    solver: str
    options: Mapping[str, Any]
    grid: str
    declared: int | None
    local: Mapping[str, Curve]
    global_: Mapping[str, Curve]

    @property
    def local_order(self) -> float:
        """The smallest order over the problems, from one step with exact history."""
        return min(curve.slope for curve in self.local.values()) - 1

    @property
    def global_order(self) -> float:
        """The smallest order over the problems, over a fixed range of lambda."""
        return min(curve.slope for curve in self.global_.values())


def measure(
    solver: str | Build,
    *,
    grid: str = "logsnr",
    step_counts: Sequence[int] = STEP_COUNTS,
    **options: Any,
) -> Measurement:
    """Measure the local and the global order of a solver.

    Parameters
    ----------
    solver : the name of a registered solver, "module:function", or a function
        (grid, nfe, **options) -> Plan.
    grid : "logsnr" (steps uniform in lambda), "ratio" (uniform in sigma / alpha), or "uneven"
        (sizes that alternate by a factor, for the local order; the global one takes "logsnr").
    step_counts : numbers of evaluations for the global order.
    options : the solver's own. ``lower_order_final`` is False unless given.

    Raises ValueError for an unknown solver, grid or option, and for a plan that adds noise.
    """
    name, build = resolve(solver)
    options = full_options(name, build, options)
    return Measurement(
        name,
        options,
        grid,
        SOLVERS[name].order(options) if name in SOLVERS else None,
        local_errors(build, grid=grid, **options),
        global_errors(build, grid=grid, step_counts=step_counts, **options),
    )


def check(solver: str | Build, *, grid: str = "logsnr", **options: Any) -> None:
    """Raise what `measure` would raise for its arguments, before anything is measured."""
    _build(_prepared(solver, grid, options), 0.1, grid)


def assert_order(
    solver: str | Build,
    expected: int | None = None,
    tolerance: float = 0.2,
    *,
    grid: str = "logsnr",
    **options: Any,
) -> None:
    """AssertionError unless local and global order are within ``tolerance`` of ``expected``.

    ``expected`` is by default what a registered solver declares. See `measure` for the rest:

        assert_order("unipc", order=2, corrector=False)     # a registered solver
        assert_order(my_solver, expected=2)                 # your own (grid, nfe) -> Plan
    """
    measured = measure(solver, grid=grid, **options)
    order = measured.declared if expected is None else expected
    if order is None:
        raise ValueError(f"expected is missing: {measured.solver} declares no order")
    found = {"local": measured.local_order, "global": measured.global_order}
    wrong = {kind: value for kind, value in found.items() if not abs(value - order) <= tolerance}
    assert not wrong, (
        f"{measured.solver}({_show(measured.options)}) on the {grid!r} grid: "
        + ", ".join(f"{kind} order {value:.2f}" for kind, value in found.items())
        + f", expected {order} within {tolerance}"
    )


CHOICES: Mapping[str, tuple[Any, ...]] = {
    "order": (1, 2, 3, 4),
    "space": ("data", "noise"),
    "steps": ("multistep", "singlestep", "singlestep_fixed"),
    "variant": ("bh1", "bh2", "vary_coeff", "tab", "rhoab", "rhork", "fixed", "variable"),
    "solver_type": ("dpmsolver", "taylor"),
    "weights": ("published", "taylor"),
    "corrector": (True, False),
    "p_pseudo": (False, True),
    "c_pseudo": (True, False),
}
"""The options that distinguish methods, wherever a solver has them."""


def variations(name: str) -> list[dict[str, Any]]:
    """The options of every different method that a registered solver offers.

    All combinations of `CHOICES` that the solver accepts, each method once: combinations whose
    plans are equal row by row are one method.
    """
    build, defaults = find_solver(name).build, find_solver(name).defaults
    # The default first, so that of equal methods the one with fewer settings is kept.
    offered = {
        key: values if key == "order" else tuple(dict.fromkeys((defaults[key], *values)))
        for key, values in CHOICES.items()
        if key in defaults
    }
    seen: list[tuple[Row, ...]] = []
    found: list[dict[str, Any]] = []
    for values in product(*offered.values()):
        options = dict(zip(offered, values, strict=True))
        try:
            rows = _build(partial(build, **full_options(name, build, options)), 0.1, "uneven").rows
        except ValueError:  # not offered in this combination
            continue
        if rows not in seen:
            seen.append(rows)
            found.append(options)
    return found


def resolve(solver: str | Build) -> tuple[str, Build]:
    """(name, function) of a registered solver, of "module:function", or of a function."""
    if not isinstance(solver, str):
        return getattr(solver, "__name__", "solver"), solver
    if ":" not in solver:
        name, preset = implied(solver)
        return name, partial(SOLVERS[name].build, **preset) if preset else SOLVERS[name].build
    module, _, function = solver.partition(":")
    try:
        return solver, getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as problem:
        raise ValueError(f"solver={solver!r}: {problem}") from problem


def full_options(name: str, build: Build, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` over the function's own defaults, with ``lower_order_final`` off."""
    parameters = inspect.signature(build).parameters.values()
    full = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key in options:
        if key not in full:
            raise ValueError(
                f"{key}={options[key]!r} is not an option of {name!r}: it has "
                f"{', '.join(sorted(full)) or 'none'}"
            )
    if "lower_order_final" in full:
        full["lower_order_final"] = False
    return {**full, **options}


def _checked(plan: Plan) -> Plan:
    if plan.stochastic or not plan.numeric:
        kind = "adds noise" if plan.stochastic else "has coefficients that are tensors"
        raise ValueError(f"the order is defined for a deterministic plan of numbers: this {kind}")
    return plan


def _offsets(grid: str, h: float) -> np.ndarray:
    """Lambda of the nodes of a grid with step size about h, up to a constant."""
    count = np.arange(_INTERVALS + 1)
    if grid == "ratio":  # sigma / alpha falls by h / 4 of its first value
        return -np.log1p(-0.25 * h * count)
    if grid == "uneven":
        return h * (count + 0.2 * np.sin(2.0 * count))
    return h * count


def _build(build: Build, h: float, grid: str, start: float = -2.0) -> Plan:
    lams = start + _offsets(grid, h)
    nodes = tuple(nodes_at_lams(SCHEDULE, torch.as_tensor(lams)))
    return _checked(build(Grid(SCHEDULE, nodes[0].t, nodes[-1].t, explicit=nodes), None))


def local_errors(solver: str | Build, *, grid: str = "logsnr", **options: Any) -> dict[str, Curve]:
    """Errors of one step with exact history, for each problem; arguments as in `measure`."""
    build = _prepared(solver, grid, options)
    # The grid is moved so that the measured step, wherever the plan has it, starts at the place.
    trial = _build(build, 1.0, "logsnr")
    start = round(trial.rows[steady_steps(trial)[-1].first].node.lam)
    sizes: list[float] = []
    plans: list[list[Plan]] = []
    for h in STEP_SIZES:
        shift = _offsets(grid, h)[start]
        plans.append([_build(build, h, grid, place - shift) for place in PLACES])
        rows, step = plans[-1][0].rows, steady_steps(plans[-1][0])[-1]
        sizes.append(rows[step.last].node.lam - rows[step.first].node.lam)
    curves = {}
    for problem, flow in exact_flows():
        errors = []
        for at_places in plans:
            steps = [(plan, steady_steps(plan)[-1]) for plan in at_places]
            squares = [mean_square_error(plan, s.first, s.last, problem, flow) for plan, s in steps]
            errors.append(math.sqrt(sum(squares) / len(squares)))
        curves[problem.name] = Curve(tuple(sizes), tuple(errors))
    return curves


def global_errors(
    solver: str | Build,
    *,
    grid: str = "logsnr",
    step_counts: Sequence[int] = STEP_COUNTS,
    **options: Any,
) -> dict[str, Curve]:
    """Errors of whole runs with an exact start, for each problem; arguments as in `measure`."""
    build = _prepared(solver, grid, options)
    start, end = (SCHEDULE.time(lam) for lam in LAM_RANGE)
    # The karras spacing with rho = 1 is uniform in sigma / alpha.
    rule: dict[str, Any] = {"spacing": "logsnr"}
    if grid == "ratio":
        rule = {"spacing": "karras", "rho": 1.0}
    whole = Grid(SCHEDULE, start, end, **rule)
    plans = [_checked(build(whole, count)) for count in step_counts]
    steady = [steady_steps(plan) for plan in plans]
    sizes = tuple((LAM_RANGE[1] - LAM_RANGE[0]) / len(steps) for steps in steady)
    curves = {}
    for problem, flow in exact_flows():
        squares = [
            mean_square_error(plan, steps[0].first, steps[-1].last, problem, flow)
            for plan, steps in zip(plans, steady, strict=True)
        ]
        curves[problem.name] = Curve(sizes, tuple(map(math.sqrt, squares)))
    return curves


def _prepared(solver: str | Build, grid: str, options: Mapping[str, Any]) -> Build:
    if grid not in GRIDS:
        raise ValueError(f"grid={grid!r}: choose one of {', '.join(GRIDS)}")
    name, build = resolve(solver)
    return partial(build, **full_options(name, build, options))


def _show(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())
