"""The registered plans that a fit begins from, and the one that is left as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..logistic import default_location, default_scale
from ..plan import Plan
from ..registry import chosen_solver, make_plan
from ..scalar import plain
from ..schedules import NoiseSchedule, is_straight

SIDES = (0.0, -0.4, 0.4)
LOCATIONS = (*SIDES, -0.8, 0.8)
SCALES = (1.0, 0.8, 1.25)
APART = 0.35
"""Locations nearer than this are alike."""
IN_TIME: dict[str, Any] = {"variable": "time", "corrector": True, "lower_order_final": True}


@dataclass(frozen=True)
class Base:
    """A solver and its options, and where its nodes are."""

    solver: str
    options: Mapping[str, Any]
    grid: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, schedule: NoiseSchedule, nfe: int) -> Plan:
        """On its grid."""
        return make_plan(self.solver, schedule, nfe=nfe, **self.grid, **self.options)

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        grid = {key: value for key, value in self.grid.items() if value is not None}
        return {"solver": self.solver, "options": dict(self.options), "grid": grid}

    def remaking(self, schedule: NoiseSchedule) -> Callable[[list[float]], Plan]:
        """times -> the plan on these nodes."""
        return lambda times: make_plan(self.solver, schedule, times=times, **self.options)


def usual(schedule: NoiseSchedule, nfe: int, ends: Mapping[str, Any]) -> Base:
    """What runs where nobody says anything: see docs/choosing.md."""
    if is_straight(schedule):
        relaxation = 0.75 if nfe <= 7 else 0.9
        return Base("ipndm", {"order": min(2, nfe), **IN_TIME, "relaxation": relaxation}, ends)
    return Base("unipc", {"order": min(2, nfe)}, ends)


def candidates(schedule: NoiseSchedule, nfe: int, ends: Mapping[str, Any]) -> list[Base]:
    """Solvers among which the fit begins with the best."""
    found = [usual(schedule, nfe, ends)]
    for solver, order in (("unipc", 2), ("unipc", 3), ("dpm-solver++", 2), ("ipndm", 3)):
        base = Base(solver, {"order": min(order, nfe)}, ends)
        if base not in found:
            found.append(base)
    return [base for base in found if _possible(base, schedule, nfe)]


def named(
    solver: str, options: Mapping[str, Any], schedule: NoiseSchedule, nfe: int, ends: Mapping
) -> Base:
    """The one that the user named. Raises ValueError for what `make_plan` refuses."""
    chosen_solver(solver, options)
    base = Base(solver, dict(options), ends)
    plan = base.plan(schedule, nfe)
    if plan.stochastic:
        raise ValueError(f"solver={solver!r} adds noise: it has no distance to the solution")
    if plan.nfe != nfe:
        raise ValueError(f"nfe={nfe}: solver={solver!r} makes {plan.nfe} evaluations of it")
    return base


def ranked(
    bases: list[Base], score: Callable[[Base], float], schedule: NoiseSchedule, nfe: int
) -> list[Base]:
    """Bases on grids of several locations and scales, lowest ``score`` first, no two alike.

    Solvers are compared at the usual location and to either side of it; then the best one's scale
    and the locations further off.
    """
    usual_c, usual_s = plain(default_location(schedule)), default_scale(schedule, nfe)
    tried: dict[tuple[int, float, float], float] = {}

    def error(i: int, location: float, scale: float) -> float:
        key = i, round(location, 6), round(scale, 6)
        if key not in tried:
            tried[key] = score(at(*key))
        return tried[key]

    def at(i: int, location: float, scale: float) -> Base:
        grid = {**bases[i].grid, "location": usual_c + location, "scale": usual_s * scale}
        return replace(bases[i], grid=grid)

    i = min(range(len(bases)), key=lambda i: min(error(i, c, 1.0) for c in SIDES))
    c = min(LOCATIONS, key=lambda c: error(i, c, 1.0))
    s = min(SCALES, key=lambda s: error(i, c, s))
    min((c, c - 0.2, c + 0.2), key=lambda c: error(i, c, s))
    found: list[tuple[int, float, float]] = []
    for key in sorted(tried, key=lambda key: tried[key]):
        if all(key[0] != other[0] or abs(key[1] - other[1]) > APART for other in found):
            found.append(key)
    return [at(*key) for key in found]


def _possible(base: Base, schedule: NoiseSchedule, nfe: int) -> bool:
    try:
        return base.plan(schedule, nfe).nfe == nfe
    except ValueError:
        return False
