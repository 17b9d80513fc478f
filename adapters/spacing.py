r"""Which spacing a diffusers config asks for, and the spacings of sigma that diffusers has.

``use_karras_sigmas`` and its siblings are flags; ``timestep_spacing`` takes the three rules for
whole training steps (Lin et al. 2023, table 2) and, beyond diffusers, the names of ``SPACINGS``:
"logsnr" (uniform in lambda), "karras", "exponential", "beta", "ays-sd15", "ays-sdxl", "ays-svd"
and others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from logsnr.solvers import SPACINGS, NoiseSchedule
from logsnr.solvers.names import unknown
from logsnr.solvers.spacings import WHOLE_STEPS, Parameters

RHO = 7.0
FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}
# The published tables have one entry more than evaluations.
TABLES = tuple(name for name in SPACINGS if name.startswith("ays-"))


def flagged_spacing(config: Mapping[str, Any]) -> str | None:
    """The spacing that one of diffusers' flags asks for. ValueError for more than one flag."""
    flags = [flag for flag in FLAGS if config.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"{'=True and '.join(flags)}=True: choose one spacing of sigma")
    return FLAGS[flags[0]] if flags else None


def named_spacing(config: Mapping[str, Any]) -> str | None:
    """The name of ``SPACINGS`` in ``timestep_spacing``, None for a rule for training steps.

    Raises ValueError for an unknown name, and for a name beside a flag.
    """
    name = config.get("timestep_spacing")
    if name is None or name in WHOLE_STEPS:
        return None
    if name not in SPACINGS:
        raise unknown("timestep_spacing", name, SPACINGS)
    if flagged_spacing(config) is not None:
        raise ValueError(
            f"timestep_spacing={name!r} was given beside a flag for {flagged_spacing(config)!r}: "
            "choose one spacing"
        )
    return name


def named_times(
    name: str, schedule: NoiseSchedule, start: float, end: float, n: int, *, to_zero: bool
) -> list[float]:
    """Times of n evaluations from ``start``, spaced by a name of ``SPACINGS``.

    A run that goes on to sigma = 0 (``to_zero``) evaluates at ``end`` last; any other ends there,
    and so do the published tables, whose last entry is the end.
    """
    intervals = n if name in TABLES or not to_zero else n - 1
    if intervals == 0:
        return [start]
    try:
        times = SPACINGS[name](schedule, start, end, intervals, Parameters())
    except ValueError as error:
        raise ValueError(f"timestep_{error}") from error
    times[0], times[-1] = start, end
    return times[:n].tolist()


def final_sigma(config: Mapping[str, Any], solver: str) -> str:
    """``final_sigmas_type``, or for DDIM ``set_alpha_to_one``, which says the same."""
    kind = config.get("final_sigmas_type")
    if kind is None:
        kept = solver == "ddim" and config.get("set_alpha_to_one") is False
        kind = "sigma_min" if kept else "zero"
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={kind!r}: choose 'zero' or 'sigma_min'")
    return kind


def sigma_spacing(name: str, low: float, high: float, n: int, rho: float = RHO) -> np.ndarray:
    """n values from ``high`` to ``low``: "karras", "beta", or "exponential" (= "logsnr")."""
    ramp = np.linspace(0, 1, n)
    if name == "karras":
        values = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    elif name == "beta":
        from scipy.stats import beta

        return low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
    else:
        values = np.exp(np.log(high) + ramp * (np.log(low) - np.log(high)))
    values[0] = high
    if n > 1:
        values[-1] = low
    return values
