"""The key ``solver`` of a config: a name, or a mapping of a name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logsnr.solvers.registry import find_solver


def typed_solver(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The name in ``solver`` as the user wrote it, and the options that stand beside it."""
    solver = config["solver"]
    if not isinstance(solver, Mapping):
        return solver, {}
    if "name" not in solver:
        raise ValueError(f"solver={dict(solver)}: the mapping needs a 'name'")
    return solver["name"], {key: value for key, value in solver.items() if key != "name"}


def solver_name(config: Mapping[str, Any]) -> str:
    """The registered name that the config's ``solver`` means; ValueError for another."""
    return find_solver(typed_solver(config)[0]).name
