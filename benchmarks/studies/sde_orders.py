r"""The orders of a stochastic solver, measured.

A plan that adds noise solves a reverse SDE. Over lambda = -1 .. 1, in steps of size h that are
uniform in lambda, from states that have their exact distribution:

* *strong order* p: on one Brownian path the result changes by O(h^p) when the steps are halved,
  root mean square over paths;
* *weak order* p: moments of the result are off by O(h^p).

Two problems tell them, and the smaller order counts. On Gaussian data the plan is linear, so that
both errors are known in closed form and without drawing a path (`gaussian_law`), the weak one
against the exact law of the data. A mixture of Gaussians is not linear; there paths are drawn
(`coupled_noise`), and the moments are those of the runs with h and with h / 2 on the same paths,
whose difference is much better known than either.

The noise of methods that go back at a node, however small the steps (restart, Langevin correctors),
is no path's: it has no strong order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logsnr.solvers import SOLVERS, Grid, Node, Plan, sample
from logsnr.solvers.grids import nodes_at_lams
from logsnr.solvers.registry import Build

from ..problems.analytic import Gaussian, Mixture, exact_denoiser
from .coupled_noise import CoupledNoise
from .curves import Curve
from .exact_history import SCHEDULE, problems
from .gaussian_law import mean_square_difference, response
from .solver_methods import full_options, resolve

LAM_RANGE = (-1.0, 1.0)
STEP_COUNTS = (16, 32, 64, 128, 256)
PATHS = 65536
_ON_PATHS = 4  # so many of the step counts are run on paths, which cost more than closed forms
_CHUNK = 2048


@dataclass(frozen=True)
class SdeMeasurement:
    """Orders of one stochastic solver: ``strong`` and ``weak`` map a problem's name to its `Curve`.

    What is declared is None for a function that is not registered, and for a method that has no
    such order.
    """

    solver: str
    options: Mapping[str, Any]
    grid: str
    declared_strong: float | None
    declared_weak: float | None
    strong: Mapping[str, Curve]
    weak: Mapping[str, Curve]

    @property
    def strong_order(self) -> float:
        """The smaller order over the problems."""
        return min(curve.slope for curve in self.strong.values())

    @property
    def weak_order(self) -> float:
        """The smaller order over the problems."""
        return min(curve.slope for curve in self.weak.values())

    @property
    def curves(self) -> dict[str, Mapping[str, Curve]]:
        """The curves by kind."""
        return {"strong": self.strong, "weak": self.weak}

    @property
    def orders(self) -> dict[str, float]:
        """The measured orders by kind."""
        return {"strong": self.strong_order, "weak": self.weak_order}

    @property
    def expected(self) -> dict[str, float | None]:
        """The declared orders by kind."""
        return {"strong": self.declared_strong, "weak": self.declared_weak}


def measure_sde(
    solver: str | Build,
    *,
    grid: str = "logsnr",
    step_counts: Sequence[int] = STEP_COUNTS,
    paths: int = PATHS,
    **options: Any,
) -> SdeMeasurement:
    """Measure the strong and the weak order of a solver whose plan adds noise.

    Parameters
    ----------
    solver, grid : as in `orders.measure`; "uneven" is "logsnr" here.
    step_counts : numbers of steps, each twice the one before.
    paths : how many are drawn for the mixture; 0 leaves it out. A weak error counts there only as
        far as they tell it from 0, which for order 2 takes some ten thousand.
    options : the solver's own. ``lower_order_final`` is False unless given.

    Raises ValueError for an unknown solver or option, and for a plan without noise.
    """
    name, build = resolve(solver)
    options = full_options(name, build, options)
    nodes = _nodes(grid, step_counts[-1])
    plans = [_plan(partial(build, **options), nodes, count) for count in step_counts]
    h = tuple((LAM_RANGE[1] - LAM_RANGE[0]) / count for count in step_counts)
    gaussian, mixture = problems()
    strong, weak = {}, {}
    strong[gaussian.name], weak[gaussian.name] = _closed_form(plans, gaussian, h)
    if paths:
        some = slice(_ON_PATHS)
        strong[mixture.name], weak[mixture.name] = _on_paths(plans[some], mixture, h[some], paths)
    return SdeMeasurement(
        name,
        options,
        grid,
        declared(name, "strong", options),
        declared(name, "weak", options),
        strong,
        weak,
    )


def declared(name: str, kind: str, options: Mapping[str, Any]) -> float | None:
    """The "strong" or "weak" order that a registered solver declares."""
    rule = getattr(SOLVERS.get(name), kind, None)
    return None if rule is None else rule(options)


def _nodes(grid: str, count: int) -> list[Node]:
    lams = torch.linspace(*LAM_RANGE, count + 1, dtype=torch.float64)
    if grid == "ratio":
        first, last = (math.exp(-lam) for lam in LAM_RANGE)
        lams = -torch.linspace(first, last, count + 1, dtype=torch.float64).log()
    return nodes_at_lams(SCHEDULE, lams)


def _plan(build: Build, nodes: Sequence[Node], count: int) -> Plan:
    used = tuple(nodes[:: (len(nodes) - 1) // count])
    plan = build(Grid(SCHEDULE, used[0].t, used[-1].t, explicit=used), None)
    if not (plan.stochastic and plan.numeric):
        kind = "adds no noise" if plan.numeric else "has coefficients that are tensors"
        raise ValueError(
            f"strong and weak orders are defined for a stochastic plan of numbers: this {kind}"
        )
    return plan


def _closed_form(
    plans: Sequence[Plan], problem: Gaussian, h: Sequence[float]
) -> tuple[Curve, Curve]:
    first, last = (plans[0].rows[k].node for k in (0, -1))
    start, end = (_variance(problem, node) for node in (first, last))
    found = [response(plan, problem) for plan in plans]
    strong = [
        math.sqrt(mean_square_difference(coarse, fine, start).mean()) / _size(last)
        for coarse, fine in pairwise(found)
    ]
    weak = [_rms(one.variance(start) - end) / _size(last) ** 2 for one in found]
    return Curve(tuple(h[:-1]), tuple(strong)), Curve(tuple(h), tuple(weak))


def _on_paths(
    plans: Sequence[Plan], problem: Mixture, h: Sequence[float], paths: int
) -> tuple[Curve, Curve]:
    generator = torch.Generator().manual_seed(0)
    denoise = exact_denoiser(problem, SCHEDULE)
    first, last = (plans[0].rows[k].node for k in (0, -1))
    squares: list[list[Tensor]] = [[] for _ in plans[1:]]
    changes: list[list[Tensor]] = [[] for _ in plans[1:]]
    for begin in range(0, paths, _CHUNK):
        count = min(_CHUNK, paths - begin)
        x0 = problem.draw(count, generator)
        z = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
        x_T = first.alpha * x0 + first.sigma * z
        noise = CoupledNoise(plans, x_T.shape, generator)
        results = [sample(denoise, x_T, plan, noise=noise) / _size(last) for plan in plans]
        for i, (coarse, fine) in enumerate(pairwise(results)):
            squares[i].append((coarse - fine).square())
            changes[i].append(torch.cat([coarse - fine, coarse.square() - fine.square()], dim=1))
    strong = [float(torch.cat(entry).mean().sqrt()) for entry in squares]
    weak, bars = zip(*(_mean_length(torch.cat(entry)) for entry in changes), strict=True)
    sizes = tuple(h[:-1])
    return Curve(sizes, tuple(strong)), Curve(sizes, weak, bars)


def _mean_length(values: Tensor) -> tuple[float, float]:
    """The root mean square of the means of (paths, M) values, and its standard deviation."""
    mean = values.mean(0)
    along = values @ (mean / mean.norm())
    size = math.sqrt(len(mean))
    return float(mean.norm()) / size, float(along.std()) / math.sqrt(len(values)) / size


def _variance(problem: Gaussian, node: Node) -> np.ndarray:
    return ((node.alpha * problem.scale) ** 2 + node.sigma**2).numpy()


def _size(node: Node) -> float:
    return math.hypot(node.alpha, node.sigma)


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float((values**2).mean()))
