"""Which keys a scheduler's config may have, and which of them are written down."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from logsnr.solvers.names import nearest
from logsnr.solvers.registry import find_solver
from logsnr.solvers.spacings import WHOLE_STEPS

from .spacing_keys import FLAGS, one_grid
from .store import same

MODEL_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "prediction_type",
    "shift",
    "invert_sigmas",
    "sigma_data",
    "sigma_min",
    "sigma_max",
    "timestep_type",
)
OUR_OWN = (
    "solver",
    "ems",
    "plan",
    "plan_fallback",
    "exact_sigmas",
    "location",
    "scale",
    "sample_size",
    "noise_seed",
    "stock_class",
    "replaced",
)


def defaults(scheduler: type) -> Mapping[str, Any]:
    """The config keys of a scheduler class with their defaults."""
    return _defaults(scheduler)


@cache
def _defaults(scheduler: type) -> Mapping[str, Any]:
    parameters = inspect.signature(scheduler).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


def check_known(
    given: Mapping[str, Any],
    own: frozenset[str],
    others: Iterable[type],
    config: Mapping[str, Any],
) -> None:
    """Raise ValueError for a ``given`` keyword that no scheduler and no ``config`` has."""
    known = own.union(config, *map(defaults, others))
    for key, value in given.items():
        if key not in known and not key.startswith("_"):
            raise ValueError(
                f"{key}={value!r} is not a key of PlanScheduler or of a diffusers scheduler; its "
                f"own keys are {', '.join(sorted(own))}{_advice(key, value, given, known)}"
            )


def _advice(key: str, value: Any, given: Mapping[str, Any], known: Iterable[str]) -> str:
    solver = given.get("solver")
    if isinstance(solver, str) and key in find_solver(solver).defaults:
        return f"; an option of the solver is given as solver={ {'name': solver, key: value} }"
    near = nearest(key, known)
    return "" if near is None else f"; did you mean {near!r}?"


def unsaid(config: Mapping[str, Any], own: Mapping[str, Any]) -> set[str]:
    """Keys of ``own`` (key: default) that nobody set: None, or a default that was never given.

    SD pipelines rewrite a config behind our back, so a key counts only while it has its default.
    """
    given = set(own) - set(config.get("_use_default_values", ()))
    return {
        key
        for key, default in own.items()
        if key in config
        and same(config[key], default)
        and (default is None or (key not in given and key not in (*MODEL_KEYS, *OUR_OWN)))
    }


def model_said(config: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
    """The config with the keys of the model, and ``also``, as said, where they are defaults too.

    diffusers does not hand defaults over to another scheduler, whose own may be others. For options
    of sampling that is a convention; for the noise schedule it would make another model of it.
    """
    if "_use_default_values" not in config:
        return dict(config)
    unsaid = set(config["_use_default_values"]).intersection(config).difference(also)
    kept = [key for key in unsaid if key not in MODEL_KEYS or config[key] is None]
    return {**config, "_use_default_values": sorted(kept)}


def said_only(text: str, unsaid: Iterable[str]) -> str:
    """The JSON config without ``unsaid`` keys.

    Another scheduler that reads the config then takes its own default, and a converted pipeline
    can be saved, loaded and converted back without a key changing.
    """
    left_out = set(unsaid)
    kept = {key: value for key, value in json.loads(text).items() if key not in left_out}
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"


def handed_back(
    config: Mapping[str, Any], own: Mapping[str, Any], target: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a scheduler class with the keys ``target`` is given, and what it only keeps."""
    left_out = unsaid(config, own) - set(MODEL_KEYS)
    left_out.update(OUR_OWN, (key for key in config if key.startswith("_")))
    said = {key: value for key, value in config.items() if key not in left_out}
    spacing = said.get("timestep_spacing")
    if spacing is not None and spacing not in WHOLE_STEPS:
        del said["timestep_spacing"]
        flag = next((flag for flag, name in FLAGS.items() if name == spacing), None)
        if flag in target:
            said[flag] = True
    said = {**one_grid(config.get("replaced") or {}, said), **said}
    given = {key: value for key, value in said.items() if key in target}
    return given, {key: value for key, value in said.items() if key not in given}
