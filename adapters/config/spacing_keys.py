r"""The keys by which a config asks for a spacing.

``timestep_spacing`` takes "auto", the rules for whole training steps (Lin et al. 2023, table 2)
and every other name of ``SPACINGS``; ``use_karras_sigmas`` and its siblings are diffusers' flags
for some of them, ``sigma_schedule`` its key for EDM models. What is not "auto" was asked for, so a
flag or a ``sigma_schedule`` stands before "auto" and, as in diffusers, before the rules for
training steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logsnr.solvers import SPACINGS
from logsnr.solvers.names import unknown
from logsnr.solvers.spacings import WHOLE_STEPS

from .sigma_models import is_edm

AUTO = "auto"
FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}
GRID_KEYS = ("timestep_spacing", *FLAGS, "sigma_schedule", "rho")
EDM_SCHEDULES = ("karras", "exponential")


def spacing_of(config: Mapping[str, Any]) -> str:
    """The name of ``SPACINGS`` that a config asks for.

    Raises ValueError for an unknown name, for two flags, and for a name beside a flag.
    """
    name = config.get("timestep_spacing") or AUTO
    if name not in SPACINGS:
        raise unknown("timestep_spacing", name, SPACINGS)
    flag = flagged_spacing(config)
    if flag is None:
        return name
    if name != AUTO and name not in WHOLE_STEPS:
        raise ValueError(
            f"timestep_spacing={name!r} was given beside a flag for {flag!r}: choose one spacing"
        )
    return flag


def flagged_spacing(config: Mapping[str, Any]) -> str | None:
    """The spacing that a key of diffusers' own asks for, if any. ValueError for two flags."""
    flags = [flag for flag in FLAGS if config.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"{'=True and '.join(flags)}=True: choose one spacing of sigma")
    if flags:
        return FLAGS[flags[0]]
    if not is_edm(config) or (config.get("timestep_spacing") or AUTO) != AUTO:
        return None
    name = config.get("sigma_schedule")
    if name is not None and name not in EDM_SCHEDULES:
        raise ValueError(f"sigma_schedule={name!r}: choose one of {', '.join(EDM_SCHEDULES)}")
    return name or ("karras" if config.get("rho") is not None else None)


def one_grid(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys for a grid where ``given`` has another one for it."""
    if not any(given.get(key) for key in GRID_KEYS):
        return dict(config)
    return {key: value for key, value in config.items() if key not in GRID_KEYS or key in given}
