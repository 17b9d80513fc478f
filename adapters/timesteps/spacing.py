r"""Which spacing a config asks for, and the times of n evaluations by it.

``timestep_spacing`` takes "auto", the rules for whole training steps (Lin et al. 2023, table 2)
and every other name of ``SPACINGS``; ``use_karras_sigmas`` and its siblings are diffusers' flags
for some of them, ``sigma_schedule`` its key for EDM models. What is not "auto" was asked for, so a
flag or a ``sigma_schedule`` stands before "auto" and, as in diffusers, before the rules for
training steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from logsnr.solvers import SPACINGS, NoiseSchedule
from logsnr.solvers.logistic import default_scale, logistic_lams
from logsnr.solvers.names import unknown
from logsnr.solvers.spacings import LOGISTIC, WHOLE_STEPS, Parameters

from ..config.sigma_models import is_edm

AUTO = "auto"
FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}
GRID_KEYS = ("timestep_spacing", *FLAGS, "sigma_schedule", "rho")
EDM_SCHEDULES = ("karras", "exponential")
# The published tables have one entry more than evaluations.
TO_THE_END = ("linear_quadratic",)  # whose last level is the end of the run, sigma = 0 too
TABLES = tuple(name for name in SPACINGS if name.startswith("ays-"))


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


def parameters_of(config: Mapping[str, Any], spacing: str, location: float = 0.0) -> Parameters:
    """The numbers of the config's spacing; ``location`` where it gives none.

    Raises ValueError for one that is out of range, or that ``spacing`` does not have.
    """
    keys = ["location", "scale"]
    if spacing == "karras" or not is_edm(config):  # the key of EDM schedulers, whatever they space
        keys.append("rho")
    said = {key: config[key] for key in keys if config.get(key) is not None}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r}: need a number")
    parameters = Parameters(**said)
    parameters.check_used_by(spacing)
    return parameters if "location" in said else Parameters(**said, location=location)


def evaluation_times(
    spacing: str,
    schedule: NoiseSchedule,
    start: float,
    last: float,
    n: int,
    *,
    to_zero: bool,
    parameters: Parameters,
) -> np.ndarray:
    """Times of n evaluations from ``start``, none below ``last``.

    A run that goes on to sigma = 0 (``to_zero``) evaluates at ``last`` in the end, apart from the
    logistic grid, which has the end at its last share; any other ends at ``last``, and so do the
    published tables, whose last entry is the end.
    """
    if spacing in LOGISTIC:
        assert parameters.location is not None
        lowest = schedule.lam(last)
        lams = logistic_lams(
            schedule.lam(start),
            math.inf if to_zero else lowest,
            n,
            parameters.location,
            default_scale(schedule, n) if parameters.scale is None else parameters.scale,
            highest=lowest,
        )
        times = schedule.time(lams)
        times[0] = start
        return times[:n].numpy()
    intervals = n if spacing in (*TABLES, *TO_THE_END) or not to_zero else n - 1
    if intervals == 0:
        return np.array([start])
    end = 0.0 if to_zero and spacing in TO_THE_END else last
    try:
        times = SPACINGS[spacing](schedule, start, end, intervals, parameters)
    except ValueError as error:
        raise ValueError(f"timestep_{error}") from error
    times[0], times[-1] = start, end
    return times[:n].numpy()


def final_sigma(config: Mapping[str, Any], solver: str) -> str:
    """``final_sigmas_type``, or for DDIM ``set_alpha_to_one``, which says the same."""
    kind = config.get("final_sigmas_type")
    if kind is None:
        kept = solver == "ddim" and config.get("set_alpha_to_one") is False
        kind = "sigma_min" if kept else "zero"
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={kind!r}: choose 'zero' or 'sigma_min'")
    return kind


def offset_of(config: Mapping[str, Any], spacing: str) -> int:
    """``steps_offset``, which only "leading" has; ValueError unless whole and at least 0."""
    offset = (config.get("steps_offset") or 0) if spacing == "leading" else 0
    if isinstance(offset, bool) or offset < 0 or int(offset) != offset:
        raise ValueError(f"steps_offset={offset!r}: need a whole number of at least 0")
    return int(offset)


def sigma_spacing(name: str, low: float, high: float, n: int, rho: float = 7.0) -> np.ndarray:
    """n values from ``high`` to ``low``: "karras", "beta", "kl_optimal" or "exponential"."""
    ramp = np.linspace(0, 1, n)
    if name == "karras":
        values = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    elif name == "beta":
        from scipy.stats import beta

        return low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
    elif name == "kl_optimal":
        values = np.tan(np.arctan(high) + ramp * (np.arctan(low) - np.arctan(high)))
    else:
        values = np.exp(np.log(high) + ramp * (np.log(low) - np.log(high)))
    values[0] = high
    if n > 1:
        values[-1] = low
    return values
