r"""Metrics in two halves: statistics of each shard, which are kept, and numbers from all of them.

The first half, `Measure.of`, runs where the samples are; what it returns is kept in the shard's
file. The second, `Measure.metrics`, gets the statistics of all shards in the order of their
indices, and adds them up in that order in float64: the result is the same bit for bit, whoever
computed which shard.

Distances to the converged solution are such statistics too: the mean square error of each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.benchmarks.metrics.frechet import frechet_distance
from logsnr.benchmarks.metrics.statistics import FeatureStatistics, merged

Statistics = Mapping[str, Tensor]


class Measure(Protocol):
    """A metric of samples, beside their distance to the converged solution."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the protocol says of it: networks and data sets by their hashes."""
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


@dataclass(frozen=True)
class FrechetMeasure:
    """The Frechet distance of features to those of a data set, from float64 sums.

    features : samples (B, *event) -> features (B, d), float64 on the CPU.
    reference : statistics of the data set.
    digest : of the reference statistics.
    """

    features: Callable[[Tensor], Tensor]
    reference: FeatureStatistics
    digest: str
    name: str = "fid"

    @property
    def about(self) -> Mapping[str, Any]:
        return {self.name: {"features": self.reference.features, "statistics": self.digest}}

    def of(self, x: Tensor, exact: Tensor | None) -> Statistics:
        found = FeatureStatistics.of(self.features(x), self.reference.features)
        return {
            f"{self.name}.sum": found.sum,
            f"{self.name}.cov_sum": found.cov_sum,
            f"{self.name}.count": torch.tensor(found.count),
        }

    def metrics(self, shards: Sequence[Statistics]) -> Mapping[str, Any]:
        parts = [
            FeatureStatistics(
                shard[f"{self.name}.sum"],
                shard[f"{self.name}.cov_sum"],
                int(shard[f"{self.name}.count"]),
                self.reference.features,
            )
            for shard in shards
        ]
        return {self.name: frechet_distance(merged(parts), self.reference).value}
