"""What a diffusers config asks of a solver: its name, its options, its hook on the data prediction.

diffusers' keys are used where they exist. The one new key is ``solver``: a name of the registry, or
a mapping {"name": ..., option: value} for options that have no diffusers key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import PREDICTIONS, DynamicThreshold
from logsnr.solvers.names import in_words
from logsnr.solvers.registry import chosen_solver, find_solver

from .ems_file import ems_of
from .noise_schedules import is_flow
from .sigma_models import is_edm

# What diffusers' solver_type means for the solvers that have a choice with these names.
SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}
UNIPC_VARIANTS = ("bh1", "bh2")
OTHER_SOLVER_TYPES = ("logrho",)

# diffusers lowers the final order of these in runs of fewer than 15 evaluations only.
LOWERED_IN_SHORT_RUNS = ("dpm-solver", "dpm-solver++", "deis")
SHORT_RUN = 15


def solver_name(config: Mapping[str, Any]) -> str:
    """The registered name that the config's ``solver`` means; ValueError for another."""
    return find_solver(_typed(config)[0]).name


def _typed(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The name in ``solver`` as the user wrote it, and the options that stand beside it."""
    solver = config["solver"]
    if not isinstance(solver, Mapping):
        return solver, {}
    if "name" not in solver:
        raise ValueError(f"solver={dict(solver)}: the mapping needs a 'name'")
    return solver["name"], {key: value for key, value in solver.items() if key != "name"}


def in_config_words(config: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Errors about an option of the solver name the key of the config that it came from."""
    typed, own = _typed(config)
    given = chosen_solver(typed, own)[1]
    return in_words({} if "order" in given else {"order": "solver_order"})


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
    if "variable" in has and is_flow(config):
        options["variable"] = "time"  # FlowMatchHeun's method
    if "ems" in has:
        # Networks of training steps want their nodes where they are, not on the statistics' grid.
        options |= {"ems": ems_of(config), "treatment": "spline"}
    options.update(_solver_type(config.get("solver_type"), name, has))
    if "eta" in has and eta != 0:
        options["eta"] = float(eta)
    typed, own = _typed(config)
    if "ems" in own:
        raise ValueError(f"ems={own['ems']!r} in solver: give it beside solver, to be saved")
    options.update(chosen_solver(typed, own)[1])
    if isinstance(options.get("order"), int):
        options["order"] = min(options["order"], remaining)
    return options


def table_changes(
    config: Mapping[str, Any], options: Mapping[str, Any], begin: int
) -> dict[str, Any]:
    """What the config changes in the solver's table, as keywords of `plan_for`.

    ``disable_corrector`` counts steps of the whole run, of which ``begin`` are over. As in
    diffusers, ``euler_at_final`` is for the multistep DPM-Solvers.
    """
    disabled = config.get("disable_corrector") or ()
    if not isinstance(disabled, list | tuple) or not all(
        isinstance(step, int) and step >= 0 for step in disabled
    ):
        raise ValueError(f"disable_corrector={disabled!r}: need a list of steps, counted from 0")
    changes: dict[str, Any] = {}
    steps = tuple(sorted(step - begin for step in disabled if step >= begin))
    if steps:
        changes["uncorrected"] = steps
    name = solver_name(config)
    if config.get("euler_at_final") and name in ("dpm-solver", "dpm-solver++"):
        default = find_solver(name).defaults["steps"]
        changes["euler_at_final"] = options.get("steps", default) == "multistep"
    return changes


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
    """What the network predicts; by default velocity for flow models and epsilon otherwise.

    An EDM-preconditioned network predicts v of the normalised data, up to `output_sign`.
    """
    kind = config.get("prediction_type")
    if is_edm(config):
        if kind not in (None, "epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type={kind!r}: a model with sigma_data has 'epsilon' or 'v_prediction'"
            )
        return "v_prediction"
    if kind is None:
        return "flow_prediction" if is_flow(config) else "epsilon"
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type={kind!r}: choose one of {', '.join(PREDICTIONS)}")
    return kind


def output_sign(config: Mapping[str, Any]) -> float:
    """What the network's output is multiplied by to be a `prediction_type`: 1, or -1.

    -1 for EDM networks of the published form (``prediction_type="epsilon"``), and for flow models
    with ``invert_sigmas``, which predict x0 - eps.
    """
    if is_edm(config):
        return 1.0 if config.get("prediction_type") == "v_prediction" else -1.0
    return -1.0 if is_flow(config) and config.get("invert_sigmas") else 1.0


def data_scale(config: Mapping[str, Any]) -> float:
    """The unit of the data in which the states are variance-preserving: sigma_data, else 1."""
    return float(config["sigma_data"]) if is_edm(config) else 1.0


def _saturated(bound: float, x0: Tensor) -> Tensor:
    # In diffusers the upper bound of the quantile wins over the lower, which is 1.
    return x0.clamp(-bound, bound) / bound


def _in_units(bound: Callable[[Tensor], Tensor], unit: float, x0: Tensor) -> Tensor:
    return bound(x0 * unit) / unit


def threshold(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The hook on the data prediction, in units of `data_scale`, with every solver."""
    unit = data_scale(config)
    if config["thresholding"]:
        ratio, maximum = config["dynamic_thresholding_ratio"], float(config["sample_max_value"])
        small = 0 < maximum < 1
        with in_words({"ratio": "dynamic_thresholding_ratio", "maximum": "sample_max_value"}):
            # A quantile of 0 is the smallest value, and so is one next to it.
            usual = DynamicThreshold(float(ratio) or sys.float_info.min, 1.0 if small else maximum)
        dynamic = partial(_saturated, maximum) if small else usual
        return dynamic if unit == 1 else partial(_in_units, dynamic, unit)
    if config["clip_sample"]:
        bound = float(config["clip_sample_range"]) / unit
        if not bound > 0:
            raise ValueError(f"clip_sample_range={bound * unit!r}: need a positive number")
        return partial(torch.clamp, min=-bound, max=bound)
    return None
