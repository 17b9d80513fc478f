r"""How the runs of other people's solvers are written in our terms.

A family is one published implementation. Its function reads the configuration of a recorded run
(`Case`) and returns one of three things:

* `Recipe`, our counterpart of the run;
* `Difference`, if we do not reproduce it on purpose, with the reason;
* `Unsupported`, if we have nothing of the kind (yet), with the reason.

Nothing here looks at the id or the name of a case, only at its configuration. To add a family,
write its function and decorate it with ``@family("name")``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logsnr.solvers import (
    Denoiser,
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    Plan,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
    sample,
    sample_adaptive,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One recorded run of an official implementation.

    ``schedule`` is a name (vp_linear, vp_discrete, vp_cosine, edm, flow), ``config`` every option
    that was passed, ``arrays`` what was recorded ("final", "t_eval", ..., see the folder's own
    README), ``tables`` the named arrays of the folder that belong to no case
    (``vp_discrete/betas``, ``exact/...``) and ``x_T`` (B, D) the start states.
    """

    family: str
    id: str
    name: str
    function: str
    schedule: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Array]
    tables: Mapping[str, Array]
    x_T: Array
    nfe: int


@dataclass(frozen=True)
class Recipe:
    """Our counterpart of a case.

    Parameters
    ----------
    run : (denoise, x_T) -> sample, usually `of_plan`.
    schedule : the schedule on which the network is defined.
    prediction : what the official solver received from the network.
    called_at : the schedule's times of the official network calls, in order; None means
        ``case.arrays["t_eval"]``, where it is recorded.
    snap : the schedule's time t of a node -> the time at which the official code asks the network
        there, for codes that round it. The network of the comparison answers for that time.
    x_T : start states in our convention, where the official one is scaled.
    call_tolerance : relative tolerance on the times of the calls; wider only for adaptive steps,
        whose controller divides by a difference of two solutions and so magnifies rounding.
    calls : how many network calls there are, where one evaluates several states (each call counts
        with its first time). Default: ``case.nfe``.
    calls_vary : a reason why other calls are a difference, if the result agrees.
    """

    run: Callable[[Denoiser, Tensor], Tensor]
    schedule: NoiseSchedule
    prediction: str = "epsilon"
    called_at: Array | None = None
    snap: Callable[[float], float] | None = None
    x_T: Array | None = None
    call_tolerance: float = 1e-9
    calls: int | None = None
    calls_vary: str = ""


@dataclass(frozen=True)
class Difference:
    """We differ from the official run on purpose."""

    reason: str


@dataclass(frozen=True)
class Unsupported:
    """We have no counterpart."""

    reason: str


Answer = Recipe | Difference | Unsupported
FAMILIES: dict[str, Callable[[Case], Answer]] = {}


def family(name: str) -> Callable[[Callable[[Case], Answer]], Callable[[Case], Answer]]:
    """Register the decorated function Case -> Answer for the family ``name``.

    Raises ValueError for a family that has one.
    """

    def register(answer: Callable[[Case], Answer]) -> Callable[[Case], Answer]:
        if name in FAMILIES:
            raise ValueError(f"family({name!r}): the family has a function already")
        FAMILIES[name] = answer
        return answer

    return register


def of_plan(plan: Plan, noise: Any = None) -> Callable[[Denoiser, Tensor], Tensor]:
    """``Recipe.run`` of a plan."""
    return lambda denoise, x_T: sample(denoise, x_T, plan, noise=noise)


def next_timesteps(timesteps: Array, count: int) -> Array:
    """Where DDIM of diffusers, and what derives from it, steps to from n of ``count`` timesteps.

    That is t - N // n, whatever the list says; below 0 is the data.
    """
    return timesteps - count // len(timesteps)


def leaves_list(timesteps: Array, count: int) -> bool:
    """Whether `next_timesteps` are others than the list's own."""
    return not np.array_equal(next_timesteps(timesteps, count)[:-1], timesteps[1:])


def schedule_of(case: Case) -> NoiseSchedule:
    """The schedule a case names, as the folder's README defines it; ValueError for another."""
    if case.schedule == "vp_discrete":
        return DiscreteVP.from_betas(torch.as_tensor(case.tables["vp_discrete/betas"]))
    schedules: dict[str, NoiseSchedule] = {
        "vp_linear": VPLinear(beta_min=0.1, beta_max=20.0),
        "vp_cosine": VPCosine(s=0.008),
        "edm": VarianceExploding(0.002, 80.0),
        "flow": FlowMatching(),
    }
    if case.schedule not in schedules:
        raise ValueError(
            f"schedule={case.schedule!r}: choose one of vp_discrete, {', '.join(schedules)}"
        )
    return schedules[case.schedule]


SPACINGS = {
    "logSNR": "logsnr",
    "time_uniform": "time",
    "time_quadratic": "quadratic",
    "edm": "karras",
}


def _plan(case: Case, solver: str, **options: Any) -> Recipe:
    """A solver of ours on the grid that the codes of the DPM-Solver lineage take."""
    config, schedule = case.config, schedule_of(case)
    plan = make_plan(
        solver,
        schedule,
        nfe=config["steps"],
        spacing=SPACINGS[config["skip_type"]],
        t_start=config["t_start"],
        t_end=config["t_end"],
        denoise_to_zero=config.get("denoise_to_zero", False),
        **options,
    )
    return Recipe(of_plan(plan), schedule)


def _dpm_solver(case: Case, lower_order_final: bool) -> Answer:
    config = case.config
    if config["method"] == "adaptive":
        return _adaptive(case)
    return _plan(
        case,
        {"dpmsolver": "dpm-solver", "dpmsolver++": "dpm-solver++"}[config["algorithm_type"]],
        order=config["order"],
        steps=config["method"],
        solver_type=config["solver_type"],
        lower_order_final=lower_order_final,
    )


def _adaptive(case: Case) -> Recipe:
    config, schedule = case.config, schedule_of(case)
    names = ("order", "solver_type", "t_start", "t_end", "atol", "rtol", "h_init", "theta", "t_err")
    options = {name: config[name] for name in names if name in config}
    space = {"dpmsolver": "noise", "dpmsolver++": "data"}[config["algorithm_type"]]

    def run(denoise: Denoiser, x_T: Tensor) -> Tensor:
        return sample_adaptive(denoise, x_T, schedule, space=space, **options)[0]

    return Recipe(run, schedule, call_tolerance=1e-5)


@family("dpm_solver")
def dpm_solver(case: Case) -> Answer:
    """LuChengTHU/dpm-solver, which lowers the final order only below ten steps."""
    config = case.config
    return _dpm_solver(case, config.get("lower_order_final", True) and config["steps"] < 10)


@family("unipc")
def unipc(case: Case) -> Answer:
    """wl-zhao/UniPC."""
    config = case.config
    return _plan(
        case,
        "unipc",
        order=config["order"],
        variant=config["variant"],
        space="data" if config["predict_x0"] else "noise",
        lower_order_final=config["lower_order_final"],
        weights="published",
    )


@family("edm_thuml")
def edm_thuml(case: Case) -> Answer:
    """The EDM code base of thu-ml/DPM-Solver-v3: its copies of DPM-Solver and UniPC, and Heun."""
    if case.function.startswith("DPM_Solver"):
        return _dpm_solver(case, case.config.get("lower_order_final", True))
    if case.function.startswith("UniPC"):
        return unipc(case)
    # Heun: an odd number of steps ends with an Euler step to sigma = 0, the data prediction.
    odd = case.config["steps"] % 2
    config = {**case.config, "steps": case.config["steps"] - odd, "denoise_to_zero": bool(odd)}
    return _plan(replace(case, config=config), "heun")
