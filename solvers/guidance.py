r"""Guidance and thresholding: what happens to a prediction before a solver sees it.

Classifier-free guidance (Ho and Salimans 2022) replaces the network's output by

    out = out_null + scale (out_cond - out_null),

optionally with its standard deviation pulled back to that of out_cond (Lin et al. 2023, eq. 15
and 16) and only inside an interval of times (Kynkaanniemi et al. 2024). Dynamic thresholding
(Saharia et al. 2022, section 2.3) clips the data prediction at a quantile of its own magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .condition_rows import joined

Network = Callable[..., Any]


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance of ``network(x, t, **kwargs)``, both branches in one batched call.

    Parameters
    ----------
    scale : 1 is the conditional network alone, 0 the unconditional one. A tensor (B,) has one a
        sample.
    condition, null : keyword arguments of the two branches. Tensors whose first dimension is the
        batch, or 1, are concatenated row by row, also inside of mappings, lists and tuples;
        everything else is passed on if it is equal in both. Branches that differ in more (numbers,
        strings, tensors of other shapes) take a network call each.
    rescale : in [0, 1], the share of the rescaled output (0: off).
    interval : (t_low, t_high) in the schedule's time; outside it the conditional network runs
        alone, at half the cost.

    Raises ValueError for a value outside its range or for branches with different keys.
    """

    scale: float | Tensor
    condition: Mapping[str, Any] = field(repr=False)
    null: Mapping[str, Any] = field(repr=False)
    rescale: float = 0.0
    interval: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor) and self.scale.ndim != 1:
            raise ValueError(
                f"scale has shape {tuple(self.scale.shape)}: need a number, or one a sample, (B,)"
            )
        if not all(map(math.isfinite, self.scales)):
            raise ValueError(f"scale={self.scale!r}: need a finite number")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale={self.rescale!r}: need a value in [0, 1]")
        if not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval={self.interval!r}: need (t_low, t_high), t_low <= t_high")
        if set(self.condition) != set(self.null):
            raise ValueError(
                f"null has keys {sorted(self.null)}: need those of condition, "
                f"{sorted(self.condition)}"
            )

    @property
    def scales(self) -> list[float]:
        """The scale, or those of the samples."""
        return self.scale.tolist() if isinstance(self.scale, Tensor) else [self.scale]

    def __call__(self, network: Network, x: Tensor, t: Tensor, time: float | Tensor) -> Any:
        """The guided output; ``t`` (B,) is the network's time, ``time`` the schedule's."""
        low, high = self.interval
        times = time if isinstance(time, Tensor) else torch.tensor(time, dtype=torch.float64)
        inside = (times >= low) & (times <= high)
        scale = self.scale
        if isinstance(scale, Tensor):
            if len(scale) not in (1, len(x)):
                raise ValueError(f"scale has {len(scale)} entries: need one a sample, {len(x)}")
            scale = scale.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        elif scale == 1:
            return network(x, t, **self.condition)
        if not inside.any():
            return network(x, t, **self.condition)
        together, both = joined(self.null, self.condition, len(x))
        if together:
            output = unwrap(network(torch.cat([x, x]), torch.cat([t, t]), **both))
            null, cond = output.chunk(2)
        else:
            null = unwrap(network(x.clone(), t, **self.null))
            cond = unwrap(network(x, t, **self.condition))
        guided = null + scale * (cond - null)
        if self.rescale != 0:
            axes = tuple(range(1, x.ndim))
            ratio = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
            guided = guided * (self.rescale * ratio + (1 - self.rescale))
        if inside.all():
            return guided
        rows = inside.to(x.device).reshape(-1, *[1] * (x.ndim - 1))  # a batch of several times
        return torch.where(rows, guided, cond)


@dataclass(frozen=True)
class DynamicThreshold:
    """Clip x0 to [-s, s] and divide by s, s = max(1, ``ratio`` quantile of abs(x0)) a sample.

    s is capped at ``maximum``; values are then scaled back to [-1, 1], as published. A hook for
    ``Denoiser(threshold=...)``. Raises ValueError unless 0 < ratio <= 1 and maximum >= 1.
    """

    ratio: float = 0.995
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio!r}: need a quantile in (0, 1]")
        if not self.maximum >= 1:
            raise ValueError(f"maximum={self.maximum!r}: need a value >= 1")

    def __call__(self, x0: Tensor) -> Tensor:
        flat = x0.flatten(1).abs().to(torch.promote_types(x0.dtype, torch.float32))
        s = torch.quantile(flat, self.ratio, dim=1).clamp(1.0, self.maximum)
        s = s.reshape(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
        return x0.clamp(-s, s) / s


def unwrap(output: Any) -> Any:
    """The tensor inside the output classes that model libraries return (``.sample`` or [0])."""
    if isinstance(output, Tensor):
        return output
    sample = getattr(output, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    return output[0] if isinstance(output, tuple) and output else output
