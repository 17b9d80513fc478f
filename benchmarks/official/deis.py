r"""The official code of DEIS (qsh-zh/deis, th_deis) in our terms; see `official`.

Two things are its own. Its cosine schedule is alpha = cos(theta_t), without the division by
cos(theta_0), and its discrete schedule takes the index as time and interpolates alpha^2 linearly
in it. And it integrates the Lagrange polynomials by a sum of 10,000 rectangles, left ends; such
cases are run with that quadrature in place of ours, so that all the rest is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from logsnr.solvers import NOISE, Grid, Node, NoiseSchedule, Plan, plan_on_grid
from logsnr.solvers.methods.multistep import Predictor, Weights, first_order, multistep

from .cases import Answer, Array, Case, Recipe, Unsupported, family, of_plan, schedule_of

RECTANGLES = 10_000


@dataclass(frozen=True)
class PlainCosine(NoiseSchedule):
    """alpha = cos(theta_t), sigma = sin(theta_t), theta_t = (t + s) / (1 + s) pi / 2."""

    s: float = 0.008

    def _theta(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.cos(self._theta(t)))

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(torch.sin(self._theta(t)))

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) / (1 + self.s) * torch.tan(self._theta(t))

    def _time(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam)) * (1 + self.s) / (math.pi / 2) - self.s


@dataclass(frozen=True, eq=False)
class IndexedSquares(NoiseSchedule):
    """alpha^2 linear between the entries of a table; time is the index 0 .. N - 1."""

    alphas_cumprod: Array = field(repr=False)
    t_max: float = field(default=math.inf, init=False, repr=False)

    def _square(self, t: Tensor) -> Tensor:
        index = np.arange(len(self.alphas_cumprod))
        return torch.from_numpy(np.interp(t.numpy(), index, self.alphas_cumprod))

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(self._square(t))

    def _log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log1p(-self._square(t))

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        left = t.floor().clamp(max=len(self.alphas_cumprod) - 2).long()
        return 0.5 * torch.from_numpy(np.diff(self.alphas_cumprod))[left] / self._square(t)

    def _time(self, lam: Tensor) -> Tensor:
        square = torch.sigmoid(2 * lam).numpy()
        index = np.arange(len(self.alphas_cumprod), dtype=np.float64)
        return torch.from_numpy(np.interp(-square, -self.alphas_cumprod, index))


def own_schedule(case: Case) -> NoiseSchedule:
    """The schedule as this code has it."""
    if case.schedule == "vp_cosine":
        return PlainCosine()
    if case.schedule == "vp_discrete":
        return IndexedSquares(case.tables["vp_discrete/alphas_cumprod"])
    return schedule_of(case)


def grid_of(case: Case, schedule: NoiseSchedule) -> Grid:
    """n steps, uniform in t^(1/k), rho^(1/k) or log(rho), rho = sigma / alpha."""
    config = case.config
    n, k = config["num_step"], config["ts_order"]
    ends = float(config["sampling_T"]), float(config["sampling_eps"])
    to, back = phases(config["ts_phase"], k, schedule)
    times = back(torch.linspace(to(ends[0]), to(ends[1]), n + 1, dtype=torch.float64))
    times[0], times[-1] = ends
    columns = times.tolist(), schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    nodes = tuple(Node(*entry) for entry in zip(*columns, strict=True))
    return Grid(schedule, *ends, explicit=nodes)


def phases(
    phase: str, k: float, schedule: NoiseSchedule
) -> tuple[Callable[[float], float], Callable[[Tensor], Tensor]]:
    """The function of t in which a grid is uniform, and its inverse."""
    if phase == "t":
        return lambda t: t ** (1 / k), lambda u: u**k
    if phase == "rho":
        return (
            lambda t: math.exp(-schedule.lam(t) / k),
            lambda u: schedule.time(-k * torch.log(u)),
        )
    return lambda t: schedule.lam(t), schedule.time


def rectangles(
    variable: Callable[[Node], float],
    slope: Callable[[Array], Array],
    *,
    last_point: bool = False,
    exact_start: bool = False,
) -> Predictor:
    """Weights of the polynomial in u = ``variable`` by a sum over equal rectangles.

    ``slope`` is d rho / du. With ``last_point`` the points run to the end of the step, at the
    same width; with ``exact_start`` the first step is not summed.
    """

    def predictor(past: Sequence[Node], end: Node) -> Weights:
        if exact_start and len(past) == 1:
            a, b = first_order(NOISE, past[0], end)
            return a, [b]
        first, last = variable(past[0]), variable(end)
        u = np.linspace(first, last, RECTANGLES, endpoint=last_point)
        width = (last - first) / RECTANGLES
        at = [variable(node) for node in past]
        sums = [
            float(np.sum(slope(u) * np.prod([(u - v) / (c - v) for v in at if v != c], axis=0)))
            for c in at
        ]
        return end.alpha / past[0].alpha, [end.alpha * width * s for s in sums]

    return predictor


def in_rho() -> Predictor:
    """rhoAB by `rectangles`."""
    return rectangles(lambda node: node.sigma / node.alpha, np.ones_like)


def in_time(schedule: NoiseSchedule) -> Predictor:
    """tAB by `rectangles`."""
    return rectangles(lambda node: node.t, lambda u: rho_slope(schedule, u))


def rho_slope(schedule: NoiseSchedule, times: Array) -> Array:
    """d rho / dt."""
    t = torch.from_numpy(times)
    return (-schedule.dlam(t) * torch.exp(-schedule.lam(t))).numpy()


def summed_plan(grid: Grid, predictor: Predictor, order: int) -> Plan:
    """DEIS by `rectangles`. The weights do not sum to what they should: not consistent."""
    assert grid.explicit is not None
    rows = multistep(grid.explicit, predictor, order=order, space="noise", lower_order_final=False)
    return Plan(tuple(rows), consistent=False)


@family("deis")
def deis(case: Case) -> Answer:
    """qsh-zh/deis."""
    config, schedule = case.config, own_schedule(case)
    grid, method = grid_of(case, schedule), config["method"]
    if method == "ipndm":
        plan = plan_on_grid("ipndm", grid, order=4)
    elif method == "rho_rk":
        names = {"2heun": ("rhork", 2), "3kutta": ("rhork", 3), "3heun": ("rhork-heun", 3)}
        names["4rk"] = ("rhork", 4)
        if config["rk_method"] not in names:
            return Unsupported(f"no Runge-Kutta method {config['rk_method']!r}")
        variant, order = names[config["rk_method"]]
        plan = plan_on_grid("deis", grid, variant=variant, order=order)
    else:
        variant, order = {"t_ab": "tab", "rho_ab": "rhoab"}[method], config["ab_order"] + 1
        if config["quadrature"].startswith("official"):
            predictor = in_time(schedule) if variant == "tab" else in_rho()
            plan = summed_plan(grid, predictor, order)
        else:
            plan = plan_on_grid("deis", grid, variant=variant, order=order)
    return Recipe(of_plan(plan), schedule)
