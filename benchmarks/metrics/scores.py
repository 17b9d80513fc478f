r"""The Inception score: sure of each sample, and unsure of all of them together.

.. math:: IS = \exp E_x KL(p(y | x) \,\|\, p(y)), \qquad p(y) = E_x p(y | x),

in 1 .. number of classes (Salimans et al. 2016), by torchmetrics. It does not know the data: a
classifier's favourite picture of each class scores best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.inception import InceptionScore

from logsnr.benchmarks.metrics.checking import vectors, whole
from logsnr.benchmarks.metrics.quiet import quiet


@dataclass(frozen=True)
class ScoreResult:
    """value: the mean over splits.  deviation: between splits, None for one split."""

    value: float
    deviation: float | None
    splits: int


def inception_score(logits: Tensor, *, splits: int = 1, seed: int = 0) -> ScoreResult:
    """The score of class scores (N, classes) before the softmax, floating and finite.

    splits: parts of which each has its own p(y); 1 .. N. Published values have 10 of 5,000; a small
    part lowers the value, so the default is one.  seed: of the random parts.
    Raises ValueError naming the argument.
    """
    values = vectors("logits", logits, 2)
    if values.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(values.shape)}; it must have 2 classes or more")
    whole("splits", splits, 1, len(values))
    # below e^-700 a share is 0 and its logarithm is not a number any more
    values = values.maximum(values.amax(1, keepdim=True) - 700)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        metric = InceptionScore(
            feature=torch.nn.Identity(),
            splits=splits,
            sync_on_compute=False,  # the samples are whole, whatever other processes do
        )
        metric.update(values)
        mean, deviation = metric.compute()
    return ScoreResult(float(mean), float(deviation) if splits > 1 else None, splits)
