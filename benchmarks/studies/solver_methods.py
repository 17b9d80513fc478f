"""The methods that a solver offers, as functions from a grid to a plan, and grids of steps."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch

from logsnr.solvers import SOLVERS, Grid, Plan, Row
from logsnr.solvers.grids import nodes_at_lams
from logsnr.solvers.registry import Build, find_solver, implied

from .exact_history import SCHEDULE

GRIDS = ("logsnr", "ratio", "uneven")
_INTERVALS = 12  # of the grids of local order: enough history, and whole blocks of 1, 2, 3, 4

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "order": (1, 2, 3, 4),
    "space": ("data", "noise"),
    "steps": ("multistep", "singlestep", "singlestep_fixed"),
    "variant": ("bh1", "bh2", "vary_coeff", "tab", "rhoab", "rhork", "fixed", "variable"),
    "solver_type": ("dpmsolver", "taylor", "midpoint", "heun"),
    "weights": ("published", "taylor"),
    "corrector": (True, False),
    "p_pseudo": (False, True),
    "c_pseudo": (True, False),
    "eta": (0.0, 1.0),
    "s_churn": (0.0, 4.0),
    "tau": (0.0, 1.0),
}
"""The options that distinguish methods, wherever a solver has them."""
REGULAR: Mapping[str, Any] = {"interval": (0.0, 1.0)}
"""Options whose other values have no order: noise that is switched on inside the range."""


def variations(name: str, *, noisy: bool = False) -> list[dict[str, Any]]:
    """The options of every different method that a registered solver offers.

    All combinations of `CHOICES` that the solver accepts, each method once: combinations whose
    plans are equal row by row are one method. Those whose plans are deterministic, or those that
    add noise.
    """
    return [dict(options) for options, stochastic in _variations(name) if stochastic == noisy]


@cache
def _variations(name: str) -> list[tuple[dict[str, Any], bool]]:
    build, defaults = find_solver(name).build, find_solver(name).defaults
    # The default first, so that of equal methods the one with fewer settings is kept.
    offered = {
        key: values if key == "order" else tuple(dict.fromkeys((defaults[key], *values)))
        for key, values in CHOICES.items()
        if key in defaults
    }
    seen: list[tuple[Row, ...]] = []
    found: list[tuple[dict[str, Any], bool]] = []
    for values in product(*offered.values()):
        options = dict(zip(offered, values, strict=True))
        options |= {key: value for key, value in REGULAR.items() if key in defaults}
        try:
            whole = partial(build, **full_options(name, build, options))
            plan = plan_of_steps(whole, 0.1, "uneven")
        except ValueError:  # not offered in this combination
            continue
        if plan.numeric and plan.rows not in seen:
            seen.append(plan.rows)
            found.append((options, plan.stochastic))
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
    """``options`` over the function's own defaults, with ``lower_order_final`` and restarts off."""
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
    if "restarts" in full:
        full["restarts"] = []  # what has an order is the way down
    return {**full, **options}


def show(options: Mapping[str, Any]) -> str:
    """Options as they are written in a call."""
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def offsets(grid: str, h: float) -> np.ndarray:
    """Lambda of the nodes of a grid with step size about h, up to a constant."""
    count = np.arange(_INTERVALS + 1)
    if grid == "ratio":  # sigma / alpha falls by h / 4 of its first value
        return -np.log1p(-0.25 * h * count)
    if grid == "uneven":
        return h * (count + 0.2 * np.sin(2.0 * count))
    return h * count


def plan_of_steps(build: Build, h: float, grid: str, start: float = -2.0) -> Plan:
    """The plan of a dozen steps of size about h from lambda = ``start`` on."""
    lams = start + offsets(grid, h)
    nodes = tuple(nodes_at_lams(SCHEDULE, torch.as_tensor(lams)))
    return build(Grid(SCHEDULE, nodes[0].t, nodes[-1].t, explicit=nodes), None)
