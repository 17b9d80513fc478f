"""The forward process of a scheduler: noise at the levels of given timesteps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from logsnr.solvers import Node


def noisy(original: Tensor, noise: Tensor, nodes: Sequence[Node], unit: float) -> Tensor:
    """alpha x0 + sigma noise at ``nodes`` (one or B), for data of which ``unit`` is the unit."""
    shape = (-1, *[1] * (original.ndim - 1))
    precise = torch.promote_types(original.dtype, torch.float32)
    levels = torch.tensor([(n.alpha / unit, n.sigma) for n in nodes], dtype=torch.float64)
    alpha, sigma = levels.to(original.device, precise).unbind(1)
    mixed = alpha.reshape(shape) * original + sigma.reshape(shape) * noise
    return mixed.to(original.dtype)
