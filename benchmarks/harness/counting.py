"""Network evaluations counted where they happen: at the forward call of the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Calls:
    """Forward calls, and the rows of all their batches together."""

    calls: int = 0
    rows: int = 0


@contextmanager
def counted(networks: Sequence[nn.Module], tick: Callable[[], None]) -> Iterator[Calls]:
    """Counts the calls of ``networks`` inside; ``tick`` is called at each of them."""
    seen = Calls()

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        seen.calls += 1
        seen.rows += next((len(value) for value in given if value.ndim > 0), 1)
        tick()

    hooks = [net.register_forward_pre_hook(count, with_kwargs=True) for net in networks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
