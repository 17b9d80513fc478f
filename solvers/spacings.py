r"""Spacings: rules that place n + 1 times between the ends of a schedule.

Most are uniform in some function of t,

    time          t
    quadratic     sqrt(t)                        (DEIS; DPM-Solver's "time_quadratic")
    logsnr        lambda                         (DPM-Solver); also called "exponential", since
                                                 it is uniform in log(sigma / alpha)
    karras        (sigma / alpha)^(1 / rho)      (Karras et al. 2022, eq. 5; rho = 7)
    kl_optimal    arctan(sigma / alpha)          ("Align Your Steps", the solution for a Gaussian)

three are those of pipelines on a schedule of N training steps (Lin et al. 2023, table 2), which
put the n evaluations on whole steps and then end at t_end,

    leading, trailing, linspace

the logistic grid puts them at equal shares of a distribution over lambda (see `logistic`),

    logistic      with ``location`` and ``scale``
    auto          the same, where nothing is said: the default of ``make_plan``

and the others are quantiles, shares or tables of sigma / alpha (of sigma, also for kl_optimal,
where the path is straight as in flow matching):

    linear_quadratic
                  `linear_quadratic` of the way from the first level to the last (Movie Gen)

    beta          quantiles of Beta(0.6, 0.6) between the ends (Lee et al. 2024)
    ays-sd15, ays-sdxl, ays-svd
                  "Align Your Steps" (Sabour et al. 2024): the published ten-step tables for
                  Stable Diffusion 1.5, XL and Video, log-linear between their entries and
                  stretched in lambda to the ends asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import scalar
from .logistic import default_location, default_scale, logistic_lams
from .scalar import Number, plain
from .schedules import DiscreteVP, NoiseSchedule, is_straight


@dataclass(frozen=True)
class Parameters:
    """The numbers that some spacings have.

    Parameters
    ----------
    rho : exponent of "karras".
    location, scale : of "logistic" and "auto", in lambda; None is what is best known for the
        schedule, see `default_location` and `default_scale`.

    Raises ValueError for a value that is out of range.
    """

    rho: Number = 7.0
    location: Number | None = None
    scale: Number | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho={self.rho!r}: need a positive number")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r}: need a positive number")
        if self.location is not None and not math.isfinite(plain(self.location)):
            raise ValueError(f"location={self.location!r}: need a finite lambda, or None")

    def check_used_by(self, spacing: str) -> None:
        """ValueError for a number that was set beside a spacing without it."""
        for names, owners in OWNERS.items():
            for name in names:
                value = getattr(self, name)
                if spacing not in owners and value != getattr(Parameters, name):
                    raise ValueError(
                        f"{name}={value!r} belongs to spacing {' and '.join(owners)}, not to "
                        f"{spacing!r}"
                    )


OWNERS = {("rho",): ("karras",), ("location", "scale"): ("logistic", "auto")}

Spacing = Callable[[NoiseSchedule, float, float, int, Parameters], Tensor]
"""(schedule, t_start, t_end, n, parameters) -> n + 1 falling times."""

_TRAINING_STEPS = 1000


def _time(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    return _line(start, end, n)


def _quadratic(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    return _line(scalar.sqrt(start), scalar.sqrt(end), n) ** 2


def _logsnr(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    first, last = _finite_lams("logsnr", schedule, start, end)
    return schedule.time(_line(first, last, n))


def _finite_lams(
    name: str, schedule: NoiseSchedule, start: float, end: float
) -> tuple[Number, Number]:
    lams = schedule.lam(start), schedule.lam(end)
    for argument, time, lam in zip(("t_start", "t_end"), (start, end), lams, strict=True):
        if not math.isfinite(plain(lam)):
            raise ValueError(
                f"spacing={name!r} needs a finite lambda at both ends, but {argument}={time!r} "
                f"has lambda={lam}: choose {argument} inside the range, or spacing='time'"
            )
    return lams


def _karras(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    if schedule.lam(start) == -math.inf:
        raise ValueError(
            f"spacing='karras' needs a finite sigma/alpha, but alpha = 0 at t_start={start!r}"
        )
    first, last = (scalar.exp(-schedule.lam(t) / p.rho) for t in (start, end))
    return schedule.time(-p.rho * torch.log(_line(first, last, n)))


def _kl_optimal(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    straight = is_straight(schedule)
    first, last = (scalar.atan(_level(schedule, t, straight)) for t in (start, end))
    return _at_levels(schedule, torch.tan(_line(first, last, n)), straight, start, end)


def _linear_quadratic(
    schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters
) -> Tensor:
    straight = is_straight(schedule)
    first, last = _level(schedule, start, straight), _level(schedule, end, straight)
    if first == math.inf:
        raise ValueError(
            f"spacing='linear_quadratic' needs a finite sigma/alpha, but alpha = 0 at "
            f"t_start={start!r}"
        )
    shares = torch.as_tensor(linear_quadratic(n))
    return _at_levels(schedule, first + (last - first) * shares, straight, start, end)


def _level(schedule: NoiseSchedule, t: float, straight: bool) -> Number:
    """What pipelines call sigma: sigma of the straight path, sigma / alpha of others."""
    return schedule.sigma(t) if straight else scalar.exp(-schedule.lam(t))


def _at_levels(
    schedule: NoiseSchedule, levels: Tensor, straight: bool, start: float, end: float
) -> Tensor:
    inner = levels[1:-1]  # alpha or sigma may be 0 at the ends
    ratios = inner / (1 - inner) if straight else inner
    return with_ends(schedule.time(-torch.log(ratios)), start, end)


def _beta(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    from scipy.stats import beta

    _finite_lams("beta", schedule, start, end)
    first, last = (scalar.exp(-schedule.lam(t)) for t in (start, end))
    shares = beta.ppf(np.linspace(1, 0, n + 1), 0.6, 0.6)
    return schedule.time(-torch.log(last + (first - last) * torch.as_tensor(shares)))


def _logistic(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
    location = default_location(schedule) if p.location is None else p.location
    highest = schedule.lam(1 / schedule.steps) if isinstance(schedule, DiscreteVP) else math.inf
    ends = schedule.lam(start), schedule.lam(end)
    scale = default_scale(schedule, n) if p.scale is None else p.scale
    lams = logistic_lams(*ends, n, location, scale, highest)
    return with_ends(schedule.time(lams[1:-1]), start, end)  # lambda may be infinite at the ends


# Sabour et al. 2024, "Align Your Steps", the tables of the authors' release: sigma / alpha.
_AYS = {
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _align_your_steps(name: str) -> Spacing:
    table = -np.log(_AYS[name])

    def spacing(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
        first, last = _finite_lams(name, schedule, start, end)
        knots = np.linspace(0, 1, len(table))
        lams = torch.as_tensor(np.interp(np.linspace(0, 1, n + 1), knots, table))
        return schedule.time(first + (last - first) * (lams - table[0]) / (table[-1] - table[0]))

    return spacing


def _on_training_steps(name: str) -> Spacing:
    def spacing(schedule: NoiseSchedule, start: float, end: float, n: int, p: Parameters) -> Tensor:
        steps = schedule.steps if isinstance(schedule, DiscreteVP) else _TRAINING_STEPS
        if n > steps:
            raise ValueError(f"nfe={n}: spacing={name!r} has only {steps} training steps")
        indices = training_steps(
            name, steps, n, offset=int(name == "leading"), inner=name == "linspace"
        )
        # Index i of N sits at the share (i + 1) / N of the range.
        times = torch.as_tensor((indices + 1.0) / steps) * start
        if times[-1] <= end:
            raise ValueError(
                f"spacing={name!r} puts the last of nfe={n} evaluations at t={times[-1]:g}, "
                f"which is not above t_end={end!r}: lower nfe or t_end"
            )
        return torch.cat([times, _entry(end)])

    return spacing


def _line(start: float, end: float, n: int) -> Tensor:
    if scalar.is_tensor(start) or scalar.is_tensor(end):
        return start + (end - start) * torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def with_ends(inner: Tensor, start: float, end: float) -> Tensor:
    """``inner`` between the two ends."""
    return torch.cat([_entry(start), inner, _entry(end)])


def _entry(number: Number) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64).reshape(1)


def linear_quadratic(n: int, threshold: float = 0.025) -> np.ndarray:
    """n + 1 shares of the way from noise to data, as Movie Gen and Mochi space their steps.

    The first n // 2 intervals are equal and reach ``threshold`` together; from there on the share
    is quadratic in the step, with a continuous slope.
    """
    linear = n // 2
    if linear == 0:
        return np.linspace(0, 1, n + 1)
    steps = np.arange(n + 1)
    slope, rest = threshold / linear, n - linear
    beyond = np.maximum(steps - linear, 0)
    return slope * steps + (1 - slope * n) * (beyond / rest) ** 2


def training_steps(
    spacing: str, steps: int, n: int, offset: int = 0, inner: bool = False
) -> np.ndarray:
    """The n training-step indices (int64, falling) out of ``steps`` that pipelines evaluate.

    leading: multiples of N // n plus ``offset``; trailing: N - k N / n - 1, rounded; linspace:
    from N - 1 to 0, rounded. With ``inner`` the rule is laid out for n + 1 points of which the
    smallest is dropped, as multistep schedulers do for leading and linspace.
    """
    if spacing == "trailing":
        return np.round(np.arange(steps, 0, -steps / n)[:n]).astype(np.int64) - 1
    count = n + 1 if inner else n
    if spacing == "leading":
        indices = np.arange(count) * (steps // count) + offset
    elif spacing == "linspace":
        indices = np.linspace(0, steps - 1, count).round().astype(np.int64)
    else:
        raise ValueError(f"spacing={spacing!r}: choose 'leading', 'trailing' or 'linspace'")
    return indices[count - n :][::-1].copy()


LOGISTIC = ("auto", "logistic")
WHOLE_STEPS = ("leading", "trailing", "linspace")

SPACINGS: dict[str, Spacing] = {
    "auto": _logistic,
    "logistic": _logistic,
    "time": _time,
    "quadratic": _quadratic,
    "logsnr": _logsnr,
    "exponential": _logsnr,
    "karras": _karras,
    "beta": _beta,
    "kl_optimal": _kl_optimal,
    "linear_quadratic": _linear_quadratic,
    "leading": _on_training_steps("leading"),
    "trailing": _on_training_steps("trailing"),
    "linspace": _on_training_steps("linspace"),
    **{name: _align_your_steps(name) for name in _AYS},
}
