"""What `auto_plan` chooses from: solvers, orders, spacings, and rules for the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from ..location_fit import OF_A_GRID, default_solver
from ..logistic import default_location, default_scale
from ..model_statistics.ems import EMS
from ..plan import Coefficient, Plan
from ..registry import SOLVERS, find_solver, make_plan
from ..schedules import DiscreteVP, NoiseSchedule, is_straight

Options = Mapping[str, Any]

OF_FLOWS: tuple[tuple[str, Options], ...] = (
    ("ipndm", {"order": 2, "variable": "time", "corrector": True, "lower_order_final": True}),
    ("ipndm", {"order": 3, "variable": "time", "corrector": True, "lower_order_final": True}),
    ("ipndm", {"order": 2, "variable": "time", "lower_order_final": True}),
    ("ipndm", {"order": 3, "variable": "time"}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("dpm-solver++", {"order": 2}),
    ("heun", {"variable": "time"}),
    ("ddim", {}),
)
OF_OTHERS: tuple[tuple[str, Options], ...] = (
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("unipc", {"order": 2, "variant": "bh1"}),
    ("unipc", {"order": 2, "variant": "vary_coeff"}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3}),
    ("ipndm", {"order": 3}),
    ("deis", {"order": 3}),
    ("heun", {}),
    ("ddim", {}),
)
WITH_STATISTICS = ({"order": 2}, {"order": 3})
SPACINGS = ("karras", "trailing", "time", "logsnr", "kl_optimal")
AROUND = ((-0.4, 1.0), (0.4, 1.0), (0.0, 1.25))
"""Locations, beside the default one, and factors of the default scale."""


@dataclass(frozen=True)
class Candidate:
    """A solver with its options, those of the grid among them, and its plan."""

    solver: str
    options: Options
    plan: Plan = field(compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """The same for plans that are the same, however their options say it."""
        return repr([(row.evaluated, *map(_rounded, row.numbers())) for row in self.plan.rows])

    @property
    def without_grid(self) -> tuple[str, dict[str, Any]]:
        """The solver, and the options that are not those of the grid."""
        left_out = (*OF_A_GRID, "scale", "auto", "fit", "tuned")
        return self.solver, {k: v for k, v in self.options.items() if k not in left_out}

    @property
    def remade(self) -> bool:
        """Whether the solver makes such a plan on other nodes: not of fitted or cached rows."""
        return self.solver in SOLVERS and "cached" not in self.options

    @property
    def own_solver(self) -> dict[str, Any]:
        """The solver and its own options, as `tune` takes them."""
        own = find_solver(self.solver).defaults
        options = {k: v for k, v in self.options.items() if k in own}
        return {"solver": self.solver, "solver_options": options}

    @property
    def note(self) -> dict[str, Any]:
        """As JSON values; of objects that are none, whether they are there."""
        plain = str | int | float | bool | None
        return {
            "solver": self.solver,
            "options": {
                name: value if isinstance(value, plain) else True
                for name, value in self.options.items()
            },
        }


def _rounded(number: Coefficient) -> str:
    return f"{float(number.mean() if isinstance(number, Tensor) else number):.9g}"


class Pool:
    """Makes candidates of ``nfe`` evaluations, and notes what cannot be one.

    Parameters
    ----------
    run : what `make_plan` is told of every one: t_start, t_end, shift, snap.
    """

    def __init__(self, schedule: NoiseSchedule, nfe: int, run: Options):
        self.schedule, self.nfe, self.run = schedule, nfe, run
        self.refused: dict[str, str] = {}

    def default(self) -> Candidate:
        """What is used where nobody chooses. ValueError where it cannot be."""
        solver, options = default_solver(self.schedule, self.nfe)
        plan = make_plan(solver, self.schedule, nfe=self.nfe, **self.run, **options)
        return Candidate(solver, options, plan)

    def first(self, ems: EMS | None) -> Iterator[Candidate]:
        """Every solver on every spacing."""
        straight = is_straight(self.schedule)
        solvers = list(OF_FLOWS if straight else OF_OTHERS)
        if ems is not None:
            solvers += [("dpm-solver-v3", {**options, "ems": ems}) for options in WITH_STATISTICS]
        location = default_location(self.schedule, shift=self.run.get("shift", 1.0))
        scale = default_scale(self.schedule, self.nfe)
        grids: list[Options] = [{}, *({"spacing": name} for name in SPACINGS)]
        grids += [{"location": location + by, "scale": scale * wide} for by, wide in AROUND]
        for solver, options in solvers:
            for grid in grids:
                yield from self.made(solver, {**options, **grid})

    def last_steps(self, candidate: Candidate) -> Iterator[Candidate]:
        """The same solver and grid with other rules for the last step."""
        options = candidate.options
        for value in (True, False):
            if value != candidate.plan.options.get("lower_order_final", value):
                yield from self.made(candidate.solver, {**options, "lower_order_final": value})
        to_zero = self.run.get("t_end", self.schedule.t_end) == 0
        if to_zero and candidate.plan.rows[-1].node.sigma == 0 and self.nfe > 1:
            end = 1 / self.schedule.steps if isinstance(self.schedule, DiscreteVP) else 1e-3
            yield from self.made(
                candidate.solver, {**options, "t_end": end, "denoise_to_zero": True}
            )

    def given(self, solver: str, options: Options) -> Candidate:
        """A candidate of the user's. ValueError where it is none."""
        nfe = self.nfe - int(bool(options.get("denoise_to_zero")))
        plan = make_plan(solver, self.schedule, **{"nfe": nfe, **self.run, **options})
        if plan.nfe != self.nfe or plan.stochastic:
            raise ValueError(
                f"candidates has {solver!r} with {dict(options)}, {plan!r}: need {self.nfe} "
                "evaluations, and no noise"
            )
        return Candidate(solver, options, plan)

    def made(self, solver: str, options: Options) -> Iterator[Candidate]:
        """The candidate, if it is a run of so many evaluations."""
        try:
            yield self.given(solver, options)
        except ValueError as error:
            self.refused[str(error).partition(":")[0]] = str(error)
