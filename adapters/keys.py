"""Which keys a scheduler's config may have, and which of them are written down."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

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
    "sigma_data",
    "timestep_type",
)


def keys(scheduler: type) -> frozenset[str]:
    """The config keys of a scheduler class."""
    return frozenset(inspect.signature(scheduler).parameters) - {"kwargs"}


def check_known(
    given: Mapping[str, Any],
    own: frozenset[str],
    others: Iterable[type],
    config: Mapping[str, Any],
) -> None:
    """Raise ValueError for a ``given`` keyword that no scheduler and no ``config`` has."""
    known = own.union(config, *map(keys, others))
    for key, value in given.items():
        if key not in known and not key.startswith("_"):
            raise ValueError(
                f"{key}={value!r} is not a key of PlanScheduler or of a diffusers scheduler; its "
                f"own keys are {', '.join(sorted(own))}"
            )


def in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what it says about the model marked as said, also where it is a default.

    diffusers does not hand defaults over to another scheduler. For options of sampling that is a
    convention; for the noise schedule it would make another model of it.
    """
    defaults = [key for key in config.get("_use_default_values", ()) if key not in MODEL_KEYS]
    return {**config, "_use_default_values": defaults}


def without_unset(text: str, own: frozenset[str]) -> str:
    """The JSON config without the keys of ours that are None, which is what leaving out means.

    Another scheduler that reads the config then takes its own default and not a None.
    """
    entries = json.loads(text)
    kept = {key: value for key, value in entries.items() if key not in own or value is not None}
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"
