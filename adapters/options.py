"""What a diffusers config asks of a solver: its name, its options, its hook on the data prediction.

diffusers' keys are used where they exist. The one new key is ``solver``: a name of the registry, or
a mapping {"name": ..., option: value} for options that have no diffusers key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import PREDICTIONS, DynamicThreshold
from logsnr.solvers.registry import find_solver

from .noise_schedules import is_flow

# What diffusers' solver_type means for the solvers that have a choice with these names.
SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}
UNIPC_VARIANTS = ("bh1", "bh2")
OTHER_SOLVER_TYPES = ("logrho",)

# diffusers lowers the final order of these in runs of fewer than 15 evaluations only.
LOWERED_IN_SHORT_RUNS = ("dpm-solver", "dpm-solver++", "deis")
SHORT_RUN = 15


def solver_name(config: Mapping[str, Any]) -> str:
    """The registered name that the config's ``solver`` gives; ValueError for another."""
    solver = config["solver"]
    if isinstance(solver, Mapping):
        if "name" not in solver:
            raise ValueError(f"solver={dict(solver)}: the mapping needs a 'name'")
        solver = solver["name"]
    return find_solver(solver).name


def solver_options(config: Mapping[str, Any], n: int, remaining: int, eta: float) -> dict[str, Any]:
    """Options of the config's solver for a run of n evaluations of which some remain.

    Keys of diffusers that the solver has no option for are left out. The order is lowered to the
    number of remaining evaluations. Options in the ``solver`` mapping win over everything.

    Raises ValueError for a value that is not a choice, and for options the solver does not have.
    """
    name = solver_name(config)
    has = find_solver(name).defaults
    options: dict[str, Any] = {}
    order = config["solver_order"]
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"solver_order={order!r}: need a whole number of at least 1")
    if "order" in has:
        options["order"] = order
    if "space" in has and not config["predict_x0"]:
        options["space"] = "noise"
    if "lower_order_final" in has:
        short = n < SHORT_RUN or name not in LOWERED_IN_SHORT_RUNS
        options["lower_order_final"] = bool(config["lower_order_final"]) and short
    options.update(_solver_type(config.get("solver_type"), name, has))
    if "eta" in has and eta > 0:
        options["eta"] = float(eta)
    if isinstance(config["solver"], Mapping):
        own = {key: value for key, value in config["solver"].items() if key != "name"}
        for key, value in own.items():
            if key not in has:
                raise ValueError(
                    f"{key}={value!r} in solver is not an option of {name!r}: it has "
                    f"{', '.join(sorted(has)) or 'none'}"
                )
        options.update(own)
    if isinstance(options.get("order"), int):
        options["order"] = min(options["order"], remaining)
    return options


def _solver_type(value: Any, name: str, has: Mapping[str, Any]) -> dict[str, Any]:
    if value is None:
        return {}
    if value in UNIPC_VARIANTS:
        return {"variant": value} if name == "unipc" else {}
    if value in SOLVER_TYPES:
        return {"solver_type": SOLVER_TYPES[value]} if "solver_type" in has else {}
    if value not in OTHER_SOLVER_TYPES:
        choices = (*SOLVER_TYPES, *UNIPC_VARIANTS, *OTHER_SOLVER_TYPES)
        raise ValueError(f"solver_type={value!r}: choose one of {', '.join(choices)}")
    return {}


def prediction_type(config: Mapping[str, Any]) -> str:
    """What the network predicts; by default velocity for flow models and epsilon otherwise."""
    kind = config.get("prediction_type")
    if kind is None:
        return "flow_prediction" if is_flow(config) else "epsilon"
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type={kind!r}: choose one of {', '.join(PREDICTIONS)}")
    return kind


def threshold(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The hook on the data prediction.

    ``clip_sample`` is a key of diffusers' one-step schedulers, and is kept to them.
    """
    if config["thresholding"]:
        ratio, maximum = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return DynamicThreshold(float(ratio), float(maximum))
    if config["clip_sample"] and solver_name(config) in ("ddim", "ddpm"):
        bound = float(config["clip_sample_range"])
        return partial(torch.clamp, min=-bound, max=bound)
    return None
