r"""Fidelity and diversity apart, by the balls that reach from each feature to its k-th neighbour.

With B(z) the closed ball around z to its k-th nearest neighbour in its own set, for reference
features x_1 .. x_M and samples y_1 .. y_N:

.. math::
    precision = \frac1N \#\{j : y_j \in \bigcup_i B(x_i)\}, \qquad
    recall = \frac1M \#\{i : x_i \in \bigcup_j B(y_j)\}

(improved precision and recall, Kynkaanniemi et al. 2019, equation 2), and

.. math::
    density = \frac1{kN} \sum_j \#\{i : y_j \in B(x_i)\}, \qquad
    coverage = \frac1M \#\{i : \exists j, y_j \in B(x_i)\}

(Naeem et al. 2020, equations 3 and 4), which one outlier of the reference cannot inflate, nor one
of the samples. For two sets of one distribution density is 1 and coverage near 1 - 2^-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.benchmarks.metrics.checking import two_sets, whole

CHUNK = 1024
"""Rows of the distance matrix that are in memory at once."""


@dataclass(frozen=True)
class Manifold:
    """precision, recall and coverage in 0 .. 1, density at least 0."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(
    samples: Tensor, reference: Tensor, *, neighbours: int = 3, density_neighbours: int = 5
) -> Manifold:
    """All four of features (N, d) and (M, d), floating and finite, of one network.

    neighbours: k of precision and recall, 3 as in the paper.  density_neighbours: k of density and
    coverage, 5 as in theirs. Both at least 1 and below N and M.
    The values depend on N and M: compare those of equal counts. Raises ValueError.
    """
    k = whole("neighbours", neighbours, 1)
    dense = whole("density_neighbours", density_neighbours, 1)
    ours, theirs = two_sets(samples, reference, max(k, dense) + 1)
    centre = theirs.mean(0)  # squares are then as small as they can be, and cancel least
    ours, theirs = ours - centre, theirs - centre
    around_ours = _radii(ours, (k,))[k]
    around_theirs = _radii(theirs, (k, dense))
    inside = held = 0
    found = torch.zeros(len(theirs), dtype=torch.bool)
    nearest = torch.full((len(theirs),), torch.inf, dtype=torch.float64)
    for rows, radii in zip(ours.split(CHUNK), around_ours.split(CHUNK), strict=True):
        square = _squares(rows, theirs)
        inside += int((square <= around_theirs[k]).any(1).sum())
        held += int((square <= around_theirs[dense]).sum())
        found |= (square <= radii[:, None]).any(0)
        nearest = torch.minimum(nearest, square.amin(0))
    return Manifold(
        precision=inside / len(ours),
        recall=int(found.sum()) / len(theirs),
        density=held / (dense * len(ours)),
        coverage=int((nearest <= around_theirs[dense]).sum()) / len(theirs),
    )


def _radii(values: Tensor, ks: tuple[int, ...]) -> dict[int, Tensor]:
    """Squared distance (N,) of each vector to its k-th nearest other, for each k."""
    parts = []
    for start in range(0, len(values), CHUNK):
        square = _squares(values[start : start + CHUNK], values)
        rows = torch.arange(len(square))
        square[rows, start + rows] = torch.inf  # itself
        parts.append(square.topk(max(ks), largest=False).values)
    nearest = torch.cat(parts)
    return {k: nearest[:, k - 1] for k in ks}


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (A, B), by one matrix product."""
    square = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.mT)
    return square.clamp_min_(0)
