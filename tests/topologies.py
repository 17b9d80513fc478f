"""One solver for each shape of a plan's table: what the tests of the executor run over.

What fills in the rows of a plan sees which earlier rows a row takes, which rows are evaluated and
for what; solvers that agree in that run through the same code with other numbers. A property of the
executor (copies, dtypes, batches, edits, layouts, writes) therefore needs one case a shape, and a
property of the numbers needs them all. A new solver of a new shape is a new case by itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from cases import NFE, SCHEDULES, is_stochastic, plan_for, solver_cases
from torch import Tensor

from logsnr.solvers import Plan
from logsnr.solvers.plan import Coefficient

REGULAR = {"schedule": SCHEDULES["vp_linear"], "nfe": NFE, "spacing": "logsnr"}
FROM_PURE_NOISE = {"schedule": SCHEDULES["flow"], "nfe": NFE}


def topology(plan: Plan) -> Hashable:
    """The table of ``plan`` without its numbers: which terms there are, and which of them are 0."""
    return tuple(
        (
            None if row.target is None else tuple(map(_kind, row.target)),
            tuple(j for j, _ in row.states),
            tuple(j for j, _ in row.outputs),
            _kind(row.offset),
            len(row.noise),
        )
        for row in plan.rows
    )


def _kind(value: Coefficient) -> str:
    return "tensor" if isinstance(value, Tensor) else "number" if value else "zero"


def topology_cases(grid: dict[str, Any] = REGULAR, *, stochastic: bool = False) -> list[Any]:
    """(solver, options) as pytest parameters: the first case of each topology on ``grid``.

    With ``stochastic``, plans that add noise too.
    """
    cases = [c for c in solver_cases() if stochastic or not is_stochastic(*c.values)]
    first: dict[Hashable, Any] = {}
    for case in cases:
        name, options = case.values
        first.setdefault(topology(plan_for(name, grid, options)), case)
    return list(first.values())
