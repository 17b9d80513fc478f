r"""Steps of a plan from exact history: all rows before them on exact solutions.

The exact solutions are those of a Gaussian (a closed form) and of a mixture of Gaussians, which
is nonlinear (integrated to 1e-12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from logsnr.solvers import Node, Plan, VPLinear
from logsnr.solvers.grids import nodes_at_lams
from logsnr.solvers.noise import noise_source
from logsnr.solvers.requests import drive
from logsnr.solvers.running import proceed
from logsnr.solvers.segments import maps
from logsnr.solvers.terms import Terms

from ..problems.analytic import Flow, Gaussian, Mixture, Problem

SCHEDULE = VPLinear()
STARTS = 32


def problems() -> tuple[Gaussian, Mixture]:
    """The two problems: a linear and a nonlinear one."""
    gaussian = Gaussian(torch.linspace(-1, 1, 6), torch.logspace(-0.7, 0.3, 6))
    means = torch.tensor([[1.0, 0.4, -0.6], [-0.8, 0.5, 0.3], [0.1, -1.1, 0.2]])
    mixture = Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, torch.tensor([0.5, 0.35, 0.6])
    )
    return gaussian, mixture


@lru_cache(maxsize=1)
def exact_flows() -> list[tuple[Problem, Flow]]:
    """The two problems, each with exact solutions from random start states."""
    generator = torch.Generator().manual_seed(0)
    start = _node(-4.6)
    flows: list[tuple[Problem, Flow]] = []
    for problem in problems():
        x0 = problem.draw(STARTS, generator)
        noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
        x = start.alpha * x0 + start.sigma * noise
        flows.append((problem, problem.flow(start, x, end=4.6)))
    return flows


def _node(lam: float) -> Node:
    return nodes_at_lams(SCHEDULE, [lam])[0]


@dataclass(frozen=True)
class Step:
    """Rows first + 1 .. last of a plan: from one carried state to the next."""

    first: int
    last: int
    entries: int


def steady_steps(plan: Plan) -> list[Step]:
    """The steps that use the most history, in order."""
    rows = plan.rows
    carried = sorted({j for row in rows for j, _ in row.states} | {len(rows) - 1})
    steps = [
        Step(a, b, sum(len(row.coefficients()) for row in rows[a + 1 : b + 1]))
        for a, b in pairwise(carried)
        if rows[a].node.lam < rows[b].node.lam
    ]
    most = max(step.entries for step in steps)
    return [step for step in steps if step.entries == most]


def advance(plan: Plan, first: int, last: int, problem: Problem, flow: Flow) -> Tensor:
    """The state of row ``last``, if all rows up to ``first`` are on the exact solutions."""
    rows = (*plan.rows[:last], replace(plan.rows[last], target=None))
    part = Plan(rows, consistent=False)
    linear = maps(part, "epsilon")
    executor = Terms(part, "epsilon", flow(rows[0].node))

    def eps(x: Tensor, node: Node) -> Tensor:
        return problem.predict(x, node.alpha, node.sigma)[0]

    def state(j: int) -> Tensor:
        return flow(rows[j].node)

    executor.resume(first, state, lambda j: linear[j](eps(state(j), rows[j].node), state(j)))
    process = proceed(executor, executor.waiting, noise_source(None), first)
    return drive(process, lambda request: eps(request.x, request.node))


def mean_square_error(plan: Plan, first: int, last: int, problem: Problem, flow: Flow) -> float:
    """Mean square error of row ``last`` in units of r = sqrt(alpha^2 + sigma^2)."""
    node = plan.rows[last].node
    difference = advance(plan, first, last, problem, flow) - flow(node)
    return float((difference / math.hypot(node.alpha, node.sigma)).square().mean())
