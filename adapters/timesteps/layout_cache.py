"""Runs that were laid out before: the next image of a pipeline asks for the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config.description import described
from ..config.store import Config
from .arguments import count
from .evaluations import Evaluations, lay_out

KEPT = 8
"""Of one config."""


@dataclass(frozen=True)
class KnownLayout:
    """The evaluations with what pipelines read of it, on the CPU; not to be written to."""

    evaluations: Evaluations
    told: Tensor
    levels: Tensor
    told_values: tuple[float, ...]
    level_values: tuple[float, ...]

    @property
    def values(self) -> tuple[list[float], list[float]]:
        return list(self.told_values), list(self.level_values)


def known_layout(config: Config, asked: dict[str, Any]) -> KnownLayout:
    """`lay_out` of what ``set_timesteps`` was ``asked`` for, kept for as long as the config is."""
    n, times, levels = asked["n"], asked["timesteps"], asked["sigmas"]
    lists = None if times is None else tuple(times), None if levels is None else tuple(levels)
    inside = repr(config.containers) if config.containers else ""
    key = (inside, type(n), n, asked["mu"], lists)
    made = config.edition.made
    try:
        known: KnownLayout | None = made.get(key)
    except TypeError:  # something that cannot be a key, of which the error is not for us to tell
        return _lay_out(config, asked)
    if known is None:
        known = made[key] = _lay_out(config, asked)
        if len(made) > KEPT:
            made.popitem(last=False)
    return known


def _lay_out(config: Config, asked: dict[str, Any]) -> KnownLayout:
    description = described(config, count(asked["n"], asked["timesteps"], asked["sigmas"]))
    evaluations = lay_out(description, **asked)
    told, levels = (
        evaluations.told(evaluations.nodes),
        evaluations.levels([*evaluations.nodes, evaluations.end]),
    )
    return KnownLayout(evaluations, told, levels, tuple(told.tolist()), tuple(levels.tolist()))
