r"""Grids fitted to a network that is called and not differentiated: quantised, compiled, offloaded.

Four methods, from what each needs of the network; errors are those at the end of runs from common
starts.

    location   the location and the scale of the logistic grid: first some locations, as
               `fit_location` tries them, then both by parabolas. Two numbers, most of the gain.
    lattice    dynamic programming over the nodes of one long run (`lattice`), of orders 1 and 2.
    proxy      the same two numbers and two stretches by the midpoint proxy (`proxy`).
    search     every node: the better of "location" and "lattice", then stretches of that grid
               (`grid_family`), one by one.

What comes back is the nearest, from the starts it was given, of all grids that were run, the
default one among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_whole, check_whole_or_none
from ..denoiser import Denoiser, check_start
from ..grids import nodes_at
from ..location_fit import lowest
from ..plan import Plan
from ..progress import Show, progress_bar
from ..schedules import NoiseSchedule, is_straight
from .errors import MEASURES, summary
from .grid_problem import GridProblem, schedule_of
from .lattice import dp_nodes
from .proxy import MidpointProxy
from .references import reference_plan
from .search import coordinate_search
from .trajectory import Trajectory, record
from .trials import REFERENCE_NFE, Trials, converged

METHODS = ("location", "lattice", "proxy", "search")
LATTICE = 60
"""Evaluations of the long run that the lattice and the proxy look at."""
SCAN = (-0.8, -0.4, 0.0, 0.4, 0.8)
"""Locations that are tried first, from the default one; more beyond an end that is the best."""
MOST_BEYOND = 5
STEPS = (0.2, 0.25)
"""First steps of the location and of the log of the scale."""
STRETCH = 0.3
"""The first step of a stretch."""
PROXY_STRETCHES = 2
PROXY_SWEEPS = 8
"""The proxy costs no evaluation."""
SWEEPS = 2, 3
"""Over location and scale, and over all numbers of "search"."""


@torch.no_grad()
def fit_grid(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    nfe: int = 8,
    *,
    method: str = "location",
    schedule: NoiseSchedule | None = None,
    solver: str | None = None,
    targets: Tensor | None = None,
    measure: str = "log",
    sweeps: int | None = None,
    batch_size: int = 64,
    progress: Show = False,
    **plan: Any,
) -> Plan:
    """The plan of a solver on the grid at which ``nfe`` evaluations end nearest to the solution.

    No gradients are asked for: anything that can be called will do. Two dozen starts do well.
    Evaluations of the batch at 8 NFE, beside 100 for the targets: location about 140, lattice and
    proxy 80, search about 700.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0.
    starts : start states (B, *event); see `Plan.start`.
    nfe : network evaluations of the plan.
    method : "location", "lattice", "proxy" or "search"; see the module's text.
    schedule : of the network; None is the denoiser's own.
    solver : None is UniPC-2, on the straight path iPNDM-2 in t with its corrector.
    targets : (B, *event) converged solutions from the starts; None makes them by a long run.
    measure : of the errors over the starts: "log", the geometric mean; "median"; or "rmse", which
        the few samples decide that end at another image.
    sweeps : over the numbers that "location" or "search" fits; None is 2 and 3.
    batch_size : starts that run at once.
    progress : show a bar over the runs of the batch, or a function of those done and the most.
    plan : more for `make_plan`: t_start, t_end, shift, snap, denoise_to_zero and the solver's own
        options.

    ``options["fit"]`` of the plan notes the method, the errors of the default grid and of this one,
    the numbers that were found, and the evaluations of one start that were spent. Raises ValueError
    for bad input before the network is called.
    """
    check_start(starts, denoise)
    check_choice("method", method, METHODS)
    check_whole_or_none("sweeps", sweeps, 1)
    check_choice("measure", measure, MEASURES)
    check_whole("batch_size", batch_size, 1)
    if targets is not None and targets.shape != starts.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}: need that of starts, {tuple(starts.shape)}"
        )
    problem = GridProblem(schedule_of(denoise, schedule), solver, nfe, plan)
    spent = 0
    if targets is None:
        targets = converged(denoise, starts, problem.schedule, batch_size, **problem.ends)
        spent = REFERENCE_NFE
    fit = _Fit(problem, Trials(denoise, starts, targets, batch_size), spent, measure)
    with fit.shown(method, sweeps, progress):
        if method == "lattice":
            fit.by_lattice()
        elif method == "proxy":
            fit.by_proxy()
        else:
            fit.by_location(sweeps or SWEEPS[0])
        if method == "search":
            fit.by_lattice()
            fit.by_search(sweeps or SWEEPS[1])
    return fit.result(method)


class _Fit:
    """The grids that were run, and the nearest of them."""

    def __init__(self, problem: GridProblem, trials: Trials, spent: int, measure: str):
        self.problem, self.trials, self.spent = problem, trials, spent
        self.measure = measure
        self.runs = 0
        self.show: Callable[[int], None] = lambda done: None
        self.best = problem.default
        self.best_times = problem.family.times(problem.start)
        self.before = self.least = self._error("default", problem.default)

    @contextmanager
    def shown(self, method: str, sweeps: int | None, progress: Show) -> Iterator[None]:
        """Progress over runs."""
        scan = len(SCAN) + MOST_BEYOND + 3 * len(STEPS) * (sweeps or SWEEPS[0])
        stretched = 3 * (len(STEPS) + self.problem.family.stretches) * (sweeps or SWEEPS[1])
        most = {"lattice": 2, "proxy": 1, "location": scan, "search": 2 + scan + stretched}[method]
        with progress_bar(1 + most, progress, unit="run") as show:
            self.show = show
            yield
            show(1 + most)

    def by_location(self, sweeps: int) -> None:
        """The logistic grid's two numbers."""
        location, scale = self.problem.start
        places = [location + by for by in SCAN]
        logs = [self._at([place, scale]) for place in places]
        for _ in range(MOST_BEYOND):
            if logs[0] == min(logs):
                places.insert(0, places[0] - (SCAN[1] - SCAN[0]))
                logs.insert(0, self._at([places[0], scale]))
            elif logs[-1] == min(logs):
                places.append(places[-1] + SCAN[-1] - SCAN[-2])
                logs.append(self._at([places[-1], scale]))
            else:
                break
        start = [lowest(places, logs), scale]
        coordinate_search(self._at, start, STEPS, sweeps=sweeps)

    def by_search(self, sweeps: int) -> None:
        """Every node, from the best grid so far."""
        family = self.problem.family.around(self.best_times)
        start = [*family.default, *[0.0] * family.stretches]
        steps = [step / 2 for step in STEPS] + [STRETCH] * family.stretches

        def value(point: list[float]) -> float:
            return self._on(family.times(point))

        coordinate_search(value, start, steps, sweeps=sweeps)

    def by_lattice(self) -> None:
        """The best paths over the nodes of a long run."""
        trajectory = self._trajectory()
        straight = is_straight(self.problem.schedule)
        times = torch.tensor([node.t for node in trajectory.nodes], dtype=torch.float64)
        for order in (1, 2):
            path = dp_nodes(trajectory, self.problem.family.n, order=order, straight=straight)
            self._on(self.problem.family.placed(times[path]))

    def by_proxy(self) -> None:
        """The least proxy, which is run once."""
        family, proxy = self.problem.family, MidpointProxy(self._trajectory())

        def value(point: list[float]) -> float:
            return proxy(nodes_at(family.schedule, family.times(point)))

        start = coordinate_search(value, self.problem.start, STEPS, sweeps=PROXY_SWEEPS)
        stretches = min(PROXY_STRETCHES, family.stretches)
        start = [*start, *[0.0] * stretches]
        steps = [*STEPS, *[STRETCH] * stretches]
        self._at(coordinate_search(value, start, steps, sweeps=PROXY_SWEEPS))

    def _trajectory(self) -> Trajectory:
        count = max(LATTICE, 2 * self.problem.nfe)
        plan = reference_plan(self.problem.schedule, count, **self.problem.ends)
        self.spent += plan.nfe
        return record(self.trials.denoise, self.trials.starts, plan)

    def _at(self, point: list[float]) -> float:
        return self._on(self.problem.family.times(point))

    def _on(self, times: Tensor) -> float:
        """The log error of the plan on a grid; the nearest is kept."""
        error = self._error(tuple(times.tolist()), self.problem.on(times))
        if error < self.least:
            self.best, self.least, self.best_times = self.problem.on(times), error, times
        return math.log(error)

    def _error(self, key: Hashable, plan: Plan) -> float:
        error = summary(self.trials.errors(key, plan)).of(self.measure)
        self.runs += 1
        self.show(self.runs)
        return error

    def result(self, method: str) -> Plan:
        """The nearest plan, with its note."""
        note = {
            "method": method,
            "measure": self.measure,
            "times": list(self.best.times),
            "before": self.before,
            "after": self.least,
            "starts": len(self.trials.starts),
            "evaluations": self.spent + self.trials.spent // len(self.trials.starts),
        }
        return self.problem.fitted(self.best, note)
