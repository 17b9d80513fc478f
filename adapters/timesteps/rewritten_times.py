"""What a caller wrote into ``timesteps`` and ``sigmas`` after they were laid out, as evaluations.

The timesteps say where the network is called, so the nodes follow them, as those of the list that
``set_timesteps`` takes. A slice is a part of the run as it was, and so is what a run under way has
behind it. Sigmas that were changed too are
the noise levels of these times, whatever the two say of each other, as in diffusers. Sigmas alone
cannot be followed, because the network would be told times of other levels; only their last entry
can, where the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

from torch import Tensor

from logsnr.solvers import Node

from .evaluations import Evaluations, evaluations_through
from .layout import Layout, check_nodes, node_of_level, node_told
from .timetable import Timetable


def rewritten(
    before: Evaluations, table: Timetable, timesteps: Tensor, sigmas: Tensor, done: int = 0
) -> Evaluations | None:
    """The evaluations by the values of ``timesteps`` and ``sigmas``; None if they are the old ones.

    The first ``done`` nodes are kept where their times are.

    Raises ValueError for values that no run can follow.
    """
    told, levels = _values("timesteps", timesteps), _values("sigmas", sigmas)
    new_times = not table.tells(told)
    new_levels = not table.has_levels(levels)
    if not new_times and not new_levels:
        return None
    model = before.description.model
    nodes, end = list(table.nodes), before.end
    if new_times and not new_levels:
        nodes = _told_nodes(before, table, told, done)
    else:
        if len(levels) not in (len(told), len(told) + 1):
            raise ValueError(
                f"sigmas has {len(levels)} entries beside {len(told)} timesteps: need one for each "
                "and the end"
            )
        if new_times:
            nodes = [node_of_level(model, level) for level in levels[: len(told)]]
        else:
            _check_old(told, levels, table.levels)
        if len(levels) > len(told):
            end = node_of_level(model, levels[-1], end=True)
    check_nodes(
        "timesteps" if new_times else "sigmas", told if new_times else levels, [*nodes, end]
    )
    layout = Layout((*nodes, end), tuple(told), before.layout.inverted, "timesteps")
    after = evaluations_through(before.description, layout)
    if after.told(after.nodes).tolist() != told:
        raise ValueError(
            f"timesteps was set to {told}, which solver={before.description.solver.name!r} does "
            "not go through with one evaluation an entry: give them to set_timesteps"
        )
    return after


def _told_nodes(
    before: Evaluations, table: Timetable, told: Sequence[float], done: int
) -> list[Node]:
    """The nodes of other times; a slice of the table, and its beginning, have their own."""
    n = len(told)
    for k in range(table.nfe - n + 1):
        if table.told[k : k + n] == list(told):
            return table.nodes[k : k + n]
    while done > 0 and list(told[:done]) != table.told[:done]:
        done -= 1
    new = [node_told(before.description.model, time) for time in told[done:]]
    return [*table.nodes[:done], *new]


def _values(name: str, tensor: Tensor) -> list[float]:
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: need a list of numbers")
    return [float(value) for value in tensor.tolist()]


def _same(one: float, other: float) -> bool:
    return one == other or isclose(one, other, rel_tol=1e-5)


def _check_old(told: Sequence[float], levels: Sequence[float], old: Sequence[float]) -> None:
    for k, time in enumerate(told):
        if not _same(levels[k], old[k]):
            raise ValueError(
                f"sigmas[{k}]={levels[k]:g} was set, but the network is told timesteps[{k}]="
                f"{time:g}, which is {old[k]:g}: set timesteps, which sigmas follow, or both, or "
                "give sigmas to set_timesteps"
            )
