r"""Heun's method in sigma (Karras et al. 2022, algorithm 1), for any schedule.

In y = x / alpha and s = sigma / alpha the probability-flow ODE is dy/ds = eps, so that

    y_p = y + (s' - s) eps(y, s),          y' = y + (s' - s) (eps(y, s) + eps(y_p, s')) / 2.

Two evaluations a step, order 2. The step to sigma = 0 (or from alpha = 0) is an Euler step.
"""

from __future__ import annotations

from ..grids import Grid
from ..plan import DATA, NOISE, Node, Plan, Row
from ..registry import solver
from .multistep import first_order


@solver(
    "heun",
    order=lambda options: 2,
    nfe_per_step=2,
    title="Heun's method in sigma (EDM)",
    paper="karras2022edm",
)
def heun(grid: Grid, nfe: int | None = None) -> Plan:
    """EDM's Heun sampler, order 2, two evaluations a step.

    ``nfe`` evaluations make (nfe + e) / 2 steps, where e counts the Euler steps at infinite
    lambda; if that is not whole, the last step is an Euler step too.
    """
    start, end = grid.explicit[:: len(grid.explicit) - 1] if grid.explicit else grid.nodes(1)
    forced = (start.alpha == 0) + (end.sigma == 0)
    if grid.intervals is not None:
        steps = grid.intervals
        full = 2 * steps - min(forced, steps)
        if nfe is not None and nfe not in (full, full - 1):
            raise ValueError(f"nfe={nfe}: the grid of {steps} intervals takes {full}")
        nfe = full if nfe is None else nfe
    elif nfe is None or nfe < 1:
        raise ValueError(f"nfe={nfe!r}: need at least 1")
    else:
        steps = (nfe + forced + 1) // 2 if nfe > 1 else 1
    nodes = grid.nodes(steps)
    euler = {i for i in range(steps) if nodes[i].alpha == 0 or nodes[i + 1].sigma == 0}
    for i in reversed(range(steps)):
        if 2 * steps - len(euler) > nfe:
            euler.add(i)
    rows = [Row(nodes[0])]
    for i, node in enumerate(nodes[1:]):
        _step(rows, node, single=i in euler)
    return Plan(tuple(rows))


def _step(rows: list[Row], end: Node, *, single: bool) -> None:
    base, start = len(rows) - 1, rows[-1].node
    target = DATA if start.alpha == 0 or end.sigma == 0 else NOISE
    rows[base] = Row(start, rows[base].states, rows[base].outputs, target)
    a, b = first_order(target, start, end)
    states = ((base, a),) if a != 0 else ()
    if single:
        rows.append(Row(end, states, ((base, b),)))
        return
    rows.append(Row(end, states, ((base, b),), NOISE))
    rows.append(Row(end, states, ((base, b / 2), (base + 1, b / 2))))
