r"""Nodes of models that were trained on N steps and are told the index of a step.

The rules of ``timestep_spacing`` for training steps choose indices i = 0..N-1. Spacings by
rho = sigma / alpha put the nodes between the ends of the training schedule and tell the network the
nearest index; diffusers' flags evaluate at the end of training and go to the end from there.
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
from logsnr.solvers.spacings import training_steps

from .noise_schedules import sigma_range
from .spacing import final_sigma, flagged_spacing, named_spacing, named_times, sigma_spacing

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
    named, flagged = named_spacing(config), flagged_spacing(config)
    if named is not None:
        low, high = (schedule.time(-math.log(s)) for s in _range(config, schedule))
        times = named_times(named, schedule, high, low, n, to_zero=to_zero)
        nodes = _at_times(schedule, torch.tensor(times, dtype=torch.float64))
        return [*nodes, end], [nearest_step(schedule, node) for node in nodes]
    if flagged is not None:
        values = sigma_spacing(flagged, *sigma_range(config, schedule), n)
        nodes = [at_ratio(schedule, float(ratio)) for ratio in values]
        if not to_zero and config.get("sigma_min") is None:
            nodes[-1] = end  # the same number, without its rounding
        return [*nodes, end], [nearest_step(schedule, node) for node in nodes]
    indices = spaced_steps(config, solver, schedule, n)
    return [*at_steps(schedule, indices), end], indices.astype(float).tolist()


def spaced_steps(
    config: Mapping[str, Any], solver: str, schedule: DiscreteVP, n: int
) -> np.ndarray:
    """The n training steps of the config's rule, falling."""
    default = "leading" if solver == "ddim" else "linspace"
    spacing = config.get("timestep_spacing") or default
    offset = int(config.get("steps_offset") or 0) if spacing == "leading" else 0
    steps = schedule.steps - _clipped(config, schedule)
    if n > steps:
        raise ValueError(
            f"num_inference_steps={n}: lambda_min_clipped={config['lambda_min_clipped']!r} leaves "
            f"{steps} training steps"
        )
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


def _range(config: Mapping[str, Any], schedule: DiscreteVP) -> tuple[float, float]:
    low, high = sigma_range(config, schedule)
    least = config.get("lambda_min_clipped")
    return low, high if least is None else min(high, math.exp(-float(least)))


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
