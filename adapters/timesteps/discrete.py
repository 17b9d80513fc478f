r"""Nodes of models that were trained on N steps and are told the index of a step.

The default grid and the rules of ``timestep_spacing`` for training steps choose indices
i = 0..N-1. Other spacings put the nodes between the ends of the training schedule and tell the
network the nearest index; diffusers' flags evaluate at the end of training and go to the end from
there.
``lambda_min_clipped`` leaves out the steps whose lambda is smaller, which is how DPM-Solver keeps
away from the end of the cosine schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from logsnr.solvers import DiscreteVP, Node
from logsnr.solvers.grids import snapped
from logsnr.solvers.spacings import WHOLE_STEPS, training_steps

from ..config.location import location_of
from ..config.noise_schedules import sigma_range
from .spacing import (
    LOGISTIC,
    evaluation_times,
    final_sigma,
    flagged_spacing,
    offset_of,
    parameters_of,
    sigma_spacing,
    spacing_of,
)

# Their schedulers in diffusers count n points; the others n + 1, of which the last is the end.
COUNT_POINTS = ("ddim", "euler", "heun", "dpm2", "lms", "ipndm")


def step_layout(
    config: Mapping[str, Any],
    schedule: DiscreteVP,
    solver: str,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    steps = schedule.steps
    to_zero = final_sigma(config, solver) == "zero"
    end = Node(0.0, 1.0, 0.0) if to_zero else at_steps(schedule, [0.0])[0]
    if sigmas is not None:
        nodes = [at_ratio(schedule, float(ratio)) for ratio in sigmas]
        return nodes, [nearest_step(schedule, node) for node in nodes[:-1]]
    if timesteps is not None:
        indices = np.asarray(timesteps, dtype=np.float64)
        if not ((indices >= 0) & (indices <= steps - 1)).all():
            raise ValueError(f"timesteps={list(timesteps)}: need values in [0, {steps - 1}]")
        return [*at_steps(schedule, indices), end], indices.tolist()
    assert n is not None
    if n > steps:
        raise ValueError(f"num_inference_steps={n}: the model has {steps} training steps")
    left = steps - _clipped(config, schedule)
    if n > left:
        raise ValueError(
            f"num_inference_steps={n}: lambda_min_clipped={config['lambda_min_clipped']!r} leaves "
            f"{left} training steps"
        )
    spacing, flag = spacing_of(config), flagged_spacing(config)
    parameters = parameters_of(config, spacing, location_of(config, schedule))
    if spacing in WHOLE_STEPS:
        indices = spaced_steps(config, spacing, solver, schedule, n)
        return [*at_steps(schedule, indices), end], indices.astype(float).tolist()
    if flag is not None:
        values = sigma_spacing(flag, *sigma_range(config, schedule), n, parameters.rho)
        nodes = [at_ratio(schedule, float(ratio)) for ratio in values]
        if not to_zero and config.get("sigma_min") is None:
            nodes[-1] = end  # the same number, without its rounding
        return [*nodes, end], [nearest_step(schedule, node) for node in nodes]
    start, last = _ends(config, schedule, spacing)
    times = torch.from_numpy(
        evaluation_times(spacing, schedule, start, last, n, to_zero=to_zero, parameters=parameters)
    )
    if spacing in LOGISTIC:  # on the steps that the network is told
        below = end.t if n < steps else 0.0  # all of the steps: the last is the end too
        times = snapped(schedule, torch.cat([times, times.new_tensor([below])]))[:-1]
    nodes = _at_times(schedule, times)
    return [*nodes, end], [nearest_step(schedule, node) for node in nodes]


def spaced_steps(
    config: Mapping[str, Any], spacing: str, solver: str, schedule: DiscreteVP, n: int
) -> np.ndarray:
    """The n training steps of a rule for whole steps, falling."""
    offset = offset_of(config, spacing)
    steps = schedule.steps - _clipped(config, schedule)
    # A single point would be the end itself, at which DDIM does begin.
    points = solver in COUNT_POINTS and (n > 1 or (solver, spacing) == ("ddim", "leading"))
    indices = training_steps(spacing, steps, n, offset=offset, inner=not points and n < steps)
    return indices - max(0, indices[0] - (schedule.steps - 1))


def _clipped(config: Mapping[str, Any], schedule: DiscreteVP) -> int:
    """How many training steps have a lambda below ``lambda_min_clipped``."""
    least = config.get("lambda_min_clipped")
    if least is None or least == -math.inf:
        return 0
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    return int((schedule.lam(t) < float(least)).sum())


def _ends(config: Mapping[str, Any], schedule: DiscreteVP, spacing: str) -> tuple[float, float]:
    """The times of the first and of the last possible evaluation."""
    start, last = 1 - _clipped(config, schedule) / schedule.steps, 1 / schedule.steps
    given = config.get("sigma_min") is not None or config.get("sigma_max") is not None
    if given or (spacing not in LOGISTIC and schedule.lam(1.0) == -math.inf):
        low, high = sigma_range(config, schedule)
        start, last = min(start, schedule.time(-math.log(high))), schedule.time(-math.log(low))
    return start, last


def at_steps(schedule: DiscreteVP, indices: Sequence[float] | np.ndarray) -> list[Node]:
    """The nodes of training steps, fractions allowed."""
    return _at_times(schedule, (torch.as_tensor(indices, dtype=torch.float64) + 1) / schedule.steps)


def _at_times(schedule: DiscreteVP, t: torch.Tensor) -> list[Node]:
    columns = (t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist())
    return [Node(*entry) for entry in zip(*columns, strict=True)]


def at_ratio(schedule: DiscreteVP, ratio: float) -> Node:
    """The node with sigma / alpha = ratio."""
    if ratio == 0:
        return Node(0.0, 1.0, 0.0)
    alpha = 1 / math.hypot(1, ratio)
    return Node(schedule.time(-math.log(ratio)), alpha, ratio * alpha)


def nearest_step(schedule: DiscreteVP, node: Node) -> float:
    """The training step nearest to ``node``."""
    return float(min(max(round(schedule.network_time(node.t)), 0), schedule.steps - 1))
