r"""Restart sampling (Xu et al. 2023, algorithm 1): back to a higher level of noise, several times.

On the way from noise to data the run stops at the level ``low`` of rho = sigma / alpha. There it
adds fresh noise up to ``high``,

    x_high = (alpha_high / alpha_low) x_low + n z,
    n^2 = sigma_high^2 - (alpha_high / alpha_low)^2 sigma_low^2,

and solves the ODE down to ``low`` again, in ``steps`` steps of the published spacing (rho^(1/7) at
equal distances); so it does ``times`` times, and goes on. The noise contracts the errors that were
made before, and the steps between are those of an ODE.

Any deterministic solver does the steps (``base``). Each piece is a plan of its own, without a
history from before the jump, and all are one plan. The noise of the jumps is that of the clock
"restart", which counts them: jump i is its interval [i, i + 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .. import scalar
from ..checks import check_at_least_0, is_whole
from ..grids import Grid
from ..names import in_words
from ..plan import Node, Noise, Plan, Row
from ..registry import Solver, find_solver, solver
from ..scalar import plain
from ..schedules import NoiseSchedule
from .runge_kutta import at_lams

RHO = 7.0
DEFAULT = (0.1, 2.0, 2)
"""low, high and times where nothing else is said."""


class Interval(NamedTuple):
    """Where to go back from and to, in how many steps, and how often."""

    low: float
    high: float
    steps: int
    times: int


class Piece(NamedTuple):
    """A way down, and whether a jump leads to its start."""

    nodes: Sequence[Node]
    jump: bool


def _order(options: Mapping[str, Any]) -> int:
    return _base(options["base"]).order(_base(options["base"]).defaults)


@solver(
    "restart",
    order=_order,
    nfe_per_step=lambda options: _cost(_base(options["base"])),
    weak=lambda options: float(_order(options)),
    title="Restart: an ODE solver that goes back to more noise, several times",
    when="samples rather than speed, at thirty evaluations and more",
    paper="xu2023restart",
    spaces=("data", "noise"),
)
def restart(
    grid: Grid,
    nfe: int | None = None,
    *,
    base: str = "heun",
    restarts: Sequence[Sequence[float]] | None = None,
    s_noise: float = 1.0,
) -> Plan:
    """Restart sampling with the solver ``base``; see the module's text.

    Parameters
    ----------
    base : a deterministic solver, with its default options.
    restarts : a list of (low, high, steps, times), the levels in sigma / alpha; ``low`` is moved to
        the nearest node. The published [N, K, t_min, t_max] is (t_min, t_max, N - 1, K). None is
        (0.1, 2, steps, 2) with half of the evaluations; nothing where they are too few, where the
        grid has no node near 0.1, and on an explicit grid.
    s_noise : amplitude of the noise; other values than 1 leave the marginals.

    ``nfe`` counts all evaluations; those that the restarts leave are spent on the way. Raises
    ValueError naming the option that is out of range, for a base that adds noise, and for restarts
    in an inversion.
    """
    check_at_least_0("s_noise", s_noise)
    entry = _base(base)
    chosen = _default(grid, nfe, entry) if restarts is None else _checked(restarts)
    if not chosen:
        return entry.build(grid, nfe)
    if grid.invert:
        raise ValueError(f"restarts={restarts!r}: an inversion is deterministic, and needs []")
    plans = _plans(grid, nfe, entry, chosen)
    if any(plan.stochastic for plan, _ in plans):
        raise ValueError(f"base={base!r}: need a solver that adds no noise")
    rows, jumps = [plans[0][0].rows[0]], 0
    for plan, jump in plans:
        if jump:
            rows.append(_up(rows, plan.rows[0].node, jumps, s_noise))
            jumps += 1
        _append(rows, plan.rows)
    consistent = s_noise == 1 and all(plan.consistent for plan, _ in plans)
    options = {} if restarts is None else {"restarts": [list(one) for one in chosen]}
    return Plan(tuple(rows), options=options, consistent=consistent)


def _base(name: str) -> Solver:
    with in_words({"solver": "base"}):
        entry = find_solver(name)
    if entry.name == "restart":
        raise ValueError(f"base={name!r}: need a solver that adds no noise")
    return entry


def _cost(base: Solver) -> int:
    return base.nfe_per_step(base.defaults)


def _default(grid: Grid, nfe: int | None, base: Solver) -> list[Interval]:
    low, high, times = DEFAULT
    steps = 0 if nfe is None or grid.intervals is not None else nfe // (2 * times * _cost(base))
    if not steps or nfe is None or grid.invert:
        return []
    one = Interval(low, high, steps, times)
    try:
        plans = _plans(grid, nfe, base, [one])
    except ValueError:  # coarse grids, and short ones, have no node to go back from
        return []
    # Nor is it worth while where that is far from ``low``.
    reached = [-plain(plan.rows[-1].node.lam) for plan, jump in plans if jump]
    return [one] if reached[0] < math.log(low * high) / 2 else []


def _checked(restarts: Any) -> list[Interval]:
    try:
        found = [Interval(*one) for one in restarts]
        right = all(
            0 < one.low < one.high < math.inf and is_whole(one.steps, 1) and is_whole(one.times, 1)
            for one in found
        )
    except TypeError:
        right = False
    if not right:
        raise ValueError(
            f"restarts={restarts!r}: need a list of (low, high, steps, times) with 0 < low < high "
            "in sigma / alpha, and whole numbers of at least 1"
        )
    return found


def _plans(
    grid: Grid, nfe: int | None, entry: Solver, chosen: list[Interval]
) -> list[tuple[Plan, bool]]:
    """The plans of all pieces, ``nfe`` evaluations together."""
    cost = _cost(entry)
    loops = cost * sum(one.steps * one.times for one in chosen)
    if nfe is not None and nfe <= loops:
        raise ValueError(f"nfe={nfe}: the restarts alone take about {loops} evaluations")
    steps = max(1, -(-((nfe or 0) - loops) // cost))
    while True:
        nodes = grid.nodes(steps if grid.intervals is None else grid.intervals)
        pieces = _pieces(grid.schedule, nodes, chosen)
        plans = [(_solved(grid.schedule, piece.nodes, entry), piece.jump) for piece in pieces]
        total = sum(plan.nfe for plan, _ in plans)
        if nfe is None or total == nfe:
            return plans
        if grid.intervals is not None or total > nfe:
            break
        steps += 1
    # The last way down that can do with fewer evaluations.
    for i in reversed(range(len(pieces))):
        less = plans[i][0].nfe - (total - nfe)
        try:
            plans[i] = _solved(grid.schedule, pieces[i].nodes, entry, less), pieces[i].jump
        except ValueError:
            continue
        return plans
    raise ValueError(f"nfe={nfe}: the steps beside the restarts do not fit; {total} would")


def _solved(
    schedule: NoiseSchedule, nodes: Sequence[Node], base: Solver, nfe: int | None = None
) -> Plan:
    """One way down; the order is at most the number of steps."""
    grid = Grid(schedule, nodes[0].t, nodes[-1].t, explicit=tuple(nodes))
    order = base.defaults.get("order")
    fitting = {} if order is None else {"order": min(order, len(nodes) - 1)}
    return base.build(grid, nfe, **fitting)


def _pieces(
    schedule: NoiseSchedule, nodes: Sequence[Node], chosen: Sequence[Interval]
) -> list[Piece]:
    inner = [i for i in range(1, len(nodes)) if nodes[i].sigma > 0 and nodes[i].alpha > 0]
    places = [min(inner, key=partial(_distance, nodes, one.low), default=0) for one in chosen]
    found: list[Piece] = []
    begin = 0
    for place, one in sorted(zip(places, chosen, strict=True), key=lambda pair: pair[0]):
        if place > begin:
            found.append(Piece(nodes[begin : place + 1], jump=False))
            begin = place
        found += [Piece(_loop(schedule, nodes[place], one), jump=True)] * one.times
    if begin < len(nodes) - 1:
        found.append(Piece(nodes[begin:], jump=False))
    return found


def _distance(nodes: Sequence[Node], low: float, i: int) -> float:
    return abs(math.exp(-plain(nodes[i].lam)) - low)


def _loop(schedule: NoiseSchedule, node: Node, one: Interval) -> list[Node]:
    """The nodes from ``high`` down to ``node``, at equal distances of rho^(1/7)."""
    rho = scalar.exp(-node.lam) if node.alpha > 0 else math.inf
    if not plain(rho) < one.high or -math.log(one.high) < schedule.lam(schedule.t_max):
        raise ValueError(
            f"restarts: high={one.high:g} has to lie above the node nearest to low={one.low:g}, "
            f"which is at {plain(rho):.4g}, and within the range of the schedule"
        )
    top, bottom = one.high ** (1 / RHO), rho ** (1 / RHO)
    levels = [top + j / one.steps * (bottom - top) for j in range(one.steps)]
    return [*at_lams(schedule, [-RHO * scalar.log(level) for level in levels]), node]


def _up(rows: Sequence[Row], up: Node, jump: int, amplitude: float) -> Row:
    """The row that adds noise to the last of ``rows`` up to the level of ``up``."""
    node = rows[-1].node
    a = up.alpha / node.alpha
    n = scalar.sqrt(up.sigma**2 - (a * node.sigma) ** 2)
    noise = (Noise(amplitude * n, float(jump), jump + 1.0, "restart"),) if amplitude else ()
    return Row(up, ((len(rows) - 1, a),), noise=noise)


def _append(rows: list[Row], piece: Sequence[Row]) -> None:
    """Let ``piece`` start from the last of ``rows``."""
    base = len(rows) - 1
    rows[base] = replace(rows[base], target=piece[0].target)
    for row in piece[1:]:
        states = tuple((base + j, a) for j, a in row.states)
        outputs = tuple((base + j, b) for j, b in row.outputs)
        rows.append(replace(row, states=states, outputs=outputs))
