"""The digit classifier, the feature network of the MNIST-feature FID.

The recipe of its weights is `training/classifier.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from logsnr.benchmarks.embedded.classifiers import Classifier, block


class DigitClassifier(Classifier):
    """Five convolutions (28, 14, 7, 3 pixels), a linear layer of 32 features, 10 logits."""

    image_shape = (1, 28, 28)
    num_features = 32
    metric_name = "MNIST-feature FID"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            block(1, 16),
            block(16, 16),
            nn.MaxPool2d(2),
            block(16, 32),
            block(32, 32),
            nn.MaxPool2d(2),
            block(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, self.num_features),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.num_features, 10))

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(images))

    def class_scores(self, features: Tensor) -> Tensor:
        return self.head(features)

    def classify(self, images: Tensor) -> Tensor:
        return self(images).argmax(dim=1)
