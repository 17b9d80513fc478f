r"""A noise schedule from two functions, alpha(t) and sigma(t).

lambda = log(alpha) - log(sigma) is inverted by bisection to the last bit, and the two derivatives
are taken by automatic differentiation where the functions take tensors, else by central
differences with one step of Richardson's extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .schedules import NoiseSchedule, Time

CHECKED = 513
"""Times at which a new schedule is checked, between its ends."""
HALVINGS = 120  # more than the bits between the ends and any time above 1e-20
STEP = 1e-4  # of the differences, in shares of the range


class CustomSchedule(NoiseSchedule):
    """The schedule x_t = alpha(t) x_0 + sigma(t) eps of a network of your own.

    Parameters
    ----------
    alpha, sigma : functions of the time, of a float64 tensor elementwise (``torch.cos``) or of a
        float (``math.cos``). Neither is negative, they are never both 0, and alpha / sigma falls
        strictly as t grows. alpha = 0 at t_start and sigma = 0 at t_end are allowed.
    t_start, t_end : the ends of sampling, from noise to data, and of the schedule.
    network_time : what the network takes for the time t; default t itself.

    ``time`` inverts lambda between the ends to the last bit. Raises ValueError naming the
    function, or the time at which alpha / sigma does not fall.
    """

    def __init__(
        self,
        alpha: Callable[[Any], Any],
        sigma: Callable[[Any], Any],
        *,
        t_start: float = 1.0,
        t_end: float = 0.0,
        network_time: Callable[[Any], Any] | None = None,
    ):
        if not (math.isfinite(t_start) and math.isfinite(t_end) and t_end < t_start):
            raise ValueError(
                f"t_start={t_start!r}, t_end={t_end!r}: need finite times, t_end < t_start"
            )
        self.t_start, self.t_end, self.t_max = float(t_start), float(t_end), float(t_start)
        self._network_time = network_time
        self._functions = {
            name: _on_tensors(name, function, self.t_start)
            for name, function in (("alpha", alpha), ("sigma", sigma))
        }
        self._check()

    def __repr__(self) -> str:
        return f"CustomSchedule(t_start={self.t_start:g}, t_end={self.t_end:g})"

    def _check(self) -> None:
        t = torch.linspace(self.t_start, self.t_end, CHECKED, dtype=torch.float64)
        for name, function in self._functions.items():
            values = function(t)
            bad = ~(values.isfinite() & (values >= 0))
            if bad.any():
                raise ValueError(
                    f"{name}({t[bad][0].item():g}) = {values[bad][0].item():g}: need a finite "
                    "number of at least 0"
                )
        lam = self._log_alpha(t) - self._log_sigma(t)
        if lam.isnan().any():
            raise ValueError(f"alpha and sigma are both 0 at t={t[lam.isnan()][0].item():g}")
        rises = lam.diff() > 0
        if not rises.all():
            k = int((~rises).nonzero()[0])
            raise ValueError(
                f"alpha / sigma does not fall from t={t[k + 1].item():g} to t={t[k].item():g}: "
                "lambda = log(alpha / sigma) has to fall as t grows"
            )
        if not lam[1:-1].isfinite().all():
            raise ValueError("alpha or sigma is 0 between the ends: need that at an end at most")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(self._functions["alpha"](t))

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(self._functions["sigma"](t))

    def _time(self, lam: Tensor) -> Tensor:
        clean = torch.full_like(lam, self.t_end)
        noisy = torch.full_like(lam, self.t_start)
        for _ in range(HALVINGS):
            middle = (clean + noisy) / 2
            below = self._log_alpha(middle) - self._log_sigma(middle) < lam
            clean, noisy = torch.where(below, clean, middle), torch.where(below, middle, noisy)
        t = (clean + noisy) / 2
        # The ends themselves, also where lambda is infinite there or a rounding beyond them.
        for end, beyond in ((self.t_start, torch.le), (self.t_end, torch.ge)):
            t = torch.where(beyond(lam, self.lam(end)), end, t)
        return t

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return self._derivative(self._log_alpha, t)

    def _dlam(self, t: Tensor) -> Tensor:
        return self._derivative(lambda u: self._log_alpha(u) - self._log_sigma(u), t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return self._derivative(self._functions["alpha"], t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self._derivative(self._functions["sigma"], t)

    def _derivative(self, function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        with torch.enable_grad():
            at = t.detach().clone().requires_grad_()
            value = function(at)
            if value.requires_grad:
                return torch.autograd.grad(value.sum(), at)[0]
        h = STEP * (self.t_start - self.t_end)
        inner = t.clamp(self.t_end + h, self.t_start - h)  # the ends may be singular

        def slope(step: float) -> Tensor:
            return (function(inner + step) - function(inner - step)) / (2 * step)

        return (4 * slope(h / 2) - slope(h)) / 3

    def network_time(self, t: Time) -> Time:
        """What the network takes as its time input."""
        return t if self._network_time is None else self._network_time(t)


def _on_tensors(
    name: str, function: Callable[[Any], Any], time: float
) -> Callable[[Tensor], Tensor]:
    """The function on float64 tensors, elementwise. ValueError for what is no such function."""
    if not callable(function):
        raise ValueError(f"{name}={function!r}: need a function of the time")

    def tensors(t: Tensor) -> Tensor:
        return torch.as_tensor(function(t), dtype=torch.float64, device=t.device)

    def floats(t: Tensor) -> Tensor:
        values = [float(function(u)) for u in t.reshape(-1).tolist()]
        return torch.tensor(values, dtype=torch.float64, device=t.device).reshape(t.shape)

    trial = torch.full((2,), time, dtype=torch.float64)
    if _fits(tensors, trial):
        return tensors
    try:
        floats(trial)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{name}({time:g}) fails: {error}") from error
    return floats


def _fits(function: Callable[[Tensor], Tensor], trial: Tensor) -> bool:
    """Whether the function takes tensors, elementwise."""
    try:
        return function(trial).shape == trial.shape
    except (TypeError, ValueError, RuntimeError):
        return False
