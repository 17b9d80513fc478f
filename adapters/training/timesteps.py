"""What training scripts read of a scheduler: all timesteps of training, and their noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, NoiseSchedule

from ..config.resolution_shift import resolution_shift
from ..config.sigma_models import SigmaModel
from ..timesteps.sigma import training_levels


def training_table(config: Mapping[str, Any], schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """All timesteps of training, falling, and the noise level at each of them, float32.

    Levels are what diffusers calls sigmas: sigma of flow models, sigma / alpha of the others. As in
    diffusers the data's 0 follows, but not for flow models.
    """
    steps = int(config["num_train_timesteps"])
    if isinstance(schedule, SigmaModel):
        levels = training_levels(config, schedule, steps)
        told = [schedule.network_time(s / schedule.sigma_data) for s in levels]
        return torch.tensor(told, dtype=torch.float32), _levels([*levels, 0.0])
    if isinstance(schedule, DiscreteVP):
        t = torch.arange(schedule.steps, 0, -1, dtype=torch.float64) / schedule.steps
        ratios = torch.exp(-schedule.lam(t)).tolist()
        return torch.arange(steps - 1, -1, -1), _levels([*ratios, 0.0])
    times = np.arange(steps, 0, -1) / steps
    shift = resolution_shift(config)
    if shift is not None and not shift.dynamic:
        times = shift.shifted(times, None, stretch=False)
    return _levels((steps * times).tolist()), _levels(times.tolist())


def _levels(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).float()
