"""What a network predicts, in which sign and unit, and the hook on its data prediction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import PREDICTIONS, DynamicThreshold
from logsnr.solvers.names import in_words

from .noise_schedules import is_flow
from .sigma_models import is_edm


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
