r"""The kernel distance of two sets of features: an unbiased squared maximum mean discrepancy.

.. math::
    KID = \frac{\sum_{i \ne j} k(x_i, x_j) + k(y_i, y_j)}{m (m - 1)}
          - \frac{2 \sum_{ij} k(x_i, y_j)}{m^2}, \qquad k(x, y) = (x^T y / d + 1)^3

over subsets of m features of each set (Binkowski et al. 2018, section 4), by torchmetrics. Its
expectation is the same for every m: values of different counts may be compared, and it may be
negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from logsnr.benchmarks.metrics.checking import two_sets, whole
from logsnr.benchmarks.metrics.quiet import quiet


@dataclass(frozen=True)
class KIDResult:
    """value: the mean over subsets.  deviation: between subsets, 0 if there is only one.

    subsets, subset_size: how many, of how many features. Subsets overlap, so the deviation is
    not the standard error of the value: that is the spread over seeds.
    """

    value: float
    deviation: float
    subsets: int
    subset_size: int


def kid(
    samples: Tensor,
    reference: Tensor,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KIDResult:
    """The kernel distance of features (N, d) and (M, d), floating and finite, N and M >= 2.

    subset_size: 2 .. min(N, M); None is 1,000, or the least count where that is lower. Sets that
    are both of this size are compared once, as all their subsets are equal.
    seed: of the subsets, which are the same for every call.
    Raises ValueError naming the argument.
    """
    ours, theirs = two_sets(samples, reference, 2)
    least = min(len(ours), len(theirs))
    size = min(1000, least) if subset_size is None else whole("subset_size", subset_size, 2, least)
    number = 1 if len(ours) == len(theirs) == size else whole("subsets", subsets, 1)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=torch.nn.Identity(),
            subsets=number,
            subset_size=size,
            sync_on_compute=False,  # the sets are whole, whatever other processes do
        )
        metric.update(ours, real=False)
        metric.update(theirs, real=True)
        mean, deviation = metric.compute()
    return KIDResult(float(mean), float(deviation), number, size)
