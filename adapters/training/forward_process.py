"""The forward process of a scheduler: noise at the levels of given timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, Node

from ..config.model import Model
from ..config.sigma_models import SigmaModel


def noisy(original: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """alpha x0 + sigma noise for ``levels`` (B or 1, 2), of which each row is alpha and sigma."""
    alpha, sigma = levels.reshape(-1, 2, *[1] * (original.ndim - 1)).unbind(1)
    return torch.addcmul(alpha * original, sigma, noise).to(original.dtype)


def levels_of(nodes: Sequence[Node], unit: float, like: Tensor) -> Tensor:
    """The levels of ``nodes`` for data of which ``unit`` is the unit, as `noisy` takes them."""
    entries = {node: (node.alpha / unit, node.sigma) for node in set(nodes)}
    rows = [entries[node] for node in nodes]
    return torch.tensor(rows, dtype=torch.float64).to(like.device, _precise(like))


def training_levels(model: Model, timesteps: Tensor, like: Tensor) -> Tensor:
    """The levels of training ``timesteps``; ValueError for one that the network is never told."""
    schedule, unit = model.schedule, model.unit
    if isinstance(schedule, DiscreteVP) and not timesteps.is_floating_point():
        _check_range(timesteps, schedule.steps - 1)
        table = _table(schedule, unit, like.device, _precise(like))
        return table[timesteps.reshape(-1).to(like.device)]
    t = times_told(model, timesteps)
    levels = torch.stack([schedule.alpha(t) / unit, schedule.sigma(t)], 1)
    return levels.to(like.device, _precise(like))


def times_told(model: Model, told: Tensor) -> Tensor:
    """The times (float64) at which the network is told ``told``; ValueError where it never is."""
    schedule, values = model.schedule, told.detach().reshape(-1).to(torch.float64)
    if isinstance(schedule, SigmaModel):
        return schedule.time_told(values)
    if isinstance(schedule, DiscreteVP):
        _check_range(values, schedule.steps - 1)
        return (values + 1) / schedule.steps
    steps = model.training_steps
    _check_range(values, steps)
    return 1 - values / steps if model.inverted else values / steps


def _check_range(values: Tensor, last: int) -> None:
    if not values.numel():
        return
    least, most = values.aminmax()
    if not (least.item() >= 0 and most.item() <= last):
        wrong = values[~((values >= 0) & (values <= last))][0].item()
        raise ValueError(f"timesteps has {wrong!r}: need values in [0, {last}]")


@lru_cache(maxsize=16)
def _table(schedule: DiscreteVP, unit: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The levels of all training steps (N, 2)."""
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    with torch.inference_mode(False):
        return torch.stack([schedule.alpha(t) / unit, schedule.sigma(t)], 1).to(device, dtype)


def _precise(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
