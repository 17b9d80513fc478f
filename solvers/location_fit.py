r"""The location of the logistic grid fitted to a network, by a few short runs.

Where evaluations are worth most is a property of the data, and `default_location` knows only rules
for it. The error that few evaluations leave, as a function of the location, has one flat valley:
some short runs find it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import is_whole
from .denoiser import Denoiser, check_start
from .plan import Plan
from .registry import make_plan
from .running import sample
from .schedules import NoiseSchedule, is_straight
from .tuning.references import reference_plan

LOCATIONS = (-1.2, -0.8, -0.4, 0.0, 0.4, 0.8)
NFE = (6, 8)
OF_FLOWS: tuple[str, dict[str, Any]] = (
    "ipndm",
    {
        "order": 2,
        "variable": "time",
        "corrector": True,
        "relaxation": 0.9,
        "lower_order_final": True,
    },
)
OF_OTHERS: tuple[str, dict[str, Any]] = ("unipc", {"order": 2})
OF_A_GRID = ("spacing", "rho", "location", "times", "sigmas", "lams")


@dataclass(frozen=True)
class FittedLocation:
    """What `fit_location` found.

    Parameters
    ----------
    location : the one to use, in lambda.
    tried, errors : the locations that were run, rising, and the error of each: the geometric mean,
        over the numbers of evaluations and the starts, of the RMSE to the reference.
    evaluations : how often the network was called on the batch.
    """

    location: float
    tried: tuple[float, ...]
    errors: tuple[float, ...]
    evaluations: int

    @property
    def at_an_end(self) -> bool:
        """Whether the best location may lie beyond those that were tried."""
        return self.location in (self.tried[0], self.tried[-1])


@torch.no_grad()
def fit_location(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    solver: str | None = None,
    nfe: Sequence[int] = NFE,
    locations: Sequence[float] = LOCATIONS,
    reference_nfe: int = 60,
    **plan: Any,
) -> FittedLocation:
    r"""The ``location`` of the logistic grid at which few evaluations are most accurate.

    One long run of UniPC-3 on a wide logistic grid in the middle of ``locations`` is the reference.
    Then the solver runs at each location c with each number of evaluations n, and with e(c, n, i)
    the RMSE of start i,

        E(c) = mean over n and i of log e(c, n, i)

    is minimised: by the vertex of the parabola through the best location and its neighbours, or
    through the three at an end, and never beyond the ends of the list. By default that takes
    60 + 6 (6 + 8) = 144 evaluations of the batch. Eight starts tell the location to about 0.3, and
    the valley is as flat as that.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0.
    x_T : some start states (B, *event), eight or so; see `Plan.start`.
    schedule : of the network.
    solver : the solver that the location is for; None is UniPC-2, on the straight path iPNDM-2 in t
        with its corrector.
    nfe : its numbers of evaluations.
    locations : those to try, rising, three at least. Data of another scale have their best
        location elsewhere: k times the data moves it by -log k.
    reference_nfe : evaluations of the reference, more than any of ``nfe``.
    plan : more for `make_plan`: t_start, t_end, scale, shift, snap and the solver's own options.

    Raises ValueError for bad input before the network is called, and for a network whose outputs
    are not finite.
    """
    check_start(x_T, denoise)
    places, counts = _locations(locations), _counts(nfe, reference_nfe)
    for key in OF_A_GRID:
        if key in plan:
            raise ValueError(f"{key}={plan[key]!r}: the grids of the fit are logistic ones")
    if solver is None:
        solver, own = default_solver(schedule)
        plan = {**own, **plan}
    plans = {
        c: [make_plan(solver, schedule, nfe=n, location=c, **plan) for n in counts] for c in places
    }
    _check_deterministic(solver, plans[places[0]])
    middle = (places[0] + places[-1]) / 2
    long = reference_plan(schedule, reference_nfe, location=middle, **plan)
    exact = sample(denoise, x_T, long).double()
    # Where a run is exact, as on data at one point, what is left is rounding.
    least = torch.finfo(x_T.dtype).eps * float(exact.square().mean().sqrt())

    def log_error(short: Plan) -> float:
        gaps = (sample(denoise, x_T, short).double() - exact).flatten(1)
        return float(gaps.square().mean(1).sqrt().clamp(min=least or 1e-300).log().mean())

    logs = [sum(map(log_error, short)) / len(counts) for short in plans.values()]
    spent = long.nfe + sum(short.nfe for both in plans.values() for short in both)
    return FittedLocation(lowest(places, logs), places, tuple(map(math.exp, logs)), spent)


def default_solver(schedule: NoiseSchedule, nfe: int = 2) -> tuple[str, dict[str, Any]]:
    """The solver for few evaluations of models with this schedule, and its options."""
    straight = isinstance(schedule, NoiseSchedule) and is_straight(schedule)
    solver, options = OF_FLOWS if straight else OF_OTHERS
    return solver, {**options, "order": min(options["order"], nfe)}


def lowest(locations: Sequence[float], logs: Sequence[float]) -> float:
    """Where the parabola through the least of ``logs`` and its neighbours is lowest.

    Within the ends of ``locations``; the least itself where the three are no valley. Of entries
    that are infinite none is the least, unless all are (ValueError).
    """
    best = min(range(len(logs)), key=lambda k: logs[k])
    if not math.isfinite(logs[best]):
        raise ValueError(f"no run at any of the locations {list(locations)} came to an end")
    middle = min(max(best, 1), len(logs) - 2)
    (a, b, c), (f, g, h) = locations[middle - 1 : middle + 2], logs[middle - 1 : middle + 2]
    left, right = (g - f) / (b - a), (h - g) / (c - b)
    curvature = (right - left) / (c - a)
    if not 0 < curvature < math.inf:
        return locations[best]
    vertex = (a + b) / 2 - left / (2 * curvature)
    return min(max(vertex, locations[0]), locations[-1])


def _locations(locations: Sequence[float]) -> tuple[float, ...]:
    try:
        places = tuple(float(c) for c in locations)
    except (TypeError, ValueError) as error:
        raise ValueError(f"locations={locations!r}: need a list of numbers") from error
    rising = all(a < b for a, b in zip(places, places[1:], strict=False))
    if len(places) < 3 or not rising or not all(map(math.isfinite, places)):
        raise ValueError(f"locations={list(places)}: need at least three finite numbers, rising")
    return places


def _counts(nfe: Sequence[int], reference_nfe: int) -> tuple[int, ...]:
    counts = tuple(nfe) if isinstance(nfe, Sequence) else ()
    if not counts or not all(is_whole(count, 1) for count in counts):
        raise ValueError(f"nfe={nfe!r}: need a list of whole numbers of at least 1")
    if not is_whole(reference_nfe, 1) or reference_nfe <= max(3, *counts):
        raise ValueError(
            f"reference_nfe={reference_nfe!r}: need a whole number above {max(3, *counts)}"
        )
    return counts


def _check_deterministic(solver: str, plans: Sequence[Plan]) -> None:
    if any(short.stochastic for short in plans):
        raise ValueError(f"solver={solver!r} adds noise: it has no distance to the solution")
