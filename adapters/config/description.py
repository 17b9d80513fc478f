"""What a config says of the model, of the solver and of the grid, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logsnr.solvers import Plan
from logsnr.solvers.tuning.cards import Cards

from .given_plan import given_plan, warn_of
from .grid_options import GridOptions, grid_options
from .model import Model, model_of
from .solver_choice import SolverChoice, solver_choice
from .store import Config, Edition


@dataclass(frozen=True)
class Description:
    """One ``edition`` of a config. Whoever lays out a run or makes a step reads this, no key.

    A ``plan`` stands instead of ``solver`` and ``grid``, which then are the defaults. ``cards`` are
    those of which the number of evaluations, which nobody has said yet, decides one.
    """

    edition: Edition
    model: Model
    solver: SolverChoice
    grid: GridOptions
    plan: Plan | None
    cards: Cards | None

    def __deepcopy__(self, memo: Any) -> Description:
        # Nothing in it changes, and plans are kept by the identity of its schedule.
        return self


def described(config: Config, n: int | None = None) -> Description:
    """The description of ``config`` as it is now, for a run of n evaluations.

    Raises ValueError naming a key with a bad value.
    """
    solver = solver_choice(config, n)
    model, grid = model_of(config), grid_options(config, solver.name)
    given = given_plan(config, n)
    plan = given if isinstance(given, Plan) else None
    if plan is not None and grid.shift is not None and not grid.shift.dynamic:
        warn_of(plan, shift=float(grid.shift.value))
    return Description(
        edition=config.edition,
        model=model,
        solver=solver,
        grid=grid,
        plan=plan,
        cards=given if isinstance(given, Cards) else None,
    )
