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


def background_deviation(x: Tensor, labels: Tensor) -> Tensor:
    """Root mean square distance from black, -1, in the background of each sample, (B,).

    x: (B, 1, 28, 28). labels: (B,) in 0..9, the digits that they show.
    """
    inside = load_background().to(x.device)[labels]
    squares = (x[:, 0] + 1).square() * inside
    return (squares.sum((1, 2)) / inside.sum((1, 2))).sqrt()


def by_digit(deviation: Tensor, labels: Tensor) -> dict[int, tuple[float, float]]:
    """The deviation of each digit's samples together, and that of its median sample."""
    parts = {digit: deviation[labels == digit] for digit in sorted(set(labels.tolist()))}
    return {
        digit: (part.square().mean().sqrt().item(), part.median().item())
        for digit, part in parts.items()
    }
