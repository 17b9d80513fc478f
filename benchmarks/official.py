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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from logsnr.solvers import (
    SOLVERS,
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
    """

    run: Callable[[Denoiser, Tensor], Tensor]
    schedule: NoiseSchedule
    prediction: str = "epsilon"
    called_at: Array | None = None
    snap: Callable[[float], float] | None = None
    x_T: Array | None = None


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
    """Register the decorated function Case -> Answer for the family ``name``."""

    def register(answer: Callable[[Case], Answer]) -> Callable[[Case], Answer]:
        FAMILIES[name] = answer
        return answer

    return register


def of_plan(plan: Plan, noise: Any = None) -> Callable[[Denoiser, Tensor], Tensor]:
    """``Recipe.run`` of a plan."""
    return lambda denoise, x_T: sample(denoise, x_T, plan, noise=noise)
