"""Noise of each sample by itself, for samplers that draw from torch's global generator.

k-diffusion's churn is ``torch.randn_like(x)``: what sample i gets depends on the batch that it is
in, and so on the size of a shard. Here such draws for a whole batch are made sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NORMALS = (torch.randn, torch.randn_like, Tensor.normal_)


class OwnDraws(TorchFunctionMode):
    """While it is entered, normals for a batch are drawn from ``generators``, one a sample.

    Attributes
    ----------
    drawn : whether any were.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        super().__init__()
        self.generators, self.drawn = generators, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if func not in NORMALS or given.get("generator") is not None:
            return result
        if result.ndim == 0 or len(result) != len(self.generators):
            return result
        self.drawn = True
        for row, generator in zip(result, self.generators, strict=True):
            row.copy_(torch.randn(row.shape, generator=generator))
        return result
