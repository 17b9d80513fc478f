"""What a config can get wrong that needs no number of steps: solver, options, order, spacing.

Checked when a scheduler is made, so that a misspelling is heard in the line that has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from logsnr.solvers import SPACINGS, FlowMatching, Grid, VPLinear, plan_on_grid
from logsnr.solvers.counter_noise import check_seed
from logsnr.solvers.names import find_spacing
from logsnr.solvers.registry import implied

from .given_plan import given_plan
from .grid_options import parameters_of
from .location import image_side
from .network_output import prediction_type
from .noise_schedules import is_flow
from .solver_choice import solver_choice
from .spacing_keys import AUTO, spacing_of

OTHER_NAMES = {"order": "solver_order", "spacing": "timestep_spacing"}
"""Keys by which other programs, and `make_plan`, call keys of the config."""
IMPLIED = {"order": "solver_order", "variant": "solver_type", "solver_type": "solver_type"}
"""Options that the name of a solver may imply, as in "unipc-3", and their keys in the config."""

_NFE = 24  # any solver of any order can spend them
_GRID, _FLOW_GRID = Grid(VPLinear(), 1.0, 1e-3), Grid(FlowMatching(), 0.99, 0.01)


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``config`` that are to be stored otherwise than they were typed.

    Raises ValueError for an unknown solver or spacing, for an option that the solver does not
    have, and for a value of an option, the order among them, that it does not take.
    """
    stored: dict[str, Any] = {
        key: value.item()  # numbers of numpy, which JSON does not have
        for key, value in config.items()
        if isinstance(value, np.number)
    }
    config = {**config, **stored}
    given_plan(config)
    solver = solver_choice(config)
    options = solver.options(_NFE, _NFE, 0.0)
    # Statistics are held against the model's own noise schedule, when it is known.
    options = {key: value for key, value in options.items() if key not in ("ems", "treatment")}
    options = {key: _whole(key, value) for key, value in options.items()}
    grid = _FLOW_GRID if is_flow(config) else _GRID
    with solver.in_config_words():
        try:
            _try(solver.name, grid, tuple(sorted(options.items())))
        except TypeError:  # a value that cannot be a key
            plan_on_grid(solver.name, grid, _NFE, **options)
    if (betas := config.get("trained_betas")) is not None:
        stored["trained_betas"] = _numbers("trained_betas", betas)  # a config is saved as JSON
    typed = config.get("timestep_spacing") or AUTO
    spacing = find_spacing(typed, SPACINGS, "timestep_spacing")
    meant = {**config, "timestep_spacing": spacing}
    parameters_of(meant, spacing_of(meant))
    prediction_type(config)
    image_side(config.get("sample_size"))
    check_noise_seed(config.get("noise_seed"))
    if spacing != config.get("timestep_spacing"):
        stored["timestep_spacing"] = spacing
    return stored


def check_noise_seed(value: Any) -> None:
    """ValueError unless ``value`` is None, a seed, or a list of seeds."""
    for seed in value if isinstance(value, list | tuple) and value else [value]:
        if seed is not None or value is not None:
            check_seed(seed, "noise_seed")


def _numbers(key: str, values: Any) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}={values!r}: need a list of numbers") from error


def _whole(key: str, value: Any) -> Any:
    """An option with one number a step as one number, since the steps are not known yet."""
    if not isinstance(value, list | tuple) or key == "interval":
        return value
    if not value:
        raise ValueError(f"{key}={value!r} in solver: need one number a step")
    return max(_numbers(key, value))


@lru_cache(maxsize=64)
def _try(name: str, grid: Grid, options: tuple[tuple[str, Any], ...]) -> None:
    plan_on_grid(name, grid, _NFE, **dict(options))


def without_implied(config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without the keys that the solver of ``said`` decides by its name.

    Raises ValueError if ``said`` has such a key too, with another value.
    """
    solver = said.get("solver")
    name = solver.get("name") if isinstance(solver, Mapping) else solver
    if not isinstance(name, str):
        return dict(config)
    keys = check_implied(said, said)
    return {key: value for key, value in config.items() if key not in keys}


def check_implied(config: Mapping[str, Any], said: Collection[str]) -> set[str]:
    """The keys that the solver's name decides; ValueError if one was ``said`` to be another."""
    solver = config.get("solver")
    name = solver.get("name") if isinstance(solver, Mapping) else solver
    if not isinstance(name, str):
        return set()
    decided = {
        IMPLIED[option]: (option, value)
        for option, value in implied(name)[1].items()
        if option in IMPLIED
    }
    for key, (option, value) in decided.items():
        if key in said and config[key] != value:
            raise ValueError(
                f"{key}={config[key]!r}: solver={name!r} means {option}={value!r}; name the solver "
                "without it"
            )
    return set(decided)
