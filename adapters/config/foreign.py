"""What of another scheduler's config is taken over: all it says of the model, no habit of sampling.

A grid or an order that a scheduler of diffusers was configured with belongs to that scheduler. It
binds us when the user says it, as a keyword of ``from_config``, or when the config is our own.
What is not taken over is kept in ``replaced``, for ``to_stock``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from .default_solver import with_default_solver
from .known_keys import model_said
from .noise_schedules import is_flow
from .noisy_classes import ENDS_AT_TRAINING, noisy_solver
from .spacing_keys import GRID_KEYS, spacing_of
from .typed_solver import solver_name

SAMPLING_KEYS = (
    *GRID_KEYS,
    "steps_offset",
    "lambda_min_clipped",
    "final_sigmas_type",
    "set_alpha_to_one",
    "algorithm_type",
    "stochastic_sampling",
    "predictor_order",
    "corrector_order",
    "tau_func",
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
        say(
            f"the grid, the order and the last steps are PlanScheduler's own. Of the config of "
            f"{origin or 'the other scheduler'}, it does not follow "
            f"{', '.join(f'{key}={value!r}' for key, value in sorted(meant.items()))}; give such "
            "a key to from_config to have it followed, or keep_sampling=True for all of them"
        )
    kept = {key: value for key, value in config.items() if key not in habits}
    replaced = {key: value for key, value in replaced.items() if not callable(value)}  # as in JSON
    return {**model_said(kept), **({"replaced": replaced} if replaced else {})}


def with_habits(
    config: Mapping[str, Any], given: Mapping[str, Any], origin: str | None
) -> dict[str, Any]:
    """Another scheduler's config with everything it says and has by default.

    Flow schedulers of diffusers have one rule of their own, "linspace", whatever the config says.
    A class that adds noise decides for a solver, where none is ``given``, and a function has been
    heard then: a config, which is saved as JSON, holds none.
    """
    habits = {key: config[key] for key in SAMPLING_KEYS if key in config}
    if origin in ENDS_AT_TRAINING:
        habits["final_sigmas_type"] = "sigma_min"
    if given.get("solver") is None and (solver := noisy_solver(origin, config)) is not None:
        habits["solver"] = solver
    if is_flow(config) or "timestep_spacing" not in habits and "sigma_schedule" not in habits:
        habits["timestep_spacing"] = "linspace"
    kept = {key: value for key, value in {**config, **habits}.items() if not callable(value)}
    return model_said(kept, habits)


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
            say(f"{key}={given[key]!r} has no effect here: it belongs to {owner}")


@cache
def say(message: str) -> None:
    """Write a line into the log, once a process, for which the cache is."""
    logger.warning(message)
