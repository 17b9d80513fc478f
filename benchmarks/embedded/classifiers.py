"""Classifiers of the embedded models' images, and their penultimate layers as feature networks.

Inception features describe photographs and want tens of thousands of samples (2048 dimensions).
These describe one kind of image with few numbers, so a Frechet distance of some hundred samples is
meaningful; it is comparable only with others of the same network.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS_FILE = "classifier.safetensors"


def block(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution of 3 x 3 pixels with its normalisation and activation."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Classifier(nn.Module):
    """What a classifier of images (B, *image_shape) in [-1, 1] offers."""

    image_shape: tuple[int, int, int]
    num_features: int
    metric_name: str
    """Of the Frechet distance of its features."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (B, num_features), before their activation, of images in [-1, 1]."""

    @abstractmethod
    def class_scores(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, num_features), one class for all that is told."""

    @abstractmethod
    def classify(self, images: Tensor) -> Tensor:
        """The likeliest labels (B,), as the diffusion model takes them."""


class FeatureNetwork(nn.Module):
    """A classifier's features as torchmetrics' FrechetInceptionDistance(feature=...) takes them.

    Images (B, *image_shape) of any floating dtype, clipped to [-1, 1], to float64 features
    (B, num_features). The network itself runs in the dtype of its weights and never leaves eval
    mode. Raises ValueError for another shape.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features
        self.metric_name = classifier.metric_name
        self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        return super().train(False)

    def logits(self, features: Tensor) -> Tensor:
        """Class scores (B, classes) of features, for the Inception score."""
        dtype = next(self.classifier.parameters()).dtype
        return self.classifier.class_scores(features.to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        shape = self.classifier.image_shape
        if images.ndim != 4 or images.shape[1:] != shape:
            expected = f"(B, {', '.join(map(str, shape))})"
            raise ValueError(f"images has shape {tuple(images.shape)}; it must be {expected}")
        dtype = next(self.classifier.parameters()).dtype
        return self.classifier.features(images.to(dtype).clamp(-1, 1)).double()


def load_weights(
    classifier: Classifier, folder: Path, dtype: torch.dtype, device: torch.device | str
) -> Classifier:
    """The classifier with the weights in a folder, in eval mode, without gradients of them."""
    classifier.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)


def metadata(file: Path) -> dict[str, str]:
    """What is written beside the tensors of a safetensors file."""
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())
