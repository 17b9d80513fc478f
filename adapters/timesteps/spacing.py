"""The times of n evaluations by a spacing between two ends."""

from __future__ import annotations

import math

import numpy as np

from logsnr.solvers import SPACINGS, NoiseSchedule
from logsnr.solvers.logistic import default_scale, logistic_lams
from logsnr.solvers.spacings import LOGISTIC, Parameters

# The published tables have one entry more than evaluations.
TO_THE_END = ("linear_quadratic",)  # whose last level is the end of the run, sigma = 0 too
TABLES = tuple(name for name in SPACINGS if name.startswith("ays-"))


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
