"""What the registry-wide tests run over: schedules with their ends, grids, and every solver option.

A new solver, spacing or value of a shared option is picked up here by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from logsnr.benchmarks.problems.analytic import Gaussian, Mixture
from logsnr.solvers import (
    SOLVERS,
    SPACINGS,
    DiscreteVP,
    FlowMatching,
    Grid,
    NoiseSchedule,
    Plan,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
)
from logsnr.solvers.spacings import WHOLE_STEPS

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def zero_terminal(steps: int = 100) -> DiscreteVP:
    """A discrete schedule whose last alpha is 0 (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - torch.linspace(1e-3, 0.1, steps, dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return DiscreteVP(root**2)


SCHEDULES: dict[str, NoiseSchedule] = {
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": DiscreteVP.from_betas(BETAS),
    "vp_zero_terminal": zero_terminal(),
    "edm": VarianceExploding(),
    "flow": FlowMatching(),
}


@dataclass(frozen=True)
class Range:
    """A schedule and the ends of sampling on it."""

    schedule: NoiseSchedule
    t_start: float
    t_end: float

    @property
    def ends(self) -> dict[str, float]:
        return {"t_start": self.t_start, "t_end": self.t_end}

    @property
    def from_pure_noise(self) -> bool:
        """alpha = 0 at the start."""
        return self.schedule.alpha(self.t_start) == 0

    @property
    def to_data(self) -> bool:
        """sigma = 0 at the end."""
        return self.schedule.sigma(self.t_end) == 0


def _range(name: str, t_start: float, t_end: float) -> Range:
    return Range(SCHEDULES[name], t_start, t_end)


RANGES = {
    "vp_linear": _range("vp_linear", 1.0, 1e-3),
    "vp_linear_to_data": _range("vp_linear", 1.0, 0.0),
    "vp_cosine": _range("vp_cosine", 0.9946, 1e-3),
    "vp_cosine_singular": _range("vp_cosine", 1.0, 0.0),
    "vp_discrete": _range("vp_discrete", 1.0, 1e-3),
    "vp_discrete_to_data": _range("vp_discrete", 1.0, 0.0),
    "vp_zero_terminal": _range("vp_zero_terminal", 1.0, 0.01),
    "vp_zero_terminal_to_data": _range("vp_zero_terminal", 1.0, 0.0),
    "edm": _range("edm", 80.0, 0.002),
    "edm_to_data": _range("edm", 80.0, 0.0),
    "flow": _range("flow", 0.99, 0.01),
    "flow_singular": _range("flow", 1.0, 0.0),
}


@cache
def spacings(name: str) -> tuple[str, ...]:
    """The spacings that the range called ``name`` admits.

    Some need a finite lambda at both ends, some put nodes on whole training steps below t_end.
    """
    return tuple(spacing for spacing in SPACINGS if _admits(RANGES[name], spacing))


def _admits(range_: Range, spacing: str) -> bool:
    try:
        Grid(range_.schedule, **range_.ends, spacing=spacing).nodes(4)
    except ValueError as error:
        if "needs a finite" in str(error):
            assert range_.from_pure_noise or range_.to_data
        else:
            assert spacing in WHOLE_STEPS and "not above t_end" in str(error)
        return False
    return True


# Values to try for the options that solvers share; one that a solver refuses, by the option's
# name, is left out. Options that are not listed keep their default.
SHARED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "order": (1, 2, 3, 4),
    "steps": ("multistep", "singlestep", "singlestep_fixed"),
    "space": ("data", "noise"),
    "variant": ("bh1", "bh2", "vary_coeff", "tab", "rhoab", "rhork", "fixed", "variable"),
    "solver_type": ("dpmsolver", "taylor", "midpoint", "heun", "phi_1", "phi_2"),
    "weights": ("published", "taylor"),
    "corrector": (False, True),
    "lower_order_final": (False, True),
    "eta": (0.0, 0.5, 1.0),
    "variance": ("small", "large"),
}
INCONSISTENT = {"ddpm": {"variance": "large"}, "euler-maruyama": {}}
"""Solvers whose plans do not obey the identities, with the options for which that is so."""

Options = dict[str, Any]
NFE = 12
"""A number of evaluations that fits blocks of 1, 2, 3 and 4."""


@cache
def _all_options(name: str) -> tuple[Options, ...]:
    defaults = SOLVERS[name].defaults
    shared = {key: SHARED_OPTIONS[key] for key in defaults if key in SHARED_OPTIONS}
    combinations = (dict(zip(shared, values, strict=True)) for values in product(*shared.values()))
    return tuple(options for options in combinations if _accepts(name, options))


def _accepts(name: str, options: Options) -> bool:
    try:
        make_plan(name, SCHEDULES["vp_linear"], nfe=NFE, **options)
    except ValueError as error:
        refused = [key for key, value in options.items() if f"{key}={value!r}" in str(error)]
        assert refused, f"{name} refuses {options} without naming one of them: {error}"
        return False
    return True


def every_option(name: str) -> tuple[Options, ...]:
    """Every combination of the shared options that the solver accepts."""
    return _all_options(name)


@cache
def main_options(name: str) -> list[Options]:
    """The defaults and every single departure from them: what the slower tests run over."""
    defaults = SOLVERS[name].defaults
    return [
        options
        for options in _all_options(name)
        if sum(options[key] != defaults[key] for key in options) <= 1
    ]


def solver_cases(*, every: bool = False, consistent: bool = False) -> list[Any]:
    """(solver, options) as pytest parameters; all, or those that keep the identities."""
    return [
        pytest.param(name, options, id=label(name, options))
        for name in SOLVERS
        for options in (every_option(name) if every else main_options(name))
        if not consistent or is_consistent(name, options)
    ]


def label(name: str, options: Options) -> str:
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


@cache
def _example(name: str, options: tuple[tuple[str, Any], ...]) -> Plan:
    return make_plan(name, SCHEDULES["vp_linear"], nfe=NFE, **dict(options))


def is_stochastic(name: str, options: Options) -> bool:
    return _example(name, tuple(options.items())).stochastic


def is_consistent(name: str, options: Options) -> bool:
    """Whether the plans promise the identities; all do but those that are listed."""
    broken = INCONSISTENT.get(name)
    return broken is None or any(options.get(key) != value for key, value in broken.items())


def deterministic_cases(*, consistent: bool = True) -> list[Any]:
    """`solver_cases` without noise."""
    cases = solver_cases(consistent=consistent)
    return [case for case in cases if not is_stochastic(*case.values)]


@cache
def without_noise(name: str) -> Options | None:
    """The first options with which the solver adds no noise; None if it always does."""
    quiet = (options for options in main_options(name) if not is_stochastic(name, options))
    return {} if not is_stochastic(name, {}) else next(quiet, None)


def grids(range_name: str, nfe: int) -> list[Options]:
    """Arguments of make_plan for every spacing of a range."""
    range_ = RANGES[range_name]
    fixed = {"schedule": range_.schedule, "nfe": nfe, **range_.ends}
    return [{**fixed, "spacing": spacing} for spacing in spacings(range_name)]


def plan_for(name: str, arguments: Options, options: Options) -> Plan:
    arguments = dict(arguments)
    return make_plan(name, arguments.pop("schedule"), **arguments, **options)


# Problems


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(
    tensor(0.3, 0.5, 0.2),
    tensor([1.0, -0.5, 0.3, 0.0], [-0.8, 0.4, 0.2, 1.1], [0.1, 0.9, -1.2, -0.4]),
    tensor(0.4, 0.3, 0.5),
)
GAUSSIAN = Gaussian(tensor(0.5, -0.3, 0.2, 0.9), tensor(0.6, 0.9, 0.3, 0.5))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Seeded standard normals."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def start_states(schedule: NoiseSchedule, t: float, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """States (batch, 4) of `MIXTURE` at time t."""
    x0 = MIXTURE.draw(batch, torch.Generator().manual_seed(seed))
    return schedule.alpha(t) * x0 + schedule.sigma(t) * normal(batch, 4, seed=seed + 1)
