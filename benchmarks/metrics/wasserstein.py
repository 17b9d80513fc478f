r"""The sliced Wasserstein distance: transport in one dimension, averaged over directions.

.. math:: SW_p = \Big( E_\theta \int_0^1 |F_\theta^{-1}(u) - G_\theta^{-1}(u)|^p \, du \Big)^{1/p}

with F and G the distributions of the samples' and the reference's projections on unit vectors theta
(Bonneel et al. 2015). It needs no network: any space with a distance will do, pixels or features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logsnr.benchmarks.metrics.checking import check_values, whole


def sliced_wasserstein(
    samples: Tensor, reference: Tensor, *, projections: int = 256, p: int = 2, seed: int = 0
) -> float:
    """The distance of samples (N, *event) and reference (M, *event), floating and finite.

    projections: directions, the same for every call with this ``seed`` and event size.
    p: 1 or 2.  The value of two sets of one distribution falls as N^-1/2: compare equal counts.
    Returns a value in units of the samples. Raises ValueError naming the argument.
    """
    for name, value in (("samples", samples), ("reference", reference)):
        if value.ndim < 2 or value.numel() == 0:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be (N, *event), not empty"
            )
        check_values(name, value)
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}; its samples must have reference's shape "
            f"{tuple(reference.shape[1:])}"
        )
    whole("projections", projections, 1)
    whole("p", p, 1, 2)
    ours, theirs = (x.detach().cpu().double().flatten(1) for x in (samples, reference))
    rng = torch.Generator().manual_seed(seed)
    axes = torch.randn(ours.shape[1], projections, dtype=torch.float64, generator=rng)
    axes /= axes.norm(dim=0)
    # Both quantile functions are steps, at multiples of 1/N and 1/M: between two, nothing changes.
    n, m = len(ours), len(theirs)
    # in units of 1/(N M), so that the ends of the steps are exact
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    width = ends.diff(prepend=torch.zeros(1, dtype=ends.dtype)).double() / (n * m)
    first, second = (ends - 1) // m, (ends - 1) // n
    gaps = (ours @ axes).sort(dim=0).values[first] - (theirs @ axes).sort(dim=0).values[second]
    return float((width @ gaps.abs().pow(p)).mean() ** (1 / p))
