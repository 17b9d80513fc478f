r"""Noise schedules: the map from time to (alpha, sigma) and back from log-SNR to time.

The forward process of every diffusion and flow model here is

    x_t = alpha_t x_0 + sigma_t eps,      lambda_t = log(alpha_t / sigma_t),

with t = 0 at the data. lambda (``lam``), half the log-SNR, is the time in which the solvers
live: it falls as t grows, so it rises while sampling. All arithmetic is float64; each family
evaluates alpha, sigma and lambda without cancellation at either end, so that
``time(lam(t)) == t`` to 1e-12 over the whole range.

References: Song et al. 2021 (VP, VE), Nichol and Dhariwal 2021 (cosine), Karras et al. 2022
(EDM), Lipman et al. 2023 (flow matching), Lu et al. 2022 (discrete VP in log-linear form).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .noise_schedule import NoiseSchedule, Time

__all__ = [
    "DiscreteVP",
    "FlowMatching",
    "NoiseSchedule",
    "Time",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "is_straight",
    "shift_time",
]

Quantity = TypeVar("Quantity", float, Tensor, np.ndarray)


class _VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1; a family only states log(alpha), its derivative and its inverse."""

    def _log_sigma(self, t: Tensor) -> Tensor:
        return self._log_sigma_beside(self._log_alpha(t))

    def _log_sigma_beside(self, log_alpha: Tensor) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def _lam(self, t: Tensor) -> Tensor:
        log_alpha = self._log_alpha(t)
        return log_alpha - self._log_sigma_beside(log_alpha)

    @abstractmethod
    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor: ...

    def _time(self, lam: Tensor) -> Tensor:
        return self._time_of_log_alpha(0.5 * torch.nn.functional.logsigmoid(2 * lam))


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, for t in [0, 1].

    Raises ValueError unless 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(
                f"beta_min={self.beta_min!r}, beta_max={self.beta_max!r}: "
                "need 0 < beta_min < beta_max"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (t * (self.beta_max - self.beta_min) + self.beta_min)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of (b1 - b0) t^2 / 2 + b0 t = -2 log(alpha), in the form without cancellation.
        level = -2 * log_alpha
        slope = self.beta_max - self.beta_min
        return 2 * level / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * level))


@dataclass(frozen=True)
class VPCosine(NoiseSchedule):
    """alpha = cos(theta_t) / cos(theta_0) with theta_t = (t + s) / (1 + s) pi / 2, t in [0, 1].

    alpha = 0 at t = 1; sampling starts at t = 0.9946 by default, as is usual for it.
    Raises ValueError unless s > 0.
    """

    s: float = 0.008
    t_start: float = field(default=0.9946, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf:
            raise ValueError(f"s={self.s!r}: need s > 0")

    @property
    def _theta_0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def _rise(self, t: Tensor) -> Tensor:
        """theta_t - theta_0."""
        return t / (1 + self.s) * (math.pi / 2)

    def _log_alpha(self, t: Tensor) -> Tensor:
        # cos(theta_t) as a sine of the complement, which is exact as t -> 1.
        complement = (1 - t) / (1 + self.s) * (math.pi / 2)
        return torch.log(torch.sin(complement).clamp(min=0) / math.cos(self._theta_0))

    def _log_sigma(self, t: Tensor) -> Tensor:
        # cos^2(theta_0) - cos^2(theta_t) = sin(theta_t - theta_0) sin(theta_t + theta_0)
        rise = self._rise(t)
        product = torch.sin(rise) * torch.sin(rise + 2 * self._theta_0)
        return 0.5 * torch.log(product) - math.log(math.cos(self._theta_0))

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        complement = (1 - t) / (1 + self.s) * (math.pi / 2)
        return -(math.pi / 2) / (1 + self.s) / torch.tan(complement)

    def _dalpha(self, t: Tensor) -> Tensor:
        rate = math.pi / 2 / (1 + self.s)
        return -rate * torch.cos((1 - t) * rate) / math.cos(self._theta_0)

    def _time(self, lam: Tensor) -> Tensor:
        cos_0, sin_0 = math.cos(self._theta_0), math.sin(self._theta_0)
        alpha, sigma2 = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam)
        sin_t = torch.sqrt(sin_0**2 + sigma2 * cos_0**2)
        # sin and cos of theta_t - theta_0, each a sum of positive terms
        sin_rise = cos_0 * sigma2 / (sin_t + alpha * sin_0)
        cos_rise = alpha * cos_0**2 + sin_t * sin_0
        return torch.atan2(sin_rise, cos_rise) * (1 + self.s) / (math.pi / 2)


@dataclass(frozen=True, eq=False)
class DiscreteVP(_VariancePreserving):
    """N training steps given by their cumulative products; log alpha is linear between them.

    Index i = 0..N-1 sits at t = (i + 1) / N, so t runs over (0, 1] and the network's own time is
    the (fractional) index N t - 1. Below index 0 log alpha is linear to the data, log alpha = 0 at
    t = 0. With zero terminal SNR (alphas_cumprod[-1] = 0) alpha is linear on the last interval.

    Parameters
    ----------
    alphas_cumprod : N >= 2 values in [0, 1), strictly decreasing; alpha_i = sqrt(alphas_cumprod_i).

    Raises ValueError otherwise. ``DiscreteVP.from_betas`` takes the betas instead.
    """

    alphas_cumprod: Tensor = field(repr=False)
    log_alphas: Tensor = field(init=False, repr=False)
    _knots: Tensor = field(init=False, repr=False)  # log_alphas after a 0 for the data at t = 0
    _count: int = field(init=False, repr=False)

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]):
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        self._set(table, 0.5 * torch.log(table))

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> DiscreteVP:
        """The schedule of ``betas`` (N values in (0, 1]): alphas_cumprod = cumprod(1 - betas)."""
        table = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if table.ndim != 1 or not ((table > 0) & (table <= 1)).all():
            raise ValueError(f"betas={table!r}: need a 1-D table of values in (0, 1]")
        schedule = cls.__new__(cls)
        log_alphas = 0.5 * torch.cumsum(torch.log1p(-table), 0)
        schedule._set(torch.exp(2 * log_alphas), log_alphas)
        return schedule

    def _set(self, alphas_cumprod: Tensor, log_alphas: Tensor) -> None:
        table = alphas_cumprod
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                f"alphas_cumprod has shape {tuple(table.shape)}: need a 1-D table of at least 2"
            )
        if not ((table >= 0) & (table < 1)).all() or not (log_alphas.diff() < 0).all():
            raise ValueError("alphas_cumprod must lie in [0, 1) and decrease strictly")
        object.__setattr__(self, "alphas_cumprod", table)
        object.__setattr__(self, "log_alphas", log_alphas)
        object.__setattr__(self, "_knots", torch.cat([torch.zeros(1).to(table), log_alphas]))
        object.__setattr__(self, "t_end", 1 / len(table))
        object.__setattr__(self, "_count", len(table))

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"DiscreteVP({len(table)} steps, {table[0]:.6g} .. {table[-1]:.6g})"

    @property
    def steps(self) -> int:
        """N, the number of training steps."""
        return self._count

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Left knot of the interval that holds t and the offset from it; knot k is at t = k / N."""
        position = t * self.steps
        left = position.floor().clamp(0, self.steps - 1).long()
        return left, position - left

    def _log_alpha(self, t: Tensor) -> Tensor:
        table = self._knots.to(t.device)
        left, offset = self._interval(t)
        low, high = table[left], table[left + 1]
        inner = low + offset * torch.where(torch.isneginf(high), 0.0, high - low)
        last = low + torch.log1p(-offset.clamp(max=1))
        return torch.where(torch.isneginf(high) & (offset > 0), last, inner)

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        table = self._knots.to(t.device)
        left, offset = self._interval(t)
        inner = table[left + 1] - table[left]
        return self.steps * torch.where(torch.isneginf(inner), -1 / (1 - offset), inner)

    def _dalpha(self, t: Tensor) -> Tensor:
        table = self._knots.to(t.device)
        left, _ = self._interval(t)
        linear = -self.steps * torch.exp(table[left])  # to zero terminal SNR
        return torch.where(torch.isneginf(table[left + 1]), linear, super()._dalpha(t))

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        table = self._knots.to(log_alpha.device)
        right = torch.searchsorted(-table, -log_alpha).clamp(1, self.steps)
        low, high = table[right - 1], table[right]
        offset = torch.where(
            torch.isneginf(high), -torch.expm1(log_alpha - low), (log_alpha - low) / (high - low)
        )
        return (right - 1 + offset) / self.steps

    def network_time(self, t: Time) -> Time:
        """The index N t - 1 of the training step, fractions allowed."""
        return t * self.steps - 1


@dataclass(frozen=True)
class VarianceExploding(NoiseSchedule):
    """alpha = 1, sigma = t (Karras et al. 2022): sampling runs from sigma_max to sigma_min.

    Raises ValueError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_max: float = field(default=math.inf, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}: "
                "need 0 < sigma_min < sigma_max"
            )
        object.__setattr__(self, "t_start", self.sigma_max)
        object.__setattr__(self, "t_end", self.sigma_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _dlam(self, t: Tensor) -> Tensor:
        return -1 / t

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class FlowMatching(NoiseSchedule):
    """alpha = 1 - t, sigma = t: the straight path of flow matching and rectified flow.

    Sampling runs from pure noise at t = 1 (alpha = 0) to the data at t = 0 (sigma = 0). The
    resolution shift (`shift_time`) is a property of the grid (``make_plan(..., shift=3.0)``), not
    of the schedule.
    """

    t_end: float = field(default=0.0, init=False, repr=False)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def _dlam(self, t: Tensor) -> Tensor:
        return -1 / (t * (1 - t))

    def _dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


def is_straight(schedule: NoiseSchedule) -> bool:
    """Whether the schedule is the straight path of flow matching, alpha + sigma = 1."""
    if isinstance(schedule, FlowMatching | _VariancePreserving):
        return isinstance(schedule, FlowMatching)
    middle = (schedule.t_start + schedule.t_end) / 2
    return abs(schedule.alpha(middle) + schedule.sigma(middle) - 1) < 1e-9


def shift_time(t: Quantity, shift: float) -> Quantity:
    """The resolution shift t -> shift t / (1 + (shift - 1) t) of Esser et al. 2024, eq. 23.

    It moves lambda of a flow model by -log(shift); ``1 / shift`` undoes it. For floats, arrays and
    tensors in [0, 1]; written so that 0 and 1 stay what they are, whatever the shift. A shift of 1
    leaves every time as it is, outside [0, 1] too.
    """
    return t if shift == 1 else t / (t + (1 - t) / shift)
