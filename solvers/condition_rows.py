"""Conditions of a network, for more rows than they were given for.

A condition is a mapping of keyword arguments. A tensor in it whose first dimension is the batch has
one entry a sample, one whose first dimension is 1 has one for all samples; likewise tensors inside
of mappings, lists and tuples. Anything else holds for the whole call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Condition = Mapping[str, Any]


def repeated(value: Any, groups: int, batch: int) -> Any:
    """``value`` for ``groups`` batches one after the other."""
    return _mapped(value, batch, lambda entries: torch.cat([entries] * groups))


def selected(value: Any, rows: Tensor, batch: int) -> Any:
    """``value`` for the samples with the numbers ``rows`` out of a batch; they may repeat."""
    return _mapped(value, batch, lambda entries: entries[rows.to(entries.device)])


def _mapped(value: Any, batch: int, function: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with a function of every tensor that has one entry a sample."""
    if isinstance(value, Tensor):
        return function(value) if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: _mapped(entry, batch, function) for key, entry in value.items()}
    if holds_tensors(value):
        return type(value)([_mapped(entry, batch, function) for entry in value])
    return value


def joined(null: Any, given: Any, batch: int) -> tuple[bool, Any]:
    """Whether one call can serve both branches, and its value: ``null``'s rows, then ``given``'s.

    ``batch`` is the number of rows of each. Values that belong to the whole call must be equal.
    """
    if isinstance(null, Tensor) and isinstance(given, Tensor):
        rows = [_rows(value, batch) for value in (null, given)]
        if rows[0] is not None and rows[1] is not None and rows[0].shape == rows[1].shape:
            return True, torch.cat([rows[0], rows[1]])
        return given is null or torch.equal(given, null), given
    if isinstance(null, Mapping) and isinstance(given, Mapping) and set(null) == set(given):
        found = {key: joined(null[key], value, batch) for key, value in given.items()}
        return all(ok for ok, _ in found.values()), {key: v for key, (_, v) in found.items()}
    if holds_tensors(null) and holds_tensors(given) and len(null) == len(given):
        entries = [joined(*pair, batch) for pair in zip(null, given, strict=True)]
        return all(ok for ok, _ in entries), type(given)([value for _, value in entries])
    return given is null or _equal(null, given), given


def holds_tensors(value: Any) -> bool:
    """Whether ``value`` is a list or a tuple with tensors in it."""
    return type(value) in (list, tuple) and any(isinstance(entry, Tensor) for entry in value)


def _rows(value: Tensor, batch: int) -> Tensor | None:
    """One entry a sample, or None if the tensor belongs to the whole call."""
    if value.ndim == 0 or len(value) not in (1, batch):
        return None
    return value.expand(batch, *value.shape[1:])


def _equal(null: Any, given: Any) -> bool:
    # Arrays and other foreign values do not compare to one truth: they count as different.
    try:
        return bool(null == given)
    except (ValueError, TypeError, RuntimeError):
        return False
