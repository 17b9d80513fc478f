"""The registry as a list: each solver's names, orders, cost, and when to use it."""

from __future__ import annotations

from dataclasses import dataclass

from logsnr.solvers import SOLVERS, Grid, Solver, VPLinear
from logsnr.solvers.names import ALIASES

HIGHEST = 12
_GRID, _NFE = Grid(VPLinear(), 1.0, 1e-3), 24


@dataclass(frozen=True)
class Listed:
    """A solver.

    ``orders`` are those it can be given, or the one it has; ``cost`` is the number of evaluations
    of a full step with its default options; ``aliases`` are names that other programs use.
    ``strong`` and ``weak`` are the orders of runs with noise, with the default options; None for
    solvers that add none.
    """

    name: str
    title: str
    orders: list[int]
    cost: int
    when: str
    aliases: list[str]
    strong: float | None
    weak: float | None


def listed() -> list[Listed]:
    """All solvers, in the order in which they were registered."""
    return [
        Listed(
            name,
            solver.title,
            orders_of(solver),
            solver.nfe_per_step(solver.defaults),
            solver.when,
            [alias for alias, (meant, _) in ALIASES.items() if meant == name],
            *(order and order(solver.defaults) for order in (solver.strong, solver.weak)),
        )
        for name, solver in SOLVERS.items()
    ]


def orders_of(solver: Solver) -> list[int]:
    """The values of ``order`` with which there is a plan; without the option, the order it has."""
    if "order" not in solver.defaults:
        return [solver.order(solver.defaults)]
    found = []
    for order in range(1, HIGHEST + 1):
        try:
            solver.build(_GRID, _NFE, order=order)
        except ValueError:
            continue
        found.append(order)
    return found
