"""The classifier of the faces' attributes, the feature network of the face-feature FID.

The recipe of its weights is `training/face_classifier.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logsnr.benchmarks.embedded.classifiers import Classifier, block
from logsnr.benchmarks.embedded.face_labels import ATTRIBUTES, join_labels


class FaceClassifier(Classifier):
    """Five convolutions (16, 8, 4 pixels), a linear layer of 64 features, logits by attribute."""

    image_shape = (3, 16, 16)
    num_features = 64
    metric_name = "face-feature FID"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            block(3, 32),
            nn.MaxPool2d(2),
            block(32, 48),
            block(48, 64),
            nn.MaxPool2d(2),
            block(64, 64),
            block(64, 64),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, self.num_features),
        )
        self.sizes = [len(values) for values in ATTRIBUTES.values()]
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.num_features, sum(self.sizes)))

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits (B, number of values) for each attribute of images (B, 3, 16, 16) in [-1, 1]."""
        return list(self.head(self.features(images)).split(self.sizes, dim=1))

    def class_scores(self, features: Tensor) -> Tensor:
        """Log-probabilities of every combination of values, the attributes being independent."""
        first, *rest = (
            part.log_softmax(dim=1) for part in self.head(features).split(self.sizes, dim=1)
        )
        for part in rest:
            first = (first[:, :, None] + part[:, None, :]).flatten(1)
        return first

    def classify(self, images: Tensor) -> Tensor:
        return join_labels(1 + torch.stack([part.argmax(dim=1) for part in self(images)], dim=1))
