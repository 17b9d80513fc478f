r"""Distances of samples: RMSE and PSNR to a reference of the same starts, FID to a data set.

RMSE and PSNR compare sample i with the reference's sample i (a converged solution from the same
noise), so they measure the solver alone. The Frechet distance compares distributions,

.. math:: FID = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2}),

with m, C the mean and the unbiased covariance of features (Heusel et al. 2017, equation 6), so it
measures the network's errors with the solver's. All sums are float64 on the CPU.

The plug-in FID is biased upwards by about c/N, with c growing with the features' dimension (Chong
and Forsyth 2020, section 3): compare FIDs of equal N only, and see `FIDResult.note`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


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
class FeatureStatistics:
    """What a Frechet distance needs of a set of N features f of dimension d.

    sum: float64 (d,), the sum of f.  cov_sum: float64 (d, d), the sum of f f^T, not centred.
    count: N, at least 2.  features: the name of the metric whose network made the features.
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
            _check_finite(name, value)
        if self.count < 2:
            raise ValueError(f"count is {self.count}; it must be at least 2")

    @property
    def mean(self) -> Tensor:
        """The features' mean, float64 (d,)."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """The features' unbiased covariance, float64 (d, d)."""
        return (self.cov_sum - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write a safetensors file, with more metadata if given."""
        tensors = {"sum": self.sum, "cov_sum": self.cov_sum, "count": torch.tensor(self.count)}
        save_file(tensors, path, metadata={**(metadata or {}), "features": self.features})

    @classmethod
    def load(cls, path: Path) -> FeatureStatistics:
        """Read what `save` wrote."""
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            features = file.metadata()["features"]
        return cls(tensors["sum"], tensors["cov_sum"], int(tensors["count"]), features)


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


def fid(
    samples: Tensor,
    feature_network: nn.Module | int | None = None,
    reference: FeatureStatistics | Tensor | None = None,
    *,
    batch_size: int = 256,
) -> FIDResult:
    """Frechet distance of samples to a reference set, through torchmetrics.

    samples: (N, *event), floating, finite, N >= 2, images in [-1, 1] (N, 1, 28, 28) by default.
    feature_network: None is the embedded network of the MNIST-feature FID; a module in eval mode
        from (B, *event) to (B, d), used on its own device and in its own dtype; or 64, 192, 768
        or 2048, torchmetrics' Inception layers (needs the extra `logsnr[fid]`, downloads weights
        once; samples (N, 1 or 3, H, W) in [-1, 1]; 2048 is the published FID).
    reference: statistics from `feature_statistics` with the same network, or the reference's
        images; None is the 5,000 real digits and needs the default network.
    batch_size: samples a call of the network; at least 1.

    The value's bias falls with N; it is reported from N = 2 on, with a note below 10 samples a
    feature dimension. The digits themselves score above 0 for small N: the metadata of the
    embedded reference statistics says how much.
    With torch.distributed initialised, each process gives its own samples (2 or more) and gets
    the distance of all of them; the default group must serve CPU tensors.

    Raises ValueError naming the argument that is not as above.
    """
    if reference is None and feature_network is not None:
        raise ValueError("reference is None; it must be given with a feature_network")
    extractor = _extractor(feature_network, samples, batch_size)
    if reference is None:
        from logsnr.benchmarks.embedded import load_reference_statistics

        reference = load_reference_statistics()
    elif isinstance(reference, Tensor):
        reference = feature_statistics(reference, feature_network, batch_size=batch_size)
    if reference.features != extractor.metric_name:
        raise ValueError(
            f"reference has statistics of {reference.features!r}; they must be of "
            f"{extractor.metric_name!r}"
        )
    if len(reference.sum) != extractor.num_features:
        raise ValueError(
            f"reference has {len(reference.sum)} features; it must have {extractor.num_features}"
        )
    metric = FrechetInceptionDistance(feature=extractor, sync_on_compute=False)
    _update(metric, samples, batch_size, real=False)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        # Processes add their states, so only one of them may bring the reference.
        metric.real_features_sum += reference.sum
        metric.real_features_cov_sum += reference.cov_sum
        metric.real_features_num_samples += reference.count
    metric.sync()
    count = int(metric.fake_features_num_samples)
    return FIDResult(
        value=metric.compute().item(),
        name=extractor.metric_name,
        samples=count,
        reference_samples=reference.count,
        note=_bias_note(min(count, reference.count), extractor.num_features),
    )


def feature_statistics(
    images: Tensor, feature_network: nn.Module | int | None = None, *, batch_size: int = 256
) -> FeatureStatistics:
    """The statistics of a reference set, to be kept; arguments and errors as `fid`'s samples."""
    extractor = _extractor(feature_network, images, batch_size, argument="images")
    metric = FrechetInceptionDistance(feature=extractor, sync_on_compute=False)
    _update(metric, images, batch_size, real=True)
    return FeatureStatistics(
        sum=metric.real_features_sum,
        cov_sum=metric.real_features_cov_sum,
        count=int(metric.real_features_num_samples),
        features=extractor.metric_name,
    )


class InceptionFeatures(nn.Module):
    """torchmetrics' Inception-v3 (the network of published FIDs) for images in [-1, 1].

    images (B, 1 or 3, H, W): one channel is repeated, and values become bytes, as the images of
    a published FID are. layer: 64, 192, 768 or 2048. Needs the extra `logsnr[fid]`.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.num_features = layer
        self.metric_name = f"FID (Inception-v3, {layer} features)"
        self.inception = FrechetInceptionDistance(feature=layer).inception
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.inception(rgb_bytes(images))


def rgb_bytes(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1], clipped, as bytes (B, 3, H, W), rounded to nearest."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (B, 1 or 3, H, W)")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().expand(-1, 3, -1, -1)


class _Extractor(nn.Module):
    """Any feature network as the metric wants it: float64 features on the CPU, dimension known.

    torchmetrics gives its result the features' dtype, so float64 features are what keeps the
    distance in float64; its set_dtype would convert the network too.
    """

    def __init__(self, network: nn.Module, num_features: int, metric_name: str) -> None:
        super().__init__()
        self.network = network
        self.num_features = num_features
        self.metric_name = metric_name

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.network, images)


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """Float64 (B, d) on the CPU; the network gets its own device and dtype."""
    weight = next(network.parameters(), None)
    if weight is not None:
        images = images.to(device=weight.device, dtype=weight.dtype)
    features = network(images).cpu().double()
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"feature_network gave shape {tuple(features.shape)}; it must give ({len(images)}, d)"
        )
    _check_finite("the output of feature_network", features)
    return features


def _extractor(
    network: nn.Module | int | None, images: Tensor, batch_size: int, argument: str = "samples"
) -> _Extractor:
    """Check the arguments of `fid` and wrap the network they name."""
    _check_values(argument, images)
    if images.ndim < 2 or len(images) < 2:
        raise ValueError(
            f"{argument} has shape {tuple(images.shape)}; it must be (N, *event) with N >= 2"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if network is None:
        from logsnr.benchmarks.embedded import load_feature_network

        if images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"{argument} has shape {tuple(images.shape)}; it must be (N, 1, 28, 28) for the "
                "default feature_network"
            )
        network = load_feature_network()
    elif isinstance(network, int):
        if network not in (64, 192, 768, 2048):
            raise ValueError(f"feature_network is {network}; it must be 64, 192, 768 or 2048")
        network = InceptionFeatures(network)
    elif not isinstance(network, nn.Module):
        raise ValueError(f"feature_network is {network!r}; it must be a module, a layer or None")
    elif network.training:
        raise ValueError("feature_network is in training mode; it must be in eval mode")
    with torch.no_grad():
        num_features = _features(network, images[:1]).shape[1]
    name = getattr(network, "metric_name", f"{type(network).__name__}-feature FID")
    return _Extractor(network, num_features, name)


def _update(
    metric: FrechetInceptionDistance, images: Tensor, batch_size: int, *, real: bool
) -> None:
    for batch in images.detach().split(batch_size):
        metric.update(batch, real=real)


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


def _squared_error(x: Tensor, reference: Tensor) -> Tensor:
    _check_values("x", x)
    _check_values("reference", reference)
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


def _check_values(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise ValueError(f"{name} has dtype {value.dtype}; it must be floating")
    _check_finite(name, value)


def _check_finite(name: str, value: Tensor) -> None:
    bad = int((~value.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} values that are not finite; all must be finite")
