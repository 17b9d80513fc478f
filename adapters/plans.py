"""From the nodes of a layout to a plan, for solvers with any number of evaluations a step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from logsnr.solvers import Grid, Node, NoiseSchedule, Plan, plan_on_grid

Nodes = tuple[Node, ...]


def plan_for(
    schedule: NoiseSchedule, solver: str, nodes: Nodes, nfe: int, options: Mapping[str, Any]
) -> Plan:
    """The plan of ``nfe`` evaluations from the first of ``nodes`` to the last.

    A solver with several evaluations a step does not need all nodes: it gets as many as it can
    spend ``nfe`` evaluations on, spread evenly. Plans are kept, so that the next image of a
    pipeline costs none.

    Raises ValueError if there is no such plan, or if its first evaluation is not at the start.
    """
    try:
        return _kept(schedule, solver, nodes, nfe, tuple(sorted(options.items())))
    except TypeError:  # an option that cannot be a key
        return _plan(schedule, solver, nodes, nfe, options)


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
    first_error: ValueError | None = None
    most = len(nodes) - 1
    for steps in range(min(most, nfe), 0, -1):
        chosen = tuple(nodes[j * most // steps] for j in range(steps + 1))
        grid = Grid(schedule, chosen[0].t, chosen[-1].t, explicit=chosen)
        try:
            plan = plan_on_grid(solver, grid, nfe, **options)
        except ValueError as error:
            first_error = first_error or error
            continue
        if plan.evaluated[0] != 0:
            raise ValueError(
                f"solver={solver!r} with {dict(options)} moves the start before its first "
                "evaluation, but a pipeline evaluates the start itself"
            )
        return plan
    assert first_error is not None
    raise first_error
