"""k-diffusion's models for our solvers, and our denoisers as k-diffusion's models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Denoiser, VarianceExploding

Model = Callable[..., Tensor]
"""(x (B, *event), sigma (B,), **extra_args) -> denoised (B, *event)."""

ROUNDING = 1e-6  # of a sigma that was computed in float32


def from_k_diffusion(
    model: Model,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **extra_args: Any,
) -> Denoiser:
    """A k-diffusion model as a `Denoiser` on `VarianceExploding`.

    Parameters
    ----------
    model : ``model(x, sigma, **extra_args) -> denoised``.
    sigma_min, sigma_max : the default ends of sampling; None is what the model itself says, and
        0.002 and 80 if it says nothing.
    extra_args : keyword arguments of the model (conditions).

    Raises ValueError unless 0 < sigma_min < sigma_max.
    """
    if not callable(model):
        raise ValueError(f"model={model!r}: need a callable model(x, sigma)")
    given = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    ends = {key: getattr(model, key, None) if end is None else end for key, end in given.items()}
    schedule = VarianceExploding(**{k: float(end) for k, end in ends.items() if end is not None})
    return Denoiser(as_function(model), schedule, "sample", condition=extra_args)


def to_k_diffusion(denoise: Denoiser) -> KDiffusionModel:
    """A `Denoiser` as a k-diffusion model ``model(x, sigma, **condition) -> denoised``."""
    return KDiffusionModel(denoise)


class KDiffusionModel:
    """What `to_k_diffusion` returns.

    With sigma = exp(-lambda_t) it evaluates the denoiser at the state alpha_t x and the time t.
    Keyword arguments of a call are given to the network beside the denoiser's condition.

    Attributes
    ----------
    sigma_min, sigma_max : sigma_t / alpha_t at the ends of the denoiser's schedule, as tensors of
        no dimension. From pure noise (alpha = 0) sigma_max is inf: choose your own.

    Raises ValueError at a call for a sigma that is not positive or above that of the schedule, and
    for keyword arguments where the denoiser has guidance, which brings its own condition.
    """

    def __init__(self, denoise: Denoiser):
        if not isinstance(denoise, Denoiser):
            raise ValueError(f"denoise={denoise!r}: need a Denoiser")
        self.denoise = denoise
        schedule = denoise.schedule
        ends = torch.tensor([schedule.t_end, schedule.t_start], dtype=torch.float64)
        self.sigma_min, self.sigma_max = torch.exp(-schedule.lam(ends)).unbind()

    def __call__(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """Data prediction of x = x0 + sigma n (B, *event), sigma a number or (B,)."""
        schedule = self.denoise.schedule
        values = torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1)
        lam = torch.clamp(-torch.log(values), min=schedule.lam(schedule.t_max))
        top = math.exp(-schedule.lam(schedule.t_max))
        if not ((values > 0) & (values <= top * (1 + ROUNDING))).all():
            raise ValueError(
                f"sigma={values.tolist()}: need 0 < sigma <= {top:.6g}, the largest of {schedule!r}"
            )
        t = schedule.time(lam)
        alpha = schedule.alpha(t).to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        # One time for the whole batch, as samplers have it, costs the denoiser less than B times.
        same = bool((t == t[0]).all())
        return self._with(condition)(alpha * x, float(t[0]) if same else t)

    def _with(self, condition: Mapping[str, Any]) -> Denoiser:
        if not condition:
            return self.denoise
        if self.denoise.guidance is not None:
            raise ValueError(
                f"{', '.join(condition)} was given to a denoiser with guidance: put it there"
            )
        conditioned = copy(self.denoise)
        conditioned.condition = {**self.denoise.condition, **condition}
        return conditioned


def as_function(model: Model) -> Model:
    """``model`` as a function, which it may not be."""
    # A wrapper that is a module may well hold weights of another dtype or device than x and cast
    # by itself, so `Denoiser` is not to hold its parameters against x.
    return lambda x, sigma, **extra_args: model(x, sigma, **extra_args)
