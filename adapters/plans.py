"""From the nodes of a layout to a plan, for solvers with any number of evaluations a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

from logsnr.solvers import Grid, Node, NoiseSchedule, Plan, Row, plan_on_grid
from logsnr.solvers.methods.multistep import first_order
from logsnr.solvers.methods.pure_noise import STRAIGHT
from logsnr.solvers.registry import find_solver
from logsnr.solvers.segments import made_once

Nodes = tuple[Node, ...]


def plan_for(
    schedule: NoiseSchedule,
    solver: str,
    nodes: Nodes,
    nfe: int,
    options: Mapping[str, Any],
    *,
    uncorrected: tuple[int, ...] = (),
    euler_at_final: bool = False,
) -> Plan:
    """`spread_plan` with `changed` for a pipeline, which evaluates the start itself.

    Raises ValueError if there is no such plan, or if its first evaluation is not at the start.
    """
    plan = spread_plan(schedule, solver, nodes, nfe, options)
    if plan.evaluated[0] != 0:
        raise ValueError(
            f"solver={solver!r} with {dict(options)} moves the start before its first "
            "evaluation, but a pipeline evaluates the start itself"
        )
    return changed(plan, uncorrected=uncorrected, euler_at_final=euler_at_final)


def changed(plan: Plan, *, uncorrected: tuple[int, ...] = (), euler_at_final: bool = False) -> Plan:
    """The plan `without_correctors`, and `with_first_order_end`, where that is asked for."""
    if uncorrected:
        plan = without_correctors(plan, uncorrected)
    return with_first_order_end(plan) if euler_at_final else plan


def spread_plan(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, nfe: int, options: Mapping[str, Any]
) -> Plan:
    """The plan of ``nfe`` evaluations from the first of ``nodes`` to the last.

    A solver with several evaluations a step does not need all nodes: it gets as many as it can
    spend ``nfe`` evaluations on, spread evenly. Plans are kept, so that the next image of a
    pipeline costs none; those with statistics, which hold tensors, as long as somebody has them.

    Raises ValueError if there is no such plan.
    """
    key = (schedule, solver, nodes, nfe, tuple(sorted(options.items())))
    try:
        if options.get("ems") is None:
            return _kept(*key)
        plan = _in_use.get(key)
    except TypeError:  # an option that cannot be a key
        return _plan(schedule, solver, nodes, nfe, options)
    if plan is None:
        _in_use[key] = plan = _plan(schedule, solver, nodes, nfe, options)
    return plan


_in_use: WeakValueDictionary[tuple[Any, ...], Plan] = WeakValueDictionary()


@lru_cache(maxsize=64)
def _kept(
    schedule: NoiseSchedule,
    solver: str,
    nodes: Nodes,
    nfe: int,
    options: tuple[tuple[str, Any], ...],
) -> Plan:
    return _plan(schedule, solver, nodes, nfe, dict(options))


def _plan(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, nfe: int, options: Mapping[str, Any]
) -> Plan:
    return _spread(schedule, solver, nodes, nfe, options)[1]


def steps_spent(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, nfe: int, options: Mapping[str, Any]
) -> int:
    """The number of steps of `spread_plan`, at most that of ``nodes``."""
    return _spread(schedule, solver, nodes, nfe, options)[0]


def nfe_through(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, options: Mapping[str, Any]
) -> int:
    """The number of evaluations of full steps through all of ``nodes``.

    Raises ValueError if the solver's steps do not go through every one of them.
    """
    entry = find_solver(solver)
    if entry.nfe_per_step({**entry.defaults, **options}) == 1:
        return len(nodes) - 1
    grid = Grid(schedule, nodes[0].t, nodes[-1].t, explicit=nodes)
    return plan_on_grid(solver, grid, **options).nfe


def _spread(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, nfe: int, options: Mapping[str, Any]
) -> tuple[int, Plan]:
    first_error: ValueError | None = None
    # Steps near pure noise may be of one evaluation, so that no number of them fits: then those
    # that begin there are joined.
    near_noise = sum(node.alpha < STRAIGHT * node.sigma for node in nodes[1:-1])
    for joined in range(near_noise + 1):
        offered = (nodes[0], *nodes[1 + joined :])
        most = len(offered) - 1
        for steps in range(min(most, nfe), 0, -1):
            chosen = tuple(offered[j * most // steps] for j in range(steps + 1))
            grid = Grid(schedule, chosen[0].t, chosen[-1].t, explicit=chosen)
            try:
                return steps, plan_on_grid(solver, grid, nfe, **options)
            except ValueError as error:
                # Its traceback would keep the tensors of the callers.
                first_error = first_error or error.with_traceback(None)
    assert first_error is not None
    raise first_error


def without_correctors(plan: Plan, steps: tuple[int, ...] | frozenset[int]) -> Plan:
    """The plan without the correctors of ``steps``, counted from 0; kept with the plan.

    The corrector of step i is the row at the node of evaluation i + 1 that follows it; what
    started from the corrected state then starts from the predicted one.
    """
    return made_once(plan, ("uncorrected", steps), lambda: _without_correctors(plan, steps))


def _without_correctors(plan: Plan, steps: tuple[int, ...] | frozenset[int]) -> Plan:
    taken: dict[int, int] = {}  # the row that takes the place of each row
    rows: list[Row] = []
    for k, row in enumerate(plan.rows):
        last = plan.rows[k - 1]
        corrects = 0 < k < len(plan.rows) - 1 and not row.evaluated and row.node == last.node
        if corrects and last.evaluated and plan.evaluated.index(k - 1) - 1 in steps:
            taken[k] = taken[k - 1]
            continue
        taken[k] = len(rows)
        states = tuple((taken[j], a) for j, a in row.states)
        outputs = tuple((taken[j], b) for j, b in row.outputs)
        rows.append(replace(row, states=states, outputs=outputs))
    return replace(plan, rows=tuple(rows))


def with_first_order_end(plan: Plan) -> Plan:
    """The plan with its last row replaced by the first-order step from the last evaluation.

    For deterministic solvers with one evaluation a step. Kept with the plan.
    """
    return made_once(plan, "first-order end", lambda: _with_first_order_end(plan))


def _with_first_order_end(plan: Plan) -> Plan:
    *rows, last = plan.rows
    k = plan.evaluated[-1]
    target = rows[k].target
    assert target is not None
    a, b = first_order(target, rows[k].node, last.node)
    base = len(rows) - 1  # the last evaluation, or its corrected state
    return replace(plan, rows=(*rows, Row(last.node, ((base, a),) if a else (), ((k, b),))))
