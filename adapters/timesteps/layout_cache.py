"""Runs that were laid out before: the next image of a pipeline asks for the same one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from ..config.description import described
from ..config.store import Config
from .arguments import count
from .evaluations import Evaluations, lay_out

KEPT = 64


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
    try:
        return _kept(_Asked(config, asked))
    except TypeError:  # something that cannot be a key, of which the error is not for us to tell
        return _lay_out(config, asked)


class _Asked:
    """A call of ``set_timesteps``, equal to another with the same values of the same types."""

    __slots__ = ("asked", "config", "key")

    def __init__(self, config: Config, asked: dict[str, Any]):
        self.config, self.asked = config, asked
        n, times, levels = asked["n"], asked["timesteps"], asked["sigmas"]
        lists = None if times is None else tuple(times), None if levels is None else tuple(levels)
        inside = repr(config.containers) if config.containers else ""
        self.key = (config.edition, inside, type(n), n, asked["mu"], lists)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@lru_cache(maxsize=KEPT)
def _kept(request: _Asked) -> KnownLayout:
    return _lay_out(request.config, request.asked)


def _lay_out(config: Config, asked: dict[str, Any]) -> KnownLayout:
    description = described(config, count(asked["n"], asked["timesteps"], asked["sigmas"]))
    evaluations = lay_out(description, **asked)
    told, levels = (
        evaluations.told(evaluations.nodes),
        evaluations.levels([*evaluations.nodes, evaluations.end]),
    )
    return KnownLayout(evaluations, told, levels, tuple(told.tolist()), tuple(levels.tolist()))
