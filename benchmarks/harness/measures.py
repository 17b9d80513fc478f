r"""Metrics in two halves: statistics of each shard, which are kept, and numbers from all of them.

The first half, `Measure.of`, runs where the samples are; what it returns is kept in the shard's
file. The second, `Measure.metrics`, gets the statistics of all shards in the order of their
indices, and adds them up in that order in float64: the result is the same bit for bit, whoever
computed which shard.

Distances to the converged solution are such statistics too: the mean square error of each sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Statistics = Mapping[str, Tensor]


class Measure(Protocol):
    """A metric of samples, beside their distance to the converged solution."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the protocol says of it: networks and data sets by their hashes."""
        ...

    @property
    def least(self) -> Mapping[str, int]:
        """Samples that each of its metrics needs."""
        ...

    def of(self, x: Tensor, exact: Tensor | None) -> Statistics:
        """The statistics of one shard: samples x (B, *event), as images where the subject makes
        such, and the converged solution.
        """
        ...

    def metrics(self, shards: Sequence[Statistics]) -> Mapping[str, Any]:
        """The values by their names, from the tensors of all shards, these among them."""
        ...


def mean_squares(x: Tensor, exact: Tensor) -> Tensor:
    """The mean square error of each sample (B,), float64."""
    return (x.double() - exact.double()).square().flatten(1).mean(1)


def rmse_of(squares: Sequence[Tensor]) -> float:
    """The root of the mean over all samples, shard after shard."""
    return math.sqrt(float(torch.cat(list(squares)).mean()))


def distances(squares: Sequence[Tensor], data_range: float) -> dict[str, Any]:
    r"""RMSE over all samples, its PSNR in dB, and the RMSE of the median and the worst sample.

    PSNR = 20 log10(data_range / RMSE), infinite where the RMSE is 0.
    """
    each = torch.cat(list(squares)).sqrt()
    error = rmse_of(squares)
    return {
        "rmse": error,
        "psnr": 20 * math.log10(data_range / error) if error > 0 else math.inf,
        "rmse_median": float(each.median()),
        "rmse_worst": float(each.max()),
    }
