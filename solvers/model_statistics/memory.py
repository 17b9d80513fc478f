"""How many states go into one call of a network: as many as a budget of memory holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU_BUDGET = 2**27
"""Bytes on a CPU, if a quarter of what is free is more: larger calls gain nothing there."""
SHARE = {"cpu": 0.25, "cuda": 0.5}
"""Of the memory that is free, what one call may take."""
HIDDEN = 16
"""Copies of the state that a network is taken to need whose work is not seen (not torch's)."""


class _Produced(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return.

    A call without gradients frees most of them on its way, so it takes less: a bound, which also
    leaves room for the tangents of forward mode.
    """

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor) and not part._is_view():
                self.bytes += part.nbytes
        return result


def bytes_of(evaluate: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """A bound of what evaluating the states x (B, *event) takes, an entry of B."""
    with _Produced() as produced:
        evaluate(x.clone())
    return max(produced.bytes, HIDDEN * x.nbytes) // len(x)


def budget(device: torch.device) -> int:
    """Bytes that one call may take."""
    if device.type == "cuda":
        return int(SHARE["cuda"] * torch.cuda.mem_get_info(device)[0])
    return int(min(CPU_BUDGET, SHARE["cpu"] * _free()))


def _free() -> float:
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")
    known = [name for name in names if name in os.sysconf_names]
    return os.sysconf(known[0]) * os.sysconf("SC_PAGE_SIZE") if known else CPU_BUDGET
