"""Checks of single options, with one wording each; every error names the option and its value."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, TypeGuard


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def is_whole(value: Any, least: int) -> TypeGuard[int]:
    """Whether ``value`` is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(name: str, value: Any, least: int) -> None:
    """ValueError unless ``value`` is a whole number of at least ``least``."""
    if not is_whole(value, least):
        raise ValueError(f"{name}={value!r}: need a whole number of at least {least}")


def check_whole_or_none(name: str, value: Any, least: int) -> None:
    """ValueError unless ``value`` is None or a whole number of at least ``least``."""
    if value is not None and not is_whole(value, least):
        raise ValueError(f"{name}={value!r}: need None or a whole number of at least {least}")


def check_at_least_0(name: str, value: float) -> None:
    """ValueError unless ``value`` is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}: need a number of at least 0")


def check_order(order: Any, choices: Container[int]) -> None:
    """ValueError unless ``order`` is a whole number among ``choices``."""
    if not is_whole(order, 0) or order not in choices:
        raise ValueError(f"order={order!r}: need a whole number in {choices}")


def check_kind(name: str, value: Any, default: Any) -> None:
    """ValueError unless ``value`` is of the kind of an option whose default is ``default``."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    for kind, words in kinds.items():
        if isinstance(default, kind):
            fits = isinstance(value, int | float if kind is float else kind)
            if not fits or isinstance(value, bool) is not (kind is bool):
                raise ValueError(f"{name}={value!r}: need {words}")
            return
