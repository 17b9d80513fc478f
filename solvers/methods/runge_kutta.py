r"""The frame of Runge-Kutta methods in rho = sigma / alpha.

In y = x / alpha the probability-flow ODE is dy / d rho = eps, so that a tableau (c, a, b) reads

    y_i = y_s + h sum_j a_ij eps(y_j, rho_s + c_j h),     y_t = y_s + h sum_j b_j eps(...),

with h = rho_t - rho_s. The step to sigma = 0 and those from pure noise (see `pure_noise`), where
eps or rho do not exist or more stages make it worse, are Euler steps.

On the straight path of flow matching alpha and sigma are themselves linear in t, and the same
tableau may combine velocities, v = dx / dt = eps - x0, with h = t_t - t_s (``straight``). That
frame is regular at alpha = 0, so that the first step from pure noise is a full one too.

Churn (Karras et al. 2022, algorithm 2) raises the noise level before a step, from rho_s to
(1 + gamma) rho_s, by adding fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import pairwise

from .. import scalar
from ..checks import check_at_least_0
from ..grids import Grid, node_at
from ..noise_terms import reading
from ..plan import NOISE, VELOCITY, Node, Noise, Plan, Row
from ..schedules import NoiseSchedule
from .multistep import first_order
from .pure_noise import Frame
from .stochastic import keeps_marginals

MAX_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: row i of ``a`` has i entries.

    Raises ValueError unless the rows of a sum to c and b sums to 1.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.a) == len(self.b) == len(self.c):
            raise ValueError(f"{self}: a, b and c need one row each a stage")
        for i, (row, c) in enumerate(zip(self.a, self.c, strict=True)):
            if len(row) != i or abs(sum(row) - c) > 1e-14:
                raise ValueError(f"{self}: row {i} of a needs {i} entries that sum to c = {c}")
        if abs(sum(self.b) - 1) > 1e-14:
            raise ValueError(f"{self}: b needs to sum to 1")


EULER = Tableau(((),), (1.0,), (0.0,))
HEUN = Tableau(((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0))
KUTTA3 = Tableau(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6), (0.0, 1 / 2, 1.0))
HEUN3 = Tableau(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), (0.0, 1 / 3, 2 / 3))
RK4 = Tableau(
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 1 / 2, 1 / 2, 1.0),
)
CLASSICAL: Mapping[int, Tableau] = {1: EULER, 2: HEUN, 3: KUTTA3, 4: RK4}

Method = Callable[[int, Node, Node], Tableau]
"""(number of stages, start, end of the step) -> tableau."""


@dataclass(frozen=True)
class Churn:
    """EDM's noise before a step.

    Parameters
    ----------
    s_churn, s_min, s_max : before a step from sigma/alpha in [s_min, s_max], raise the noise level
        by min(s_churn / steps, sqrt(2) - 1) of itself.
    s_noise : amplitude of the added noise; other values than 1 leave the marginals.

    Raises ValueError naming the option that is out of range.
    """

    _: KW_ONLY
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_0("s_churn", self.s_churn)
        if not 0 <= self.s_min <= self.s_max:
            raise ValueError(
                f"s_min={self.s_min!r}, s_max={self.s_max!r}: need 0 <= s_min <= s_max"
            )
        check_at_least_0("s_noise", self.s_noise)

    def gamma(self, node: Node, steps: int) -> float:
        """By how much to raise the noise level at ``node`` in a run of ``steps`` steps."""
        inside = node.alpha > 0 and self.s_min <= node.sigma / node.alpha <= self.s_max
        return min(self.s_churn / steps, MAX_CHURN) if inside else 0.0


def runge_kutta(
    grid: Grid,
    nfe: int | None,
    stages: int,
    method: Method,
    churn: Churn | None = None,
    *,
    straight: bool = False,
) -> Plan:
    """The plan of ``method`` with ``stages`` evaluations a step.

    ``nfe`` evaluations are Euler steps where the frame is singular (from pure noise and to
    sigma = 0), as many full steps as fit between them, and one step of fewer stages if something
    is left, which is the last with sigma > 0. ``straight`` chooses the frame of the velocity, for
    schedules that are linear in t. Raises ValueError if nfe does not fit an explicit grid.
    """
    churn = churn or Churn()
    nodes, counts = layout(grid, nfe, stages, from_noise=straight)
    frame = Frame.of("noise", nodes)
    if frame.inverted and churn.s_churn > 0:
        raise ValueError(f"s_churn={churn.s_churn!r}: an inversion is deterministic, and needs 0")
    gammas = [churn.gamma(node, len(counts)) for node in nodes]
    for i, (node, after) in enumerate(pairwise(nodes)):
        if node.lam == after.lam:  # the next step starts from there too
            gammas[i] = 0.0
    starts = _raised(nodes, gammas, grid.schedule)
    steps = list(zip(starts, nodes[1:], counts, strict=False))
    tableaus = [method(count, start, end) for start, end, count in steps]
    inner = (_inner_in_t if straight else _inner)(steps, tableaus, grid.schedule)
    rows = [Row(nodes[0])]
    for i, (start, end, _) in enumerate(steps):
        if start is not nodes[i]:
            rows.append(_noise_row(len(rows) - 1, nodes[i], start, end, churn.s_noise))
        _step(rows, end, tableaus[i], inner[i], frame, straight)
    return Plan(tuple(rows), consistent=keeps_marginals(churn.s_noise, gammas))


def layout(
    grid: Grid, nfe: int | None, stages: int, *, from_noise: bool = False, space: str = "noise"
) -> tuple[list[Node], list[int]]:
    """The nodes and the number of evaluations of every step of a method in ``space``.

    ``from_noise`` says that a step from pure noise may have all its stages.
    """
    if grid.intervals is not None:
        nodes = grid.nodes(grid.intervals)
        counts = _most(nodes, stages, from_noise, space)
        most = sum(counts)
        least = most - (max(counts) - 1)
        if nfe is not None and not least <= nfe <= most:
            raise ValueError(
                f"nfe={nfe}: the grid of {grid.intervals} intervals takes "
                f"{most if least == most else f'{least} to {most}'}"
            )
        return nodes, reduced(counts, most if nfe is None else nfe)
    if nfe is None or nfe < 1:
        raise ValueError(f"nfe={nfe!r}: need at least 1")
    for steps in range(math.ceil(nfe / stages), nfe + 1):
        nodes = grid.nodes(steps)
        counts = _most(nodes, stages, from_noise, space)
        if sum(counts) >= nfe:
            break
    return nodes, reduced(counts, nfe)


def _most(nodes: Sequence[Node], stages: int, from_noise: bool, space: str) -> list[int]:
    """Evaluations of every step: all stages where they exist and help, otherwise one."""
    frame = Frame.of(space, nodes)
    # In data space more stages harm no step but that from pure noise itself.
    alone = frame.single_evaluation if space == "noise" else lambda start, end: frame.starts(start)
    noisy = [not from_noise and alone(*step) for step in pairwise(nodes)]
    return [
        1 if frame.ends(end) or single else stages
        for end, single in zip(nodes[1:], noisy, strict=True)
    ]


def reduced(counts: list[int], nfe: int) -> list[int]:
    """``counts`` with the last full steps made smaller until there are ``nfe`` evaluations."""
    surplus = sum(counts) - nfe
    for i in reversed(range(len(counts))):
        less = min(surplus, counts[i] - 1)
        counts[i] -= less
        surplus -= less
    return counts


def _step(
    rows: list[Row],
    end: Node,
    tableau: Tableau,
    inner: Mapping[float, Node],
    frame: Frame,
    straight: bool,
) -> None:
    base, start = len(rows) - 1, rows[-1].node
    stage = VELOCITY if straight else NOISE
    single = frame.ends(end) or frame.single_evaluation(start, end)
    target = frame.first_target if single and len(tableau.c) == 1 else stage
    rows[base] = replace(rows[base], target=target)
    outputs = [base]
    for c, a in zip(tableau.c[1:], tableau.a[1:], strict=True):
        node = end if c == 1 else inner[c]
        outputs.append(len(rows))
        rows.append(replace(_combine(rows[base], node, outputs, a, c), target=stage))
    rows.append(_combine(rows[base], end, outputs, tableau.b, 1.0))


def _combine(
    base: Row, node: Node, outputs: Sequence[int], weights: Sequence[float], total: float
) -> Row:
    assert base.target is not None
    straight = base.target == VELOCITY
    a, b = (1.0, node.t - base.node.t) if straight else first_order(base.target, base.node, node)
    used = tuple((j, b * w / total) for j, w in zip(outputs, weights, strict=False) if w and b)
    return Row(node, ((outputs[0], a),) if a else (), used)


def _inner(
    steps: Sequence[tuple[Node, Node, int]], tableaus: Sequence[Tableau], schedule: NoiseSchedule
) -> list[dict[float, Node]]:
    """For every step, its nodes strictly inside by their c."""
    places: list[tuple[int, float]] = []
    lams = []
    for i, ((start, end, _), tableau) in enumerate(zip(steps, tableaus, strict=True)):
        for c in sorted(set(tableau.c) - {0.0, 1.0}):
            rho_s, rho_t = start.sigma / start.alpha, end.sigma / end.alpha
            places.append((i, c))
            lams.append(-scalar.log(rho_s + c * (rho_t - rho_s)))
    found: list[dict[float, Node]] = [{} for _ in steps]
    for (i, c), node in zip(places, at_lams(schedule, lams), strict=True):
        found[i][c] = node
    return found


def _inner_in_t(
    steps: Sequence[tuple[Node, Node, int]], tableaus: Sequence[Tableau], schedule: NoiseSchedule
) -> list[dict[float, Node]]:
    """`_inner` for shares of the way in t."""
    return [
        {c: node_at(schedule, start.t + c * (end.t - start.t)) for c in set(tableau.c) - {0.0, 1.0}}
        for (start, end, _), tableau in zip(steps, tableaus, strict=True)
    ]


def _raised(nodes: Sequence[Node], gammas: Sequence[float], schedule: NoiseSchedule) -> list[Node]:
    """The nodes with their noise level raised by gamma, at most to that of t_max."""
    if not any(gammas):
        return list(nodes)
    top = schedule.lam(schedule.t_max)
    lams = [max(n.lam - math.log1p(g), top) for n, g in zip(nodes, gammas, strict=True)]
    raised = at_lams(schedule, lams)
    return [
        up if gamma > 0 and lam < node.lam else node
        for node, up, gamma, lam in zip(nodes, raised, gammas, lams, strict=True)
    ]


def _noise_row(base: int, node: Node, up: Node, end: Node, amplitude: float) -> Row:
    # The noise belongs to the step that it comes before: intervals of different steps do not
    # overlap, and as steps become small the whole tends to an SDE on one path. The clock rho is
    # finite wherever noise is raised, and at the data.
    a = up.alpha / node.alpha
    added = scalar.sqrt(up.sigma**2 - (a * node.sigma) ** 2)
    noise = Noise(amplitude * added, reading("sigma", node), reading("sigma", end), "sigma")
    return Row(up, ((base, a),), noise=(noise,) if amplitude else ())


def at_lams(schedule: NoiseSchedule, lams: Sequence[float]) -> list[Node]:
    """Nodes at ``lams`` in any order, unlike `nodes_at_lams`."""
    # All at once, since each call costs tensor work.
    times = schedule.time(scalar.vector(lams))
    columns = map(scalar.numbers, (times, schedule.alpha(times), schedule.sigma(times)))
    return [Node(*entry) for entry in zip(*columns, strict=True)]
