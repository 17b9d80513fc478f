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
from collections.abc import Sequence

import numpy as np
import torch

from logsnr.solvers import DiscreteVP, Node
from logsnr.solvers.grids import snapped
from logsnr.solvers.spacings import LOGISTIC, WHOLE_STEPS, training_steps

from ..config.description import Description
from ..config.grid_options import GridOptions
from ..config.location import location_of
from .spacing import evaluation_times, sigma_spacing

# Their schedulers in diffusers count n points; the others n + 1, of which the last is the end.
COUNT_POINTS = (
    "ddim",
    "euler",
    "heun",
    "dpm2",
    "lms",
    "ipndm",
    "ddpm",
    "euler-ancestral",
    "dpm2-ancestral",
)


def step_layout(
    description: Description,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    schedule, grid = description.model.steps, description.grid
    assert schedule is not None
    steps = schedule.steps
    end = Node(0.0, 1.0, 0.0) if grid.to_zero else at_steps(schedule, [0.0])[0]
    if sigmas is not None:
        nodes = [at_ratio(schedule, float(ratio)) for ratio in sigmas]
        return nodes, nearest_steps(schedule, nodes[:-1])
    if timesteps is not None:
        indices = np.asarray(timesteps, dtype=np.float64)
        if not ((indices >= 0) & (indices <= steps - 1)).all():
            raise ValueError(f"timesteps={list(timesteps)}: need values in [0, {steps - 1}]")
        return [*at_steps(schedule, indices), end], indices.tolist()
    assert n is not None
    if n > steps:
        raise ValueError(f"num_inference_steps={n}: the model has {steps} training steps")
    left = steps - _clipped(grid, schedule)
    if n > left:
        raise ValueError(
            f"num_inference_steps={n}: lambda_min_clipped={grid.least_lam!r} leaves {left} "
            "training steps"
        )
    if grid.spacing in WHOLE_STEPS:
        indices = spaced_steps(grid, description.solver.name, schedule, n)
        return [*at_steps(schedule, indices), end], indices.astype(float).tolist()
    if grid.flag is not None:
        values = sigma_spacing(grid.flag, *grid.sigma_range(schedule), n, grid.parameters.rho)
        nodes = [at_ratio(schedule, float(ratio)) for ratio in values]
        if not grid.to_zero and grid.sigma_min is None:
            nodes[-1] = end  # the same number, without its rounding
        return [*nodes, end], nearest_steps(schedule, nodes)
    start, last = _ends(grid, schedule)
    times = torch.from_numpy(
        evaluation_times(
            grid.spacing,
            schedule,
            start,
            last,
            n,
            to_zero=grid.to_zero,
            parameters=grid.placed(location_of(description.model)),
        )
    )
    if grid.spacing in LOGISTIC:  # on the steps that the network is told
        below = end.t if n < steps else 0.0  # all of the steps: the last is the end too
        times = snapped(schedule, torch.cat([times, times.new_tensor([below])]))[:-1]
    nodes = _at_times(schedule, times)
    return [*nodes, end], nearest_steps(schedule, nodes)


def spaced_steps(grid: GridOptions, solver: str, schedule: DiscreteVP, n: int) -> np.ndarray:
    """The n training steps of a rule for whole steps, falling."""
    steps = schedule.steps - _clipped(grid, schedule)
    # A single point would be the end itself, at which DDIM does begin.
    points = solver in COUNT_POINTS and (n > 1 or (solver, grid.spacing) == ("ddim", "leading"))
    inner = not points and n < steps
    indices = training_steps(grid.spacing, steps, n, offset=grid.offset, inner=inner)
    return indices - max(0, indices[0] - (schedule.steps - 1))


def _clipped(grid: GridOptions, schedule: DiscreteVP) -> int:
    """How many training steps have a lambda below ``lambda_min_clipped``."""
    if grid.least_lam is None:
        return 0
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    return int((schedule.lam(t) < grid.least_lam).sum())


def _ends(grid: GridOptions, schedule: DiscreteVP) -> tuple[float, float]:
    """The times of the first and of the last possible evaluation."""
    start, last = 1 - _clipped(grid, schedule) / schedule.steps, 1 / schedule.steps
    endless = grid.spacing not in LOGISTIC and schedule.lam(1.0) == -math.inf
    if grid.has_sigma_ends or endless:
        low, high = grid.sigma_range(schedule)
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
    return nearest_steps(schedule, [node])[0]


def nearest_steps(schedule: DiscreteVP, nodes: Sequence[Node]) -> list[float]:
    """The training step nearest to each of ``nodes``."""
    last = schedule.steps - 1
    return [float(min(max(round(schedule.network_time(node.t)), 0), last)) for node in nodes]
