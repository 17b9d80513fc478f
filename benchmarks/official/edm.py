r"""The official code of EDM (NVlabs/edm, generate.py) in our terms; see `official`.

Its ablation sampler takes Euler or Heun steps of the scaled state x = s(t) (x0 + sigma(t) n) in the
time t of a schedule sigma(t),

    dx/dt = (sigma' / sigma + s' / s) x - (sigma' s / sigma) D,

with D the data prediction. Where sigma is t and s is 1 these are steps of ours in sigma. Elsewhere
a step does not follow a constant noise prediction exactly, and so breaks the identities of a plan;
it is a table of numbers nonetheless, which is run as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from logsnr.solvers import (
    DATA,
    Node,
    Noise,
    NoiseSchedule,
    Plan,
    Row,
    VarianceExploding,
    VPLinear,
    make_plan,
)
from logsnr.solvers.methods.runge_kutta import MAX_CHURN

from .cases import Answer, Array, Case, Recipe, family, of_plan, schedule_of
from .sigma import EPSILON_S, log_linear, polynomial, to_zero, vp_of, vp_uniform


def iddpm(sigma_max: float, sigma_min: float, points: int) -> Array:
    """Karras et al. 2022, table 1, iDDPM: M = 1000 levels, C1 = 0.001, C2 = 0.008."""
    levels, floor, offset = 1000, 0.001, 0.008
    bar = np.sin(0.5 * np.pi * np.arange(levels + 1) / levels / (offset + 1)) ** 2
    u = np.zeros(levels + 1)
    for j in range(levels, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(bar[j - 1] / bar[j], floor) - 1)
    usable = u[(u >= sigma_min) & (u <= sigma_max)]
    return usable[np.round((len(usable) - 1) / (points - 1) * np.arange(points)).astype(int)]


@family("nvlabs_edm")
def nvlabs_edm(case: Case) -> Answer:
    """NVlabs/edm: ``edm_sampler`` and ``ablation_sampler`` of generate.py."""
    config = case.config
    if "solver" not in config:
        return _edm_sampler(case)
    points = config["num_steps"]
    vp = VPLinear(beta_min=0.1, beta_max=20.0)
    usual = {
        "vp": (math.exp(-vp.lam(1.0)), math.exp(-vp.lam(EPSILON_S))),
        "ve": (100.0, 0.02),
        "iddpm": (81.0, 0.002),
        "edm": (80.0, 0.002),
    }[config["discretization"]]
    ends = (config.get("sigma_max", usual[0]), config.get("sigma_min", usual[1]))
    sigmas = {
        "vp": lambda: vp_uniform(*ends, points, 1.0),
        "ve": lambda: log_linear(*ends, points),
        "iddpm": lambda: iddpm(*ends, points),
        "edm": lambda: polynomial(*ends, points, config.get("rho", 7)),
    }[config["discretization"]]()
    # The sampler scales unit noise to its own first sigma.
    unit = case.x_T / (80.0 if case.schedule == "edm" else vp.sigma(1.0))
    if (config["schedule"], config["scaling"], config["S_churn"]) == ("linear", "none", 0):
        options = {} if config["solver"] == "euler" else {"r": config["alpha"]}
        schedule: NoiseSchedule = VarianceExploding()
        plan, noise = make_plan(config["solver"], schedule, times=to_zero(sigmas), **options), None
    else:
        schedule = UnitVariance() if config["scaling"] == "vp" else VarianceExploding()
        plan = _steps_in_t(case, sigmas, LEVELS[config["schedule"]](*ends), schedule)
        noise = None
        if plan.stochastic:
            raised = _gammas(case, sigmas) > 0
            noise = [torch.from_numpy(z) for z in case.arrays["noise"][raised]]
    called = case.arrays["sigma_eval"]
    start = unit * sigmas[0] * schedule.alpha(float(sigmas[0]))
    return Recipe(of_plan(plan, noise), schedule, "sample", called_at=called, x_T=start)


class Level(NamedTuple):
    """sigma(t), its derivative and its inverse."""

    of: Callable[[float], float]
    slope: Callable[[float], float]
    time: Callable[[float], float]


def _vp_level(sigma_max: float, sigma_min: float) -> Level:
    vp = vp_of(sigma_max, sigma_min)
    return Level(
        lambda t: float(vp.rho(np.float64(t))),
        lambda t: float(vp.rho_slope(np.float64(t))),
        vp.time,
    )


LEVELS: dict[str, Callable[[float, float], Level]] = {
    "linear": lambda high, low: Level(lambda t: t, lambda t: 1.0, lambda sigma: sigma),
    "ve": lambda high, low: Level(math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda sigma: sigma**2),
    "vp": _vp_level,
}
"""The ``schedule`` of the ablation sampler, for sigma_max and sigma_min."""


@dataclass(frozen=True)
class UnitVariance(NoiseSchedule):
    """States of variance alpha^2 + sigma^2 = 1, as a function of t = sigma / alpha."""

    t_max: float = math.inf

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log1p(t**2)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t) + self._log_alpha(t)

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -t / (1 + t**2)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


def _gammas(case: Case, sigmas: Array) -> Array:
    """By how much the sampler raises the noise level before each step."""
    config = case.config
    low, high = float(config.get("S_min", 0)), float(config.get("S_max", math.inf))
    gamma = min(config["S_churn"] / len(sigmas), MAX_CHURN)
    return np.where((sigmas >= low) & (sigmas <= high), gamma, 0.0)


def _steps_in_t(case: Case, sigmas: Array, level: Level, schedule: NoiseSchedule) -> Plan:
    """The ablation sampler's steps; ``schedule`` has the scale s, as a function of sigma."""
    config = case.config
    scaled = isinstance(schedule, UnitVariance)
    heun, share = config["solver"] == "heun", float(config["alpha"])

    def at(sigma: float) -> Node:
        s = schedule.alpha(sigma)
        return Node(sigma, s, s * sigma)

    def slope(t: float) -> tuple[float, float]:
        """What dx/dt has of x and of D."""
        sigma, change = level.of(t), level.slope(t)
        s2 = 1 / (1 + sigma**2) if scaled else 1.0
        shrink = -sigma * change * s2 if scaled else 0.0
        return change / sigma + shrink, -change * math.sqrt(s2) / sigma

    ends = [*sigmas.tolist(), 0.0]
    rows = [Row(at(ends[0]), target=DATA)]
    for i, gamma in enumerate(_gammas(case, sigmas).tolist()):
        base = len(rows) - 1
        if gamma > 0:  # the state at which the level was reached is not evaluated
            here = rows[base].node
            rows[base] = Row(here, rows[base].states, rows[base].outputs)
            up = at(ends[i] * (1 + gamma))
            added = float(config["S_noise"]) * math.sqrt(up.t**2 - here.t**2) * up.alpha
            noise = (Noise(added, up.lam, here.lam),)
            rows.append(Row(up, ((base, up.alpha / here.alpha),), target=DATA, noise=noise))
            base += 1
        start, last = rows[base].node, i == len(sigmas) - 1
        t, t_end = level.time(start.t), 0.0 if last else level.time(ends[i + 1])
        h, (p, q), end = t_end - t, slope(t), Node(0.0, 1.0, 0.0) if last else at(ends[i + 1])
        target = None if last else DATA
        if last or not heun:
            rows.append(Row(end, ((base, 1 + h * p),), ((base, h * q),), target))
            continue
        inner = t + share * h
        reach = share * h
        place = end if share == 1 else at(level.of(inner))
        rows.append(Row(place, ((base, 1 + reach * p),), ((base, reach * q),), DATA))
        (p2, q2), first, second = slope(inner), h * (1 - 1 / (2 * share)), h / (2 * share)
        states = ((base, 1 + first * p), (base + 1, second * p2))
        rows.append(Row(end, states, ((base, first * q), (base + 1, second * q2)), target))
    return Plan(tuple(rows), consistent=False)


def _edm_sampler(case: Case) -> Recipe:
    config, schedule = case.config, schedule_of(case)
    sigmas = polynomial(
        config["sigma_max"], config["sigma_min"], config["num_steps"], config["rho"]
    )
    low, high = float(config["S_min"]), float(config["S_max"])
    plan = make_plan(
        "heun",
        schedule,
        times=to_zero(sigmas),
        s_churn=config["S_churn"],
        s_min=low,
        s_max=high,
        s_noise=config["S_noise"],
    )
    noise = None
    if plan.stochastic:
        # One draw a step, which is used where the noise level is raised.
        inside = (sigmas >= low) & (sigmas <= high)
        noise = [torch.from_numpy(z) for z in case.arrays["noise"][inside]]
    return Recipe(of_plan(plan, noise), schedule, "sample")
