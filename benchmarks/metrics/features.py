"""Feature networks: images in, one vector each out, in which distributions are compared.

A feature network is any module in eval mode from (B, *event) to (B, d), floating. What else it may
say of itself:

* ``metric_name``, what a Frechet distance in its features is called; else the class's name is used.
  Statistics carry it, so that those of different networks are never compared.
* ``logits(features)``, the class scores (B, classes) of features, for the Inception score.

`network_file` loads one from a TorchScript or ONNX file, `InceptionFeatures` is the network of the
published FID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from logsnr.benchmarks.metrics.checking import check_finite, check_values, whole

LAYERS = (64, 192, 768, 2048)
"""The layers of Inception-v3 that torchmetrics knows, by the number of their features."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network that was tried on images.  name: of its metric.  dimension: d."""

    network: nn.Module
    name: str
    dimension: int

    @classmethod
    def of(
        cls, network: nn.Module | int, images: Tensor, *, argument: str = "samples"
    ) -> Extractor:
        """The extractor for images (N, *event), floating and finite, N >= 2.

        network: a module in eval mode, or 64, 192, 768 or 2048 for that layer of Inception-v3.
        Raises ValueError naming ``argument`` or ``feature_network``.
        """
        check_values(argument, images)
        if images.ndim < 2 or len(images) < 2:
            raise ValueError(
                f"{argument} has shape {tuple(images.shape)}; it must be (N, *event) with N >= 2"
            )
        if isinstance(network, int):
            if network not in LAYERS:
                raise ValueError(f"feature_network is {network}; it must be 64, 192, 768 or 2048")
            network = InceptionFeatures(network)
        if not isinstance(network, nn.Module):
            raise ValueError(f"feature_network is {network!r}; it must be a module or a layer")
        if network.training:
            raise ValueError("feature_network is in training mode; it must be in eval mode")
        name = getattr(network, "metric_name", f"{type(network).__name__}-feature FID")
        return cls(network, name, _features(network, images[:1]).shape[1])

    def __call__(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """Features (N, d) of images (N, *event), ``batch_size`` a call: float64 on the CPU.

        For a network in float32 they are float32 numbers, and can be kept as such without loss.
        """
        whole("batch_size", batch_size, 1)
        return torch.cat([_features(self.network, part) for part in images.split(batch_size)])


def extract(images: Tensor, network: nn.Module | int, *, batch_size: int = 256) -> Tensor:
    """The features (N, d) of images, float64 on the CPU; arguments and errors as `Extractor`."""
    return Extractor.of(network, images, argument="images")(images, batch_size=batch_size)


@torch.no_grad()
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
    check_finite("the output of feature_network", features)
    return features


class InceptionFeatures(nn.Module):
    """torchmetrics' Inception-v3 (the network of published FIDs) for images in [-1, 1].

    images (B, 1 or 3, H, W): one channel is repeated, and values become bytes, as the images of
    a published FID are. layer: 64, 192, 768 or 2048. Needs the extra `logsnr[fid]`, and downloads
    the weights once; ValueError without the extra.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.num_features = layer
        self.metric_name = f"FID (Inception-v3, {layer} features)"
        self.inception = _inception(layer)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.inception(rgb_bytes(images))

    def logits(self, features: Tensor) -> Tensor:
        """Class scores without the bias, as the Inception score takes them; layer 2048 only."""
        if self.num_features != 2048:
            raise ValueError(f"feature_network is {self.num_features}; logits need layer 2048")
        weight = self.inception.get_parameter("fc.weight")
        return features.to(weight) @ weight.mT


def _inception(layer: int) -> nn.Module:
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        return FrechetInceptionDistance(feature=layer).inception
    except ModuleNotFoundError as error:
        raise ValueError(
            f"feature_network is {layer}; a layer of Inception-v3 needs the extra logsnr[fid]: "
            "pip install 'logsnr[fid]'"
        ) from error


def rgb_bytes(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1], clipped, as bytes (B, 3, H, W), rounded to nearest."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (B, 1 or 3, H, W)")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().expand(-1, 3, -1, -1)
