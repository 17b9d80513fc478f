"""The forward process of a scheduler: noise at the levels of given timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, FlowMatching, Node

from ..config.model import Model
from ..config.sigma_models import SigmaModel

if TYPE_CHECKING:
    from ..config.description import Description
    from ..steps.runs import Runs
    from ..timesteps.timetable import Timetable


class ForwardProcess:
    """The part of a scheduler that makes noisy images, and what a network is trained to say."""

    if TYPE_CHECKING:
        _table: Timetable | None
        _runs: Runs
        _wanted: int | None

        def _hear(self) -> None: ...
        @property
        def _description(self) -> Description: ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at ``timesteps`` (one or B entries).

        The levels of the run if all of ``timesteps`` are its own, and of training otherwise.
        """
        known = timesteps.dtype if isinstance(timesteps, Tensor) else torch.float64
        levels = self._levels_of(torch.as_tensor(timesteps, dtype=known), original_samples)
        return noisy(original_samples, noise, levels)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction, alpha noise - sigma x0, at training ``timesteps`` (B,).

        Of flow models their own target, noise - x0. ValueError for an EDM network, whose target is
        made by its preconditioning.
        """
        model = self._description.model
        if model.edm:
            raise ValueError("get_velocity: a model with sigma_data is trained on another target")
        if isinstance(model.schedule, FlowMatching):
            return noise - sample
        known = timesteps.dtype if isinstance(timesteps, Tensor) else torch.float64
        told = torch.as_tensor(timesteps, dtype=known)
        levels = training_levels(model, told, sample)
        return noisy(noise, -sample, levels)

    def _levels_of(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """alpha and sigma where the network is told ``timesteps``: of the run, or of training."""
        self._hear()
        model = self._description.model
        if self._table is not None:
            here = self._runs.place if self._wanted is None else self._wanted
            places = self._table.all_places(timesteps, here)
            if places is not None:
                nodes = self._table.nodes
                return levels_of([nodes[place] for place in places], model.unit, like)
        return training_levels(model, timesteps, like)


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
