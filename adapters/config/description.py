"""What a config says of the model, of the solver and of the grid, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logsnr.solvers import Plan

from .given_plan import given_plan
from .grid_options import GridOptions, grid_options
from .model import Model, model_of
from .solver_choice import SolverChoice, solver_choice
from .store import Config, Edition


@dataclass(frozen=True)
class Description:
    """One ``edition`` of a config. Whoever lays out a run or makes a step reads this, no key.

    A ``plan`` stands instead of ``solver`` and ``grid``, which then are the defaults.
    """

    edition: Edition
    model: Model
    solver: SolverChoice
    grid: GridOptions
    plan: Plan | None

    def __deepcopy__(self, memo: Any) -> Description:
        # Nothing in it changes, and plans are kept by the identity of its schedule.
        return self


def described(config: Config, n: int | None = None) -> Description:
    """The description of ``config`` as it is now, for a run of n evaluations.

    Raises ValueError naming a key with a bad value.
    """
    solver = solver_choice(config, n)
    return Description(
        edition=config.edition,
        model=model_of(config),
        solver=solver,
        grid=grid_options(config, solver.name),
        plan=given_plan(config),
    )
