r"""The schedulers of huggingface/diffusers in our terms; see `official`.

A recorded run holds the tables of its scheduler: ``sigmas`` (sigma / alpha for VP schedules, the
schedule's own sigma for flow matching, one entry for each node and the end) and ``timesteps``
(what the network was told). The nodes are taken from the first, so that a difference is one of
the solver, not of a rounded grid. Where the two disagree, because a scheduler truncates its
timesteps to integers, the network is asked where diffusers asked it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from logsnr.solvers import (
    DiscreteVP,
    FlowMatching,
    Grid,
    Node,
    NoiseSchedule,
    Plan,
    Row,
    plan_on_grid,
)
from logsnr.solvers.methods.dpm_solver import stages
from logsnr.solvers.methods.singlestep import singlestep

from .cases import (
    Answer,
    Array,
    Case,
    Difference,
    Recipe,
    Unsupported,
    family,
    leaves_list,
    next_timesteps,
    of_plan,
)

_SHORT_RUN = 15  # several schedulers lower the final orders only below this number of steps
_SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}
_SPACES = {"dpmsolver++": "data", "dpmsolver": "noise"}


@family("diffusers")
def diffusers(case: Case) -> Answer:
    """huggingface/diffusers, deterministic schedulers with float64 tables."""
    scheduler = case.function.removesuffix(".step")
    makers = {
        "DDIMScheduler": _ddim,
        "DPMSolverMultistepScheduler": _dpm_multistep,
        "DPMSolverSinglestepScheduler": _dpm_singlestep,
        "UniPCMultistepScheduler": _unipc,
        "DEISMultistepScheduler": _deis,
        "EulerDiscreteScheduler": _euler,
        "HeunDiscreteScheduler": _heun,
        "FlowMatchEulerDiscreteScheduler": _flow_euler,
    }
    if scheduler not in makers:
        return Unsupported(f"scheduler {scheduler} has no counterpart here")
    return makers[scheduler](case)


def _schedule(case: Case) -> NoiseSchedule:
    if case.schedule == "flow":
        return FlowMatching()
    config = case.config
    start, end, count = (config[k] for k in ("beta_start", "beta_end", "num_train_timesteps"))
    if config["beta_schedule"] == "scaled_linear":
        roots = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64)
        return DiscreteVP.from_betas(roots**2)
    if config["beta_schedule"] == "linear":
        return DiscreteVP.from_betas(torch.linspace(start, end, count, dtype=torch.float64))
    raise ValueError(
        f"beta_schedule={config['beta_schedule']!r}: choose one of 'scaled_linear', 'linear'"
    )


def _nodes(schedule: NoiseSchedule, sigmas: Array) -> list[Node]:
    """Nodes of a scheduler's table; entries may repeat, and the last may be 0."""
    nodes = []
    for value in map(float, sigmas):
        if isinstance(schedule, FlowMatching):
            nodes.append(Node(value, 1 - value, value))
            continue
        r = math.hypot(1.0, value)
        t = schedule.time(-math.log(value)) if value > 0 else 0.0
        nodes.append(Node(t, 1 / r, value / r))
    return nodes


def _times(schedule: NoiseSchedule, timesteps: Array) -> Array:
    """The schedule's times of a scheduler's timesteps."""
    return timesteps / 1000 if isinstance(schedule, FlowMatching) else _vp(schedule, timesteps)


def _vp(schedule: NoiseSchedule, timesteps: Array) -> Array:
    assert isinstance(schedule, DiscreteVP)
    return (timesteps + 1) / schedule.steps


def _recipe(case: Case, plan: Plan, schedule: NoiseSchedule, nodes: Sequence[Node]) -> Recipe:
    """``nodes`` are those of the official calls, in order."""
    called_at = np.array([node.t for node in nodes])
    snap = None
    if case.config["model_time"] == "timestep":
        told = _times(schedule, case.arrays["timesteps"])
        lookup = dict(zip(called_at.tolist(), told.tolist(), strict=True))
        called_at, snap = told, lookup.__getitem__
    prediction = "flow_prediction" if case.schedule == "flow" else "epsilon"
    return Recipe(of_plan(plan), schedule, prediction, called_at=called_at, snap=snap)


def _on_table(case: Case, solver: str, uncorrected: Sequence[int] = (), **options: Any) -> Recipe:
    """A solver of ours on the nodes of the scheduler's own table, some steps ``uncorrected``."""
    schedule = _schedule(case)
    nodes = _nodes(schedule, case.arrays["sigmas"])
    grid = Grid(schedule, nodes[0].t, nodes[-1].t, explicit=tuple(nodes))
    plan = plan_on_grid(solver, grid, **options)
    if uncorrected:
        from logsnr.adapters.plans import without_correctors

        plan = without_correctors(plan, frozenset(uncorrected))
    return _recipe(case, plan, schedule, nodes[:-1])


def _steps(case: Case) -> int:
    return len(case.arrays["timesteps"])


def _order(case: Case, default: int = 2) -> int:
    """The order that is ever reached: the warm-up of a short run ends below it."""
    return min(case.config.get("solver_order", default), _steps(case))


def _ddim(case: Case) -> Answer:
    if case.config.get("eta") or case.config.get("clip_sample"):
        return Unsupported("DDIM with added noise or with clipping")
    schedule = _schedule(case)
    assert isinstance(schedule, DiscreteVP)
    timesteps = case.arrays["timesteps"]
    if leaves_list(timesteps, schedule.steps):
        return Difference(
            "DDIMScheduler steps to timestep t - N // n although its next timestep is another"
        )
    # The last step also goes to t - N // n, and beyond the table to alpha = 1 or to entry 0.
    last = next_timesteps(timesteps, schedule.steps)[-1]
    times = _vp(schedule, np.append(timesteps, max(last, 0))).tolist()
    *nodes, end = [Node(t, schedule.alpha(t), schedule.sigma(t)) for t in times]
    if last < 0 and case.config.get("set_alpha_to_one", True):
        end = Node(0.0, 1.0, 0.0)
    grid = Grid(schedule, nodes[0].t, end.t, explicit=(*nodes, end))
    return _recipe(case, plan_on_grid("ddim", grid), schedule, nodes)


def _dpm_multistep(case: Case) -> Answer:
    config, n = case.config, _steps(case)
    algorithm = config.get("algorithm_type", "dpmsolver++")
    if algorithm not in _SPACES:
        return Unsupported(f"algorithm_type {algorithm!r} is stochastic")
    lowered = config.get("lower_order_final", True) and n < _SHORT_RUN
    order = _order(case)
    if config.get("euler_at_final", False) and not lowered:
        if order > 2 and case.arrays["sigmas"][-1] > 0:
            return Difference("euler_at_final lowers the last of many order-3 steps alone")
        # At order 2, and in the step to sigma = 0, lowering the last step is all there is to lower.
        lowered = order <= 2
    solver = {"data": "dpm-solver++", "noise": "dpm-solver"}[_SPACES[algorithm]]
    return _on_table(
        case,
        solver,
        order=order,
        steps="multistep",
        solver_type=_SOLVER_TYPES[config.get("solver_type", "midpoint")],
        lower_order_final=lowered,
    )


def _dpm_singlestep(case: Case) -> Answer:
    """Blocks as the scheduler cuts them, each stage by the formula of a block that ends there."""
    config, schedule = case.config, _schedule(case)
    algorithm = config.get("algorithm_type", "dpmsolver++")
    if algorithm not in _SPACES:
        return Unsupported(f"algorithm_type {algorithm!r} is stochastic")
    space = _SPACES[algorithm]
    solver_type = _SOLVER_TYPES[config.get("solver_type", "midpoint")]
    nodes = _nodes(schedule, case.arrays["sigmas"])
    cut, first = [], 0
    for size in _block_sizes(case):
        cut.append(nodes[first : first + size + 1])
        first += size

    def stage(block: Sequence[Node], base: int, outputs: Sequence[int]) -> Row:
        return stages(space, block[: len(outputs) + 1], base, outputs, solver_type)

    plan = Plan(tuple(singlestep(cut, stage, space=space)))
    return _recipe(case, plan, schedule, nodes[:-1])


def _block_sizes(case: Case) -> list[int]:
    """The scheduler's list of orders, 1, 2, 3, 1, .., read as blocks: each 1 begins one."""
    config, n = case.config, _steps(case)
    order = config.get("solver_order", 2)
    ends_at_zero = config.get("final_sigmas_type", "zero") == "zero"
    lowered = config.get("lower_order_final", False) or n % order or ends_at_zero
    if order == 1:
        return [1] * n
    if not lowered:
        return [order] * (n // order)
    if order == 2:
        return [2] * ((n - 1) // 2) + [1] * (2 - n % 2)
    tail = {0: [2, 1], 1: [1], 2: [2]}[n % 3]
    sizes = [3] * ((n - sum(tail)) // 3) + tail
    if ends_at_zero and sizes[-1] > 1:
        # The last entry of the list becomes 1: its block loses its end to a block of its own.
        sizes[-1:] = [sizes[-1] - 1, 1]
    return sizes


def _unipc(case: Case) -> Answer:
    config = case.config
    order = _order(case)
    lowered = config.get("lower_order_final", True)
    if not lowered and order > 1 and case.arrays["sigmas"][-1] == 0:
        return Difference("a step of order above 1 to sigma = 0, where lambda is infinite")
    return _on_table(
        case,
        "unipc",
        config.get("disable_corrector") or (),
        order=order,
        variant=config.get("solver_type", "bh2"),
        space="data" if config.get("predict_x0", True) else "noise",
        lower_order_final=lowered,
    )


def _deis(case: Case) -> Answer:
    """Its polynomial in log(rho) under the integral in rho is one in lambda: our `adams`."""
    lowered = case.config.get("lower_order_final", True) and _steps(case) < _SHORT_RUN
    return _on_table(case, "adams", order=_order(case), space="noise", lower_order_final=lowered)


def _euler(case: Case) -> Answer:
    return _on_table(case, "euler")


def _flow_euler(case: Case) -> Answer:
    return _on_table(case, "ddim")


def _heun(case: Case) -> Answer:
    """The table lists every inner sigma twice, once for each of its evaluations."""
    schedule, sigmas = _schedule(case), case.arrays["sigmas"]
    table = _nodes(schedule, sigmas)
    nodes = [table[0], *table[1::2]]
    grid = Grid(schedule, nodes[0].t, nodes[-1].t, explicit=tuple(nodes))
    return _recipe(case, plan_on_grid("heun", grid), schedule, table[:-1])
