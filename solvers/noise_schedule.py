r"""What a noise schedule is: the map from time to (alpha, sigma), and back from log-SNR to time.

The families are in `schedules`. All arithmetic is float64. Functions of a time that carries a
gradient carry it on, with the derivatives that a schedule knows in closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


class NoiseSchedule(ABC):
    """t -> (alpha, sigma, lambda) and lambda -> t, for floats or tensors (float64 in, float64 out).

    Attributes
    ----------
    t_start, t_end : default ends of sampling, from noise to data.
    t_max : the largest time that may be asked for.
    """

    t_start: float = 1.0
    t_end: float = 1e-3
    t_max: float = 1.0

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_sigma(self, t: Tensor) -> Tensor: ...

    def _lam(self, t: Tensor) -> Tensor:
        return self._log_alpha(t) - self._log_sigma(t)

    @abstractmethod
    def _time(self, lam: Tensor) -> Tensor: ...

    @abstractmethod
    def _dlog_alpha(self, t: Tensor) -> Tensor: ...

    def _dlam(self, t: Tensor) -> Tensor:
        # alpha^2 + sigma^2 = 1 gives d lambda = d log(alpha) / sigma^2; other families override.
        return self._dlog_alpha(t) * torch.exp(-2 * self._log_sigma(t))

    def _dalpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t)) * self._dlog_alpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_sigma(t)) * (self._dlog_alpha(t) - self._dlam(t))

    def alpha(self, t: Time) -> Time:
        """Signal scale alpha_t."""
        return _apply(lambda u: torch.exp(self._log_alpha(u)), t, self._dalpha)

    def sigma(self, t: Time) -> Time:
        """Noise scale sigma_t."""
        return _apply(lambda u: torch.exp(self._log_sigma(u)), t, self._dsigma)

    def lam(self, t: Time) -> Time:
        """lambda_t = log(alpha_t / sigma_t); -inf where alpha = 0 and +inf where sigma = 0."""
        return _apply(self._lam, t, self._dlam)

    def time(self, lam: Time) -> Time:
        """The inverse of ``lam``."""
        return _apply(self._time, lam, lambda u: 1 / self._dlam(self.time(u)))

    def dlog_alpha(self, t: Time) -> Time:
        """d log(alpha) / dt, the linear drift f(t) of the forward SDE."""
        return _apply(self._dlog_alpha, t)

    def dlam(self, t: Time) -> Time:
        """d lambda / dt < 0; the squared diffusion of the forward SDE is g^2 = -2 sigma^2 dlam."""
        return _apply(self._dlam, t)

    def network_time(self, t: Time) -> Time:
        """What a network trained on this schedule takes as its time input; t itself by default."""
        return t


def _apply(
    function: Callable[[Tensor], Tensor],
    value: Time,
    slope: Callable[[Tensor], Tensor] | None = None,
) -> Time:
    if isinstance(value, Tensor):
        exact = value.to(torch.float64)
        if slope is None or not (exact.requires_grad and torch.is_grad_enabled()):
            return function(exact)
        return _WithSlope.apply(exact, function, slope)
    return float(function(torch.tensor(value, dtype=torch.float64)))


class _WithSlope(torch.autograd.Function):
    """A function of one variable with a derivative in closed form.

    Differentiating its steps one by one would fail at the singular ends, where log(alpha) or
    log(sigma) is infinite and alpha and sigma are not; an inverse by bisection has no steps at all.
    Where the derivative itself is infinite the end counts as a constant.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * torch.nan_to_num(ctx.slope(x), 0.0, 0.0, 0.0), None, None
