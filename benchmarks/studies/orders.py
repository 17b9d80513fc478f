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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from logsnr.solvers import SOLVERS, Grid, Plan
from logsnr.solvers.registry import Build

from .curves import Curve
from .exact_history import SCHEDULE, exact_flows, mean_square_error, steady_steps
from .sde_orders import PATHS, SdeMeasurement, measure_sde
from .solver_methods import GRIDS, full_options, offsets, plan_of_steps, resolve, show

LAM_RANGE = (-2.0, 2.0)
PLACES = (-1.5, -0.5, 0.5, 1.5)
STEP_SIZES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
STEP_COUNTS = (80, 160, 320)
ASSERTED_PATHS = 1024


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

    @property
    def curves(self) -> dict[str, Mapping[str, Curve]]:
        """The curves by kind."""
        return {"local": self.local, "global": self.global_}

    @property
    def orders(self) -> dict[str, float]:
        """The measured orders by kind."""
        return {"local": self.local_order, "global": self.global_order}

    @property
    def expected(self) -> dict[str, int | None]:
        """The declared order by kind."""
        return dict.fromkeys(self.orders, self.declared)


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
    """Raise what `measure_any` would raise for its arguments, before anything is measured."""
    _adds_noise(solver, grid, options)


def measure_any(
    solver: str | Build, *, grid: str = "logsnr", paths: int = PATHS, **options: Any
) -> Measurement | SdeMeasurement:
    """`measure`, or `measure_sde` with so many ``paths`` if the plan adds noise."""
    if _adds_noise(solver, grid, options):
        return measure_sde(solver, grid=grid, paths=paths, **options)
    return measure(solver, grid=grid, **options)


def assert_order(
    solver: str | Build,
    expected: int | None = None,
    tolerance: float | None = None,
    *,
    grid: str = "logsnr",
    strong: float | None = None,
    weak: float | None = None,
    paths: int = ASSERTED_PATHS,
    **options: Any,
) -> None:
    """AssertionError unless the measured orders are those expected, by default those declared.

    Parameters
    ----------
    expected : the local and global order of a deterministic method.
    tolerance : of each order; default 0.2, and 0.25 for a method that adds noise.
    strong, weak : the orders of a method that adds noise. One that neither the solver declares
        nor the call gives is not asserted.
    paths : see `measure_sde`; by default few, so that weak errors are told on Gaussian data alone.

    See `measure` for the rest:

        assert_order("unipc", order=2, corrector=False)     # a registered solver
        assert_order(my_solver, expected=2)                 # your own (grid, nfe) -> Plan
        assert_order("ddim", eta=1.0)                       # one that adds noise
        assert_order(my_sampler, strong=1, weak=2)

    Raises ValueError if there is nothing to expect, or what is expected is of the other kind.
    """
    noisy = _adds_noise(solver, grid, options)
    given = {"expected": expected, "strong": strong, "weak": weak}
    kinds = ("strong", "weak") if noisy else ("expected",)
    for key, value in given.items():
        if value is not None and key not in kinds:
            state = "adds noise" if noisy else "adds no noise"
            raise ValueError(f"{key}={value!r}: the plan {state}; give {' and '.join(kinds)}")
    measured = measure_any(solver, grid=grid, paths=paths, **options)
    wanted: dict[str, float] = {}
    for kind, declared in measured.expected.items():
        value = given[kind] if noisy else expected
        value = declared if value is None else value
        if value is not None:
            wanted[kind] = value
    if not wanted:
        raise ValueError(f"{kinds[0]} is missing: {measured.solver} declares no order")
    if tolerance is None:
        tolerance = 0.25 if noisy else 0.2
    found = measured.orders
    wrong = [kind for kind, value in wanted.items() if not abs(found[kind] - value) <= tolerance]
    assert not wrong, (
        f"{measured.solver}({show(measured.options)}) on the {grid!r} grid: "
        + ", ".join(f"{kind} order {value:.2f}" for kind, value in found.items())
        + f", expected {' and '.join(f'{value:g}' for value in dict.fromkeys(wanted.values()))}"
        + f" within {tolerance}"
    )


def _adds_noise(solver: str | Build, grid: str, options: Mapping[str, Any]) -> bool:
    plan = plan_of_steps(_prepared(solver, grid, options), 0.1, grid)
    if not plan.stochastic:
        _checked(plan)
    return plan.stochastic


def _checked(plan: Plan) -> Plan:
    if plan.stochastic or not plan.numeric:
        kind = "adds noise" if plan.stochastic else "has coefficients that are tensors"
        raise ValueError(f"the order is defined for a deterministic plan of numbers: this {kind}")
    return plan


def local_errors(solver: str | Build, *, grid: str = "logsnr", **options: Any) -> dict[str, Curve]:
    """Errors of one step with exact history, for each problem; arguments as in `measure`."""
    build = _prepared(solver, grid, options)
    # The grid is moved so that the measured step, wherever the plan has it, starts at the place.
    trial = _checked(plan_of_steps(build, 1.0, "logsnr"))
    start = round(trial.rows[steady_steps(trial)[-1].first].node.lam)
    sizes: list[float] = []
    plans: list[list[Plan]] = []
    for h in STEP_SIZES:
        shift = offsets(grid, h)[start]
        plans.append([plan_of_steps(build, h, grid, place - shift) for place in PLACES])
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
