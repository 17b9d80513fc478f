"""Distances of samples to a reference of the same starts: RMSE and PSNR.

Sample i is compared with the reference's sample i, a converged solution from the same noise, so
they measure the solver alone. All sums are float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.benchmarks.metrics.checking import check_values


def rmse(x: Tensor, reference: Tensor) -> float:
    """Root of the squared error's mean over all axes, batch included, in units of x.

    x, reference: the same shape (B, *event), floating, finite, not empty; else ValueError.
    """
    return math.sqrt(_squared_error(x, reference).mean().item())


def rmse_per_sample(x: Tensor, reference: Tensor) -> Tensor:
    """Float64 (B,): for each sample, the root of its mean squared error over the event axes.

    Arguments and errors as `rmse`. The aggregate is the root mean square of these, not their mean.
    """
    return _squared_error(x, reference).flatten(1).mean(1).sqrt()


def psnr(x: Tensor, reference: Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(data_range / rmse), error pooled over all axes.

    data_range is the largest possible difference of two values: 2 for images in [-1, 1]. The value
    is inf where x equals the reference. The other usual aggregate, the mean of the samples' own
    ratios, is `psnr_per_sample(...).mean()`. Arguments and errors as `rmse`; ValueError for a
    data_range that is not positive and finite.
    """
    peak = _check_data_range(data_range)
    error = rmse(x, reference)
    return 20 * math.log10(peak / error) if error > 0 else math.inf


def psnr_per_sample(x: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """Float64 (B,): each sample's own ratio in dB, its error pooled over the event axes."""
    return 20 * torch.log10(_check_data_range(data_range) / rmse_per_sample(x, reference))


@dataclass(frozen=True)
class ReferenceError:
    """How far samples are from the converged solution of the same starts.

    rmse: pooled over samples and entries.  psnr: of the same, in dB.
    median, worst: of the samples' own RMSE.  worst_sample: the index of the worst.
    error_bar: the reference's own error in the same units, as RMSE, or None where it is unknown.
    """

    rmse: float
    psnr: float
    median: float
    worst: float
    worst_sample: int
    error_bar: float | None

    @property
    def resolved(self) -> bool:
        """False where the reference is not three times as good as the samples, or is unknown."""
        return self.error_bar is not None and self.rmse >= 3 * self.error_bar


def reference_error(
    x: Tensor, reference: Tensor, *, error_bar: float | None = None, data_range: float = 2.0
) -> ReferenceError:
    """All distances of samples to a reference at once; arguments and errors as `rmse` and `psnr`.

    error_bar: what the reference says of itself, at least 0: its RMSE to a coarser solution.
    """
    if error_bar is not None and not (math.isfinite(error_bar) and error_bar >= 0):
        raise ValueError(f"error_bar is {error_bar}; it must be a finite number, at least 0")
    each = rmse_per_sample(x, reference)
    worst = int(each.argmax())
    return ReferenceError(
        rmse=rmse(x, reference),
        psnr=psnr(x, reference, data_range),
        median=float(each.quantile(0.5)),
        worst=float(each[worst]),
        worst_sample=worst,
        error_bar=error_bar,
    )


def _squared_error(x: Tensor, reference: Tensor) -> Tensor:
    check_values("x", x)
    check_values("reference", reference)
    if x.shape != reference.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be reference's {tuple(reference.shape)}"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, *event), not empty")
    return (x.detach().cpu().double() - reference.detach().cpu().double()).square()


def _check_data_range(data_range: float) -> float:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}; it must be positive and finite")
    return data_range
