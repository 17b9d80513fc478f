"""How clean the background of generated digits is.

A pixel belongs to the background of a digit if it is black, at most 0.05 above -1, in all but one
of the 500 training images of that digit or in all of them: its rim, and the inside of the 0.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from logsnr.benchmarks.embedded.models import DIGITS

BACKGROUND_FILE = DIGITS.folder / "background.safetensors"


def background_of(images: Tensor, labels: Tensor) -> Tensor:
    """The background (10, 28, 28), bool, that images (N, 1, 28, 28) of the ten digits share."""
    bright = images[:, 0] > -0.95
    return torch.stack([bright[labels == digit].sum(dim=0) <= 1 for digit in range(10)])


def load_background() -> Tensor:
    """The background (10, 28, 28), bool, of the training images."""
    return load_file(BACKGROUND_FILE)["background"]


def background_deviation(x: Tensor, labels: Tensor) -> dict[int, float]:
    """Root mean square distance from black, -1, in the background of each digit among the labels.

    x: (B, 1, 28, 28), pooled over the samples and pixels of a digit. labels: (B,) in 0..9.
    """
    background = load_background().to(x.device)
    return {
        digit: (x[labels == digit][:, 0][:, background[digit]] + 1).square().mean().sqrt().item()
        for digit in sorted(set(labels.tolist()))
    }
