"""What a fit of a grid is about: a solver on a schedule, and the plans that it may become."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import check_whole
from ..denoiser import Denoiser
from ..location_fit import OF_A_GRID, default_solver
from ..logistic import default_location
from ..plan import Plan
from ..registry import make_plan
from ..schedules import NoiseSchedule
from .grid_family import GridFamily
from .references import OF_THE_RUN

OF_THE_NODES = ("t_start", "t_end", "shift", "snap")
"""What `make_plan` takes of a spaced grid only."""


def schedule_of(denoise: Any, schedule: NoiseSchedule | None) -> NoiseSchedule:
    """The schedule that was given, or the denoiser's own; ValueError where there is none."""
    if schedule is None and isinstance(denoise, Denoiser):
        return denoise.schedule
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(
            f"schedule={schedule!r}: need a NoiseSchedule, beside a function without one"
        )
    return schedule


class GridProblem:
    """A solver with ``nfe`` evaluations, whose nodes are free.

    Parameters
    ----------
    solver, options : as of `make_plan`; None is the default for the schedule. Options of the run
        (t_start, t_end, shift, snap, denoise_to_zero) among them.

    Raises ValueError for options of a spaced grid, and for a solver that adds noise or has no run
    of so many evaluations.
    """

    def __init__(
        self, schedule: NoiseSchedule, solver: str | None, nfe: int, options: dict[str, Any]
    ):
        check_whole("nfe", nfe, 1)
        for key in OF_A_GRID:
            if key in options:
                raise ValueError(f"{key}={options[key]!r}: the grid is what is fitted")
        options = {key: value for key, value in options.items() if value is not None}
        if solver is None:
            solver, own = default_solver(schedule, nfe)
            options = {**own, **options}
        self.schedule, self.solver, self.nfe = schedule, solver, nfe
        self.ends = {key: value for key, value in options.items() if key in OF_THE_RUN}
        self.own = {key: value for key, value in options.items() if key not in OF_THE_NODES}
        # The data prediction at the end is one evaluation beyond those of the grid.
        self.of_the_grid = nfe - int(bool(options.get("denoise_to_zero")))
        self.default = make_plan(solver, schedule, nfe=self.of_the_grid, **options)
        if self.default.stochastic:
            raise ValueError(f"solver={solver!r} adds noise: it has no distance to the solution")
        self.family = self._family()

    @property
    def start(self) -> list[float]:
        """The point of the family where a search begins."""
        location, scale = self.family.default
        if "shift" in self.ends:
            location = default_location(self.schedule, shift=self.ends["shift"])
        return [location, scale]

    def on(self, times: Tensor) -> Plan:
        """The plan on a grid."""
        return make_plan(self.solver, self.schedule, nfe=self.of_the_grid, times=times, **self.own)

    def at(self, point: list[float]) -> Plan:
        """The plan on a grid of the family."""
        return self.on(self.family.times(point))

    def fitted(self, plan: Plan, note: dict[str, Any]) -> Plan:
        """The plan with a note of its fit."""
        return plan.labelled(plan.solver, {**plan.options, "fit": note})

    def _family(self) -> GridFamily:
        """The grids of as many intervals as make ``nfe`` evaluations."""
        ends = {"t_start": self.schedule.t_start, "t_end": self.schedule.t_end} | self.ends
        span = float(ends["t_start"]), float(ends["t_end"])
        for n in range(self.nfe, 0, -1):
            family = GridFamily(self.schedule, n, *span, bool(self.ends.get("snap")))
            try:
                self.on(family.times(family.default))
            except ValueError as error:  # of a number of intervals that does not fit
                refused = error
            else:
                return family
        raise ValueError(f"nfe={self.nfe}: {refused}")
