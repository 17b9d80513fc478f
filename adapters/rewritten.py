"""What a caller wrote into ``timesteps`` and ``sigmas`` after they were laid out, as a course.

The timesteps say where the network is called, so the nodes follow them: a time that was there
before keeps its node, any other has that of the model's schedule. Sigmas that were changed too are
the noise levels of these times, whatever the two say of each other, as in diffusers. Sigmas alone
cannot be followed, because the network would be told times of other levels; only their last entry
can, where the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

from torch import Tensor

from logsnr.solvers import Node

from .course import Course, course
from .layout import Layout, check_nodes, node_of_level, node_told
from .timetable import Timetable


def rewritten(before: Course, table: Timetable, timesteps: Tensor, sigmas: Tensor) -> Course | None:
    """The course by the values of ``timesteps`` and ``sigmas``; None if they are the old ones.

    Raises ValueError for values that no run can follow.
    """
    told, levels = _values("timesteps", timesteps), _values("sigmas", sigmas)
    new_times = not table.tells(told)
    new_levels = not table.has_levels(levels)
    if not new_times and not new_levels:
        return None
    config, schedule = before.config, before.schedule
    nodes, end = list(table.nodes), before.end
    if new_times and not new_levels:
        known = _known(table, told)
        nodes = [
            known[time].pop(0) if known.get(time) else node_told(config, schedule, time)
            for time in told
        ]
    else:
        if len(levels) not in (len(told), len(told) + 1):
            raise ValueError(
                f"sigmas has {len(levels)} entries beside {len(told)} timesteps: need one for each "
                "and the end"
            )
        if new_times:
            nodes = [node_of_level(config, schedule, level) for level in levels[: len(told)]]
        else:
            _check_old(told, levels, table.levels)
        if len(levels) > len(told):
            end = node_of_level(config, schedule, levels[-1], end=True)
    check_nodes(
        "timesteps" if new_times else "sigmas", told if new_times else levels, [*nodes, end]
    )
    layout = Layout((*nodes, end), tuple(told), before.layout.inverted, "timesteps")
    after = course(config, before.description, layout)
    if after.told(after.nodes).tolist() != told:
        raise ValueError(
            f"timesteps was set to {told}, which solver={before.description.solver!r} does not go "
            "through with one evaluation an entry: give them to set_timesteps"
        )
    return after


def _known(table: Timetable, told: Sequence[float]) -> dict[float, list[Node]]:
    """The nodes of the table by time, in order; only those of a part that is ``told`` as it is."""
    n, parts = len(told), range(table.nfe - len(told) + 1)
    begin = next((k for k in parts if table.told[k : k + n] == list(told)), None)
    part = slice(0, None) if begin is None else slice(begin, begin + n)
    known: dict[float, list[Node]] = {}
    for time, node in zip(table.told[part], table.nodes[part], strict=True):
        known.setdefault(time, []).append(node)
    return known


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
