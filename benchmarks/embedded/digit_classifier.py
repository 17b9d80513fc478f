"""The digit classifier whose penultimate layer is the feature network of the MNIST-feature FID.

Inception features describe photographs and want tens of thousands of samples (2048 dimensions).
These describe digits with 32 numbers, so a Frechet distance of some hundred samples is meaningful;
it is comparable only with other MNIST-feature FIDs of this same network. The recipe of the weights
is train_classifier.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from logsnr.benchmarks.metrics.distances import FeatureStatistics

CLASSIFIER_FOLDER = Path(__file__).parent / "classifier"
WEIGHTS_FILE = "classifier.safetensors"
STATISTICS_FILE = "reference_statistics.safetensors"


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class DigitClassifier(nn.Module):
    """Five convolutions (28, 14, 7, 3 pixels), a linear layer of 32 features, 10 logits."""

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(1, 16),
            _block(16, 16),
            nn.MaxPool2d(2),
            _block(16, 32),
            _block(32, 32),
            nn.MaxPool2d(2),
            _block(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, self.num_features),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.num_features, 10))

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 32), before their activation, of images (B, 1, 28, 28) in [-1, 1]."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(images))


class FeatureNetwork(nn.Module):
    """A classifier's features as torchmetrics' FrechetInceptionDistance(feature=...) takes them.

    Images (B, 1, 28, 28) of any floating dtype, clipped to [-1, 1], to float64 features (B, 32).
    The network itself runs in the dtype of its weights and never leaves eval mode.
    Raises ValueError for another shape.
    """

    metric_name = "MNIST-feature FID"

    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features
        self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"images has shape {tuple(images.shape)}; it must be (B, 1, 28, 28)")
        dtype = next(self.classifier.parameters()).dtype
        return self.classifier.features(images.to(dtype).clamp(-1, 1)).double()


def load_classifier(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> DigitClassifier:
    """The trained classifier in eval mode, without gradients of its parameters."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(CLASSIFIER_FOLDER / WEIGHTS_FILE))
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)


def classifier_metadata() -> dict[str, str]:
    """What the recipe recorded: held_out_accuracy (of the weights on disk), seed, epochs, ..."""
    with safe_open(CLASSIFIER_FOLDER / WEIGHTS_FILE, framework="pt") as file:
        return dict(file.metadata())


def load_feature_network(device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network of the trained classifier, in float32."""
    return FeatureNetwork(load_classifier(device=device))


def load_reference_statistics() -> FeatureStatistics:
    """The feature statistics of the 5,000 real digits, as `load_feature_network` sees them."""
    return FeatureStatistics.load(CLASSIFIER_FOLDER / STATISTICS_FILE)
