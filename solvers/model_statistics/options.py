"""The options of an estimation of model statistics, as values that check themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import check_choice, check_kind, check_whole
from ..plan import Plan
from ..prediction import check_prediction
from ..progress import Show

GRANULARITIES = ("coordinate", "channel", "scalar")
WAYS = ("auto", "jvp", "difference")


@dataclass(frozen=True)
class Estimation:
    """What every estimation is told, whoever calls the network.

    Parameters
    ----------
    t_start, t_end : the range to sample on later; the schedule's own by default.
    nodes : number of intervals in lambda; ``ems.lam`` has nodes + 1 entries.
    samples : number of samples, at most.
    seed : of samples, noise and signs. The result depends on the seed, not on the batch size.
    group : samples behind one of the estimates whose scatter gives the standard errors; by
        default that of the checkpoint, else the largest power of two up to 32 that leaves eight
        groups.
    granularity : "coordinate", "channel" (the first event axis) or "scalar": which coordinates
        share one value. Pooled moments take less disk and give smaller errors.
    lam_step : step of the differences along the ODE, in lambda.
    stop : end when the standard errors of l, of s, and of b in units of the root mean square of
        df/dlambda are all below this number (median over the coordinates of a node and over the
        nodes); checked after every group from the eighth on.
    checkpoint : a folder that keeps the work: after a kill, the same call goes on from the last
        batch at the last node and gives the result of an undisturbed run. A finished estimation
        is extended by a larger ``samples``. Without it a temporary folder is used. Either holds
        208 bytes for each node and coordinate.
    plan : how the model's own samples are drawn; by default UniPC with 32 evaluations.
    check : end with a comparison with the degenerate statistics, on 16 starts at 5 to 20
        evaluations: ``ems.verdict``, by which a plan decides whether it uses the statistics.
    progress : show a progress bar; or what to call with the number of probes done and of all.

    Raises ValueError naming the option that is out of range.
    """

    t_start: float | None = None
    t_end: float | None = None
    nodes: int = 240
    samples: int = 1024
    _: KW_ONLY
    seed: int = 0
    group: int | None = None
    granularity: str = "coordinate"
    lam_step: float | None = None
    stop: float | None = None
    checkpoint: str | Path | None = None
    plan: Plan | None = None
    check: bool = True
    progress: Show = False

    def __post_init__(self) -> None:
        check_choice("granularity", self.granularity, GRANULARITIES)
        for name, least in (("nodes", 4), ("samples", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least)
        if self.group is not None:
            check_whole("group", self.group, 4)
        for name in ("t_start", "t_end", "stop", "lam_step"):
            number = getattr(self, name)
            if number is not None:
                check_kind(name, number, 0.0)
                if name in ("stop", "lam_step") and not 0 < number < math.inf:
                    raise ValueError(f"{name}={number!r}: need a positive number, or None")
        if not isinstance(self.checkpoint, str | Path | None):
            raise ValueError(f"checkpoint={self.checkpoint!r}: need the path of a folder, or None")
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise ValueError(f"plan={self.plan!r}: need a Plan, as make_plan returns it")
        if self.plan is not None and self.plan.stochastic:
            raise ValueError(f"plan={self.plan!r} adds noise: need a deterministic one")
        check_kind("check", self.check, True)


@dataclass(frozen=True)
class StatesEstimation(Estimation):
    """An estimation that is told which states the network is given.

    Parameters
    ----------
    batch_size : states in one network call; by default as many as memory holds: half of what is
        free on an accelerator, else 128 MB, or a quarter of what is free if that is less.
    shape : event shape of a sample; needed for data=None, else checked.
    dtype, device : of the states; by default those of the network's parameters, or of the data.
    """

    _: KW_ONLY
    batch_size: int | None = None
    shape: Sequence[int] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1)
        sizes = self.shape if isinstance(self.shape, Sequence) else ()
        if self.shape is not None and not (
            sizes and all(isinstance(n, int) and n >= 1 for n in sizes)
        ):
            raise ValueError(
                f"shape={self.shape!r}: need the event shape of a sample, such as (3, 32, 32)"
            )
        floating = isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        if self.dtype is not None and not floating:
            raise ValueError(f"dtype={self.dtype!r}: need a floating-point dtype")


@dataclass(frozen=True)
class NetworkEstimation(StatesEstimation):
    """The options of ``estimate_ems``, which has the network itself.

    Parameters
    ----------
    jacobian : how the products with the Jacobian are had: "jvp" (forward mode), "difference"
        (central differences of outputs, for pipelines and exported networks), or "auto": "jvp" if
        it works and agrees with "difference".
    derivative : the same for the derivative along the ODE. "auto" takes differences for networks
        of discrete time, see `derivatives`.
    """

    _: KW_ONLY
    jacobian: str = "auto"
    derivative: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("jacobian", self.jacobian, WAYS)
        check_choice("derivative", self.derivative, WAYS)


@dataclass(frozen=True)
class OutputsEstimation(StatesEstimation):
    """The options of ``estimation``, which is sent outputs of a network.

    Parameters
    ----------
    prediction : the type of the outputs.
    about : JSON values that name the network and its guidance.
    """

    _: KW_ONLY
    batch_size: int | None = 32
    prediction: str = "epsilon"
    about: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prediction(self.prediction)
