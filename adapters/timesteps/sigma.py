r"""Nodes of models that a range of sigma describes; see `sigma_models` for their state.

EDM configs may space sigma by ``sigma_schedule``, "karras" (with ``rho``) or "exponential". Stable
Video Diffusion has betas too, and follows the flags and rules of the models with training steps
over its own range. Every other spacing acts between the ends of the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logsnr.solvers import SPACINGS, Node
from logsnr.solvers.spacings import WHOLE_STEPS

from ..config.description import Description
from ..config.location import location_of
from ..config.noise_schedules import discrete_schedule
from ..config.sigma_models import SigmaModel, is_edm
from .discrete import at_steps, spaced_steps
from .spacing import evaluation_times, sigma_spacing


def sigma_layout(
    description: Description,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    schedule = description.model.schedule
    assert isinstance(schedule, SigmaModel)
    last = 0.0 if description.grid.to_zero else schedule.sigma_min
    if sigmas is not None:
        levels, last = [float(s) for s in sigmas[:-1]], float(sigmas[-1])
    elif timesteps is not None:
        levels = [schedule.time_told(float(told)) * schedule.sigma_data for told in timesteps]
    else:
        assert n is not None
        levels = _spaced(description, schedule, n)
    nodes = [schedule.at(s) for s in levels]
    told = timesteps or [schedule.network_time(node.t) for node in nodes]
    return [*nodes, schedule.last(last)], list(told)


def _spaced(description: Description, schedule: SigmaModel, n: int) -> list[float]:
    model, grid = description.model, description.grid
    if grid.flag is not None:
        low, high = schedule.sigma_min, schedule.sigma_max
        return sigma_spacing(grid.flag, low, high, n, grid.parameters.rho).tolist()
    if grid.spacing in WHOLE_STEPS:
        if model.steps is None:
            raise ValueError(
                f"timestep_spacing={grid.spacing!r} is a rule for training steps, which a model "
                f"with sigma_data={model.unit!r} has not: choose another of {', '.join(SPACINGS)}"
            )
        steps = spaced_steps(grid, description.solver.name, model.steps, n)
        return [n.sigma / n.alpha for n in at_steps(model.steps, steps.astype(np.float64))]
    times = evaluation_times(
        grid.spacing,
        schedule,
        schedule.t_start,
        schedule.t_end,
        n,
        to_zero=grid.to_zero,
        parameters=grid.placed(location_of(model)),
    )
    return (times * schedule.sigma_data).tolist()


def training_levels(config: Mapping[str, Any], schedule: SigmaModel, steps: int) -> list[float]:
    """sigma of the training steps, falling, as diffusers has them: of betas, or spaced."""
    spaced = is_edm(config) or config.get("sigma_max") is not None
    if not spaced:
        discrete = discrete_schedule(config)
        indices = np.arange(discrete.steps - 1, -1, -1)
        return [node.sigma / node.alpha for node in at_steps(discrete, indices)]
    name = config.get("sigma_schedule") or "karras"
    rho = float(config.get("rho") or 7.0)
    return sigma_spacing(name, schedule.sigma_min, schedule.sigma_max, steps, rho).tolist()
