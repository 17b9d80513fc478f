"""What of another scheduler's config is taken over: all it says of the model, no habit of sampling.

A grid or an order that a scheduler of diffusers was configured with belongs to that scheduler. It
binds us when the user says it, as a keyword of ``from_config``, or when the config is our own.
What is not taken over is kept in ``replaced``, for ``to_stock``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from .default_solver import with_default_solver
from .known_keys import MODEL_KEYS
from .noise_schedules import is_flow
from .spacing_keys import GRID_KEYS, spacing_of
from .typed_solver import solver_name

SAMPLING_KEYS = (
    *GRID_KEYS,
    "steps_offset",
    "lambda_min_clipped",
    "final_sigmas_type",
    "set_alpha_to_one",
    "algorithm_type",
    "solver_order",
    "solver_type",
    "predict_x0",
    "lower_order_final",
    "euler_at_final",
    "disable_corrector",
)

logger = logging.getLogger("logsnr.adapters")


def is_own(config: Mapping[str, Any], name: str) -> bool:
    """Whether a config is that of a scheduler class called ``name``, ours."""
    return "solver" in config or config.get("_class_name") == name


def of_the_model(
    config: Mapping[str, Any], given: Mapping[str, Any], origin: str | None
) -> dict[str, Any]:
    """Another scheduler's config without its habits, which are under ``replaced``.

    The habits that a user may have meant are named in the log, once.
    """
    unsaid = config.get("_use_default_values", ())
    habits = {key: config[key] for key in SAMPLING_KEYS if key in config}
    replaced = {key: value for key, value in habits.items() if key not in unsaid}
    meant = {key: value for key, value in replaced.items() if value and key not in given}
    if meant:
        _say(
            f"the grid, the order and the last steps are PlanScheduler's own. Of the config of "
            f"{origin or 'the other scheduler'}, it does not follow "
            f"{', '.join(f'{key}={value!r}' for key, value in sorted(meant.items()))}; give such "
            "a key to from_config to have it followed, or keep_sampling=True for all of them"
        )
    kept = {key: value for key, value in config.items() if key not in habits}
    return {**in_force(kept), **({"replaced": replaced} if replaced else {})}


def with_habits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Another scheduler's config with everything it says and has by default.

    Flow schedulers of diffusers have one rule of their own, "linspace", whatever the config says.
    """
    habits = {key: config[key] for key in SAMPLING_KEYS if key in config}
    if is_flow(config) or "timestep_spacing" not in habits and "sigma_schedule" not in habits:
        habits["timestep_spacing"] = "linspace"
    return in_force({**config, **habits}, habits)


def in_force(config: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
    """The config with the keys of the model, and ``also``, as said, where they are defaults too.

    diffusers does not hand defaults over to another scheduler. For options of sampling that is a
    convention; for the noise schedule it would make another model of it.
    """
    if "_use_default_values" not in config:
        return dict(config)
    unsaid = set(config["_use_default_values"]) & set(config) - {*MODEL_KEYS, *also}
    return {**config, "_use_default_values": sorted(unsaid)}


def model_in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our own config, marked likewise: other classes may have other defaults of such keys."""
    if "_use_default_values" not in config:
        return dict(config)
    defaults = config["_use_default_values"]
    kept = sorted(key for key in defaults if key not in MODEL_KEYS or config.get(key) is None)
    return {**config, "_use_default_values": kept}


NO_FLOW = "models that are no flow"


def say_without_effect(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Name in the log what a user gave that the scheduler of ``config`` has no use for."""
    solver, flow = solver_name(with_default_solver(config)), is_flow(config)
    reasons = {
        "steps_offset": None if spacing_of(config) == "leading" else "timestep_spacing='leading'",
        "set_alpha_to_one": None if solver == "ddim" else "solver='ddim'",
        **dict.fromkeys(
            ("sigma_min", "sigma_max", "beta_start", "beta_end"), NO_FLOW if flow else None
        ),
    }
    for key, owner in reasons.items():
        if owner is not None and given.get(key):
            _say(f"{key}={given[key]!r} has no effect here: it belongs to {owner}")


@cache
def _say(message: str) -> None:
    # The cache makes it once a process.
    logger.warning(message)
