r"""The Frechet distance of two sets of features, as Gaussians with their means and covariances:

.. math:: FID = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2}),

with the unbiased covariances (Heusel et al. 2017, equation 6). It measures the network's errors
with the solver's. All sums are float64 on the CPU; the matrix root is torchmetrics'.

The plug-in FID is biased upwards by about c/N, with c growing with the features' dimension (Chong
and Forsyth 2020, section 3): compare FIDs of equal N only, and with `real_against_real` at that N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from logsnr.benchmarks.metrics.checking import vectors, whole
from logsnr.benchmarks.metrics.features import Extractor
from logsnr.benchmarks.metrics.spread import Spread, spread
from logsnr.benchmarks.metrics.statistics import FeatureStatistics


@dataclass(frozen=True)
class FIDResult:
    """A Frechet distance with what must be said beside it.

    value: the distance, in squared units of the features; rounding can make it a little negative.
    name: what to call it in a report.  samples, reference_samples: the counts behind it.
    note: a warning about the bias of a low count, or None.
    """

    value: float
    name: str
    samples: int
    reference_samples: int
    note: str | None


def frechet_distance(
    samples: FeatureStatistics, reference: FeatureStatistics, *, shared: bool = True
) -> FIDResult:
    """The distance of two sets of 2 or more by their statistics.

    With torch.distributed initialised, each process gives the statistics of its own samples and
    the same reference, and gets the distance of all samples; the default group must serve CPU
    tensors. ``shared=False`` is a distance of this process alone.

    Raises ValueError for statistics of another network, dimension, or of one sample.
    """
    if reference.features != samples.features:
        raise ValueError(
            f"reference has statistics of {reference.features!r}; they must be of "
            f"{samples.features!r}"
        )
    if reference.dimension != samples.dimension:
        raise ValueError(
            f"reference has {reference.dimension} features; it must have {samples.dimension}"
        )
    for name, part in (("samples", samples), ("reference", reference)):
        if part.count < 2:
            raise ValueError(f"{name} has {part.count} sample; it must have at least 2")
    metric = FrechetInceptionDistance(feature=_Given(samples.dimension), sync_on_compute=False)
    _put(metric, "fake", samples)
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (shared and joined) or torch.distributed.get_rank() == 0:
        # Processes add their states, so only one of them may bring the reference.
        _put(metric, "real", reference)
    if shared:
        metric.sync()
    count = int(metric.fake_features_num_samples)
    return FIDResult(
        value=metric.compute().item(),
        name=samples.features,
        samples=count,
        reference_samples=reference.count,
        note=_bias_note(min(count, reference.count), samples.dimension),
    )


def fid(
    samples: Tensor,
    feature_network: nn.Module | int,
    reference: FeatureStatistics | Tensor,
    *,
    batch_size: int = 256,
) -> FIDResult:
    """Frechet distance of samples to a reference set.

    samples: (N, *event), floating, finite, N >= 2.
    feature_network: a module in eval mode from (B, *event) to (B, d), used on its own device and
        in its own dtype; or 64, 192, 768 or 2048, torchmetrics' Inception layers (needs the extra
        `logsnr[fid]`; samples (N, 1 or 3, H, W) in [-1, 1]; 2048 is the published FID).
    reference: statistics from `feature_statistics` with the same network, or the images.
    batch_size: samples a call of the network; at least 1.

    The value's bias falls with N; it is reported from N = 2 on, with a note below 10 samples a
    feature dimension. Several processes: as `frechet_distance`.
    Raises ValueError naming the argument that is not as above.
    """
    extractor = Extractor.of(feature_network, samples)
    if isinstance(reference, Tensor):
        reference = feature_statistics(reference, feature_network, batch_size=batch_size)
    features = extractor(samples, batch_size=batch_size)
    return frechet_distance(FeatureStatistics.of(features, extractor.name), reference)


def feature_statistics(
    images: Tensor, feature_network: nn.Module | int, *, batch_size: int = 256
) -> FeatureStatistics:
    """The statistics of a reference set, to be kept; arguments and errors as `fid`'s samples."""
    extractor = Extractor.of(feature_network, images, argument="images")
    return FeatureStatistics.of(extractor(images, batch_size=batch_size), extractor.name)


def real_against_real(features: Tensor, count: int, *, draws: int = 10, seed: int = 0) -> Spread:
    """What a perfect sampler scores: the distance of ``count`` real samples to other real ones.

    In each draw ``count`` of the features (N, d) are taken at random for the sampler's part, and
    all the others, at least as many, are the reference. count: 2 .. N / 2.  Raises ValueError.
    """
    values = vectors("features", features, 4)
    whole("count", count, 2, len(values) // 2)
    whole("draws", draws, 1)
    rng = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        order = torch.randperm(len(values), generator=rng)
        parts = (values[order[:count]], values[order[count:]])
        ours, theirs = (FeatureStatistics.of(part, "real against real") for part in parts)
        found.append(frechet_distance(ours, theirs, shared=False).value)
    return spread(found)


def gaussian_floor(
    reference: FeatureStatistics, count: int, *, draws: int = 10, seed: int = 0
) -> Spread:
    """`real_against_real` where only statistics were kept: by draws from their Gaussian.

    The distance of ``count`` draws of N(m, C) to the reference itself: the bias of a plug-in FID
    for features that are Gaussian. count: at least 2.  Raises ValueError.
    """
    whole("count", count, 2)
    whole("draws", draws, 1)
    rng = torch.Generator().manual_seed(seed)
    values, axes = torch.linalg.eigh(reference.covariance)
    root = axes * values.clamp_min(0).sqrt()
    found = []
    for _ in range(draws):
        noise = torch.randn(count, reference.dimension, dtype=torch.float64, generator=rng)
        drawn = FeatureStatistics.of(reference.mean + noise @ root.mT, reference.features)
        found.append(frechet_distance(drawn, reference, shared=False).value)
    return spread(found)


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _put(metric: FrechetInceptionDistance, kind: str, statistics: FeatureStatistics) -> None:
    """Replace the metric's sums of one kind, after an update that tells it the dtype."""
    zero = torch.zeros(1, statistics.dimension, dtype=torch.float64)
    metric.update(zero, real=kind == "real")
    setattr(metric, f"{kind}_features_sum", statistics.sum)
    setattr(metric, f"{kind}_features_cov_sum", statistics.cov_sum)
    setattr(metric, f"{kind}_features_num_samples", torch.tensor(statistics.count))


def _bias_note(count: int, dimension: int) -> str | None:
    if count >= 10 * dimension:
        return None
    note = (
        f"biased upwards: {count} samples for {dimension} feature dimensions, compare only with "
        "distances of as many samples"
    )
    if count <= dimension:
        note += "; the covariance is singular"
    return note
