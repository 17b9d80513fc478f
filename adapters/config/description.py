"""What a config says of the model and of the method, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logsnr.solvers import EMS, DiscreteVP, NoiseSchedule
from logsnr.solvers.registry import find_solver

from .default_solver import with_default_solver
from .ems_file import ems_of
from .noise_schedules import discrete_schedule, noise_schedule
from .sigma_models import is_continuous, is_edm
from .solver_options import data_scale, output_sign, prediction_type, solver_name, threshold
from .store import Config, Edition


@dataclass(frozen=True)
class Description:
    """What the steps of a run need to know, from one ``edition`` of a config.

    Attributes
    ----------
    method : the config with a solver and an order named (see `with_default_solver`).
    solver : the name of the solver.
    steps : the training steps of a model that has a table of them.
    prediction : what the network predicts, once its output is multiplied by ``sign``.
    unit : the unit of the data in which states are variance-preserving.
    threshold : the hook on the data prediction.
    edm : whether the network is EDM-preconditioned.
    ems : the statistics, if the solver takes any.
    """

    edition: Edition
    method: Mapping[str, Any]
    schedule: NoiseSchedule
    steps: DiscreteVP | None
    solver: str
    prediction: str
    sign: float
    unit: float
    threshold: Callable[[Tensor], Tensor] | None
    edm: bool
    ems: EMS | None

    def __deepcopy__(self, memo: Any) -> Description:
        # Nothing in it changes, and plans are kept by the identity of its schedule.
        return self


def described(config: Config, n: int | None = None) -> Description:
    """The description of ``config`` as it is now, for a run of n evaluations.

    Raises ValueError naming a key with a bad value.
    """
    method = with_default_solver(config, n)
    schedule, solver = noise_schedule(config), solver_name(method)
    steps = discrete_schedule(config) if is_continuous(config) else schedule
    return Description(
        edition=config.edition,
        method=method,
        schedule=schedule,
        steps=steps if isinstance(steps, DiscreteVP) else None,
        solver=solver,
        prediction=prediction_type(config),
        sign=output_sign(config),
        unit=data_scale(config),
        threshold=threshold(config),
        edm=is_edm(config),
        ems=ems_of(config) if "ems" in find_solver(solver).defaults else None,
    )
