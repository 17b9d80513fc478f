r"""Sufficient statistics of features: what a Frechet distance needs of a set, and nothing more.

For features f_1 .. f_N in R^d these are N, s = \sum f_i and S = \sum f_i f_i^T, from which

.. math:: m = s / N, \qquad C = (S - N m m^T) / (N - 1).

They add: the statistics of a union are the sum of the parts' statistics. In float64, and with the
parts added in one order, the sum is the same bit for bit, whoever computed which part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from logsnr.benchmarks.metrics.checking import check_finite, vectors


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, sum and sum of outer products of N features f of dimension d.

    sum: float64 (d,), the sum of f.  cov_sum: float64 (d, d), the sum of f f^T, not centred.
    count: N, at least 1.  features: the name of the metric whose network made the features.
    Raises ValueError for other shapes, dtypes, counts, or values that are not finite.
    """

    sum: Tensor
    cov_sum: Tensor
    count: int
    features: str

    def __post_init__(self) -> None:
        if self.sum.ndim != 1 or self.cov_sum.shape != 2 * self.sum.shape:
            shapes = f"{tuple(self.sum.shape)} and {tuple(self.cov_sum.shape)}"
            raise ValueError(f"sum and cov_sum have shapes {shapes}; they must be (d,) and (d, d)")
        for name, value in (("sum", self.sum), ("cov_sum", self.cov_sum)):
            if value.dtype != torch.float64:
                raise ValueError(f"{name} has dtype {value.dtype}; it must be torch.float64")
            check_finite(name, value)
        if self.count < 1:
            raise ValueError(f"count is {self.count}; it must be at least 1")

    @classmethod
    def of(cls, features: Tensor, name: str) -> FeatureStatistics:
        """The statistics of features (N, d), floating, finite, by the network called ``name``."""
        values = vectors("features", features, 1)
        return cls(values.sum(0), values.mT @ values, len(values), name)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets; ValueError unless one network made the features."""
        if (other.features, other.dimension) != (self.features, self.dimension):
            raise ValueError(
                f"statistics of {other.features!r} ({other.dimension} features); need those of "
                f"{self.features!r} ({self.dimension}) to add them"
            )
        return FeatureStatistics(
            self.sum + other.sum,
            self.cov_sum + other.cov_sum,
            self.count + other.count,
            self.features,
        )

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.sum)

    @property
    def mean(self) -> Tensor:
        """The features' mean, float64 (d,)."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """The features' unbiased covariance, float64 (d, d); ValueError for one sample."""
        if self.count < 2:
            raise ValueError(f"count is {self.count}; it must be at least 2 for a covariance")
        return (self.cov_sum - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, with more metadata if given."""
        tensors = {"sum": self.sum, "cov_sum": self.cov_sum, "count": torch.tensor(self.count)}
        save_file(tensors, path, metadata={**(metadata or {}), "features": self.features})

    @classmethod
    def load(cls, path: Path) -> FeatureStatistics:
        """Read what `save` wrote; ValueError for a file that is damaged or of another kind."""
        try:
            with safe_open(path, framework="pt") as file:
                features = (file.metadata() or {})["features"]
                tensors = {name: file.get_tensor(name) for name in ("sum", "cov_sum", "count")}
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} has no feature statistics: {error}") from error
        return cls(tensors["sum"], tensors["cov_sum"], int(tensors["count"]), features)


def merged(parts: Iterable[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all parts, added in the order given; ValueError for none."""
    found = list(parts)
    if not found:
        raise ValueError("parts is empty; there must be at least one to merge")
    return reduce(FeatureStatistics.__add__, found)
