"""Metrics of distributions as measures of a comparison: kept shard by shard, put together exactly.

A shard keeps the sums of its features (float64), from which the Frechet distance is made, and the
features themselves (float32) where another metric needs them. Problems whose distribution is a
formula keep their samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from logsnr.benchmarks.harness.measures import Statistics
from logsnr.benchmarks.metrics.analytic import analytic_error
from logsnr.benchmarks.metrics.features import Extractor
from logsnr.benchmarks.metrics.frechet import (
    frechet_distance,
    gaussian_floor,
    real_against_real,
)
from logsnr.benchmarks.metrics.kernel import kid
from logsnr.benchmarks.metrics.manifold import manifold
from logsnr.benchmarks.metrics.scores import inception_score
from logsnr.benchmarks.metrics.statistics import FeatureStatistics, merged
from logsnr.benchmarks.metrics.wasserstein import sliced_wasserstein
from logsnr.benchmarks.problems.analytic import Gaussian, Mixture

OF_FEATURES = {
    "fid": "Frechet distance to the reference",
    "kid": "kernel distance to the reference",
    "prdc": "precision, recall, density and coverage",
    "is": "Inception score, by a classifier's own class scores",
    "swd": "sliced Wasserstein distance of the features",
}
MOMENTS = "moments"
METRICS = (*OF_FEATURES, MOMENTS)
"""What a suite may ask for beside the distances to the converged solution."""
LEAST = {"prdc": 6}
"""Samples that a metric needs, where it needs more than two."""
WIDE = 512
"""Features of so many dimensions are too many to draw Gaussians of them by the thousand."""


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """What samples are compared with.

    statistics : of all the real images.
    features : (M, d) of some of them, None where only the statistics were kept.
    digest : of both.
    """

    statistics: FeatureStatistics
    features: Tensor | None
    digest: str


@dataclass(frozen=True, eq=False)
class FeatureMeasure:
    """Metrics in the features of one network.

    extractor : images to features.
    real : the features of real images.
    metrics : some of `OF_FEATURES`.

    Raises ValueError for a metric that needs more than ``real`` or the network has.
    """

    extractor: Extractor
    real: RealFeatures
    metrics_asked: tuple[str, ...] = ("fid",)
    _floors: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("kid", "prdc", "swd"):
            if name in self.metrics_asked and self.real.features is None:
                raise ValueError(
                    f"metrics={name!r}: needs the features of real images; the reference has only "
                    "their statistics, which are enough for fid"
                )
        if "is" in self.metrics_asked and not hasattr(self.extractor.network, "logits"):
            raise ValueError(
                f"metrics='is': {self.extractor.name} comes from a network without class scores"
            )

    @property
    def about(self) -> Mapping[str, Any]:
        """The network and the real images."""
        said = {"features": self.extractor.name, "real": self.real.digest}
        return {"distribution": said | {"metrics": sorted(self.metrics_asked)}}

    @property
    def least(self) -> dict[str, int]:
        """Samples that each metric needs."""
        return {name: LEAST.get(name, 2) for name in self.metrics_asked}

    def of(self, x: Tensor, exact: Tensor | None) -> Statistics:
        """Sums of the features of images x (B, *event), and the features where they are needed."""
        features = self.extractor(x)
        kept: dict[str, Tensor] = {}
        if "fid" in self.metrics_asked:
            found = FeatureStatistics.of(features, self.real.statistics.features)
            kept |= {"fid.sum": found.sum, "fid.cov_sum": found.cov_sum}
            kept["fid.count"] = torch.tensor(found.count)
        if self._of_each:
            kept["features"] = features.float()
        return kept

    def metrics(self, shards: Sequence[Statistics]) -> Mapping[str, Any]:
        """The values, of all shards in the order of their samples."""
        found: dict[str, Any] = {}
        if "fid" in self.metrics_asked:
            name = self.real.statistics.features
            parts = [
                FeatureStatistics(
                    shard["fid.sum"], shard["fid.cov_sum"], int(shard["fid.count"]), name
                )
                for shard in shards
            ]
            ours = merged(parts)
            found["fid"] = frechet_distance(ours, self.real.statistics, shared=False).value
            found |= self._floor(ours.count)
        if not self._of_each:
            return found
        features = torch.cat([shard["features"] for shard in shards]).double()
        real = self.real.features
        if "is" in self.metrics_asked:
            network: Any = self.extractor.network
            found["inception_score"] = inception_score(network.logits(features)).value
        if real is None:
            return found
        if "kid" in self.metrics_asked:
            found["kid"] = kid(features, real).value
        if "prdc" in self.metrics_asked:
            found |= vars(manifold(features, real[: len(features)]))
        if "swd" in self.metrics_asked:
            found["sliced_wasserstein"] = sliced_wasserstein(features, real[: len(features)])
        return found

    @property
    def _of_each(self) -> bool:
        """Whether a metric needs more than sums of the features."""
        return bool(set(self.metrics_asked) - {"fid"})

    def _floor(self, count: int) -> dict[str, Any]:
        """What a perfect sampler scores with as many samples; None where it is not known."""
        if count not in self._floors:
            real, value = self.real.features, None
            draws = 4 if self.real.statistics.dimension <= WIDE else 1
            if real is not None and 2 * count <= len(real):
                value = real_against_real(real, count, draws=draws).mean
            elif self.real.statistics.dimension <= WIDE:
                value = gaussian_floor(self.real.statistics, count, draws=draws).mean
            self._floors[count] = {"fid_real": value}
        return self._floors[count]


@dataclass(frozen=True, eq=False)
class MomentsMeasure:
    """Moments, relative entropy and shares of components of a problem that is a formula."""

    problem: Mixture | Gaussian

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing: the problem is the model."""
        return {"distribution": {"metrics": [MOMENTS]}}

    @property
    def least(self) -> dict[str, int]:
        """Samples that the covariance needs."""
        return {MOMENTS: self.problem.dimension + 1}

    def of(self, x: Tensor, exact: Tensor | None) -> Statistics:
        """The samples (B, D) themselves."""
        return {"samples": x.double()}

    def metrics(self, shards: Sequence[Statistics]) -> Mapping[str, Any]:
        """See `analytic_error`; ``kl_scatter`` is what as many exact samples have."""
        error = analytic_error(torch.cat([shard["samples"] for shard in shards]), self.problem)
        return {
            "mean_error": error.mean,
            "covariance_error": error.covariance,
            "kl": error.kl,
            "kl_scatter": error.kl_scatter,
            "shares": error.shares,
        }
