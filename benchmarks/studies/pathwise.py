"""Convergence of a stochastic solver on one Brownian path, sample by sample.

A seed says which noise an interval of the path gets, so that two step counts with one seed make two
samples. On a `BrownianPath` they see one and the same noise, finely or coarsely, and the samples of
n and of 2 n steps approach each other: by half a doubling for strong order 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from logsnr.solvers import Denoiser, Plan, sample
from logsnr.solvers.brownian import BrownianPath


@dataclass(frozen=True)
class Doubling:
    """How far the samples of a plan with ``nfe`` evaluations and of the next one are apart.

    ``on_path`` and ``on_seeds`` are root mean squares over each sample, (B,): on one path, and with
    one seed.
    """

    nfe: int
    on_path: Tensor
    on_seeds: Tensor


def doublings(
    denoise: Denoiser, x_T: Tensor, plans: Sequence[Plan], *, seed: int = 0
) -> list[Doubling]:
    """The changes of the samples from x_T (B, *event) from each of the ``plans`` to the next.

    Raises ValueError for a plan that adds no noise.
    """
    for plan in plans:
        if not plan.stochastic:
            raise ValueError(f"plan={plan!r} adds no noise: on every path it does the same")
    found = []
    for noise in (BrownianPath(seed), seed):
        results = [sample(denoise, x_T, plan, noise=noise) for plan in plans]
        changes = [(fine - coarse).flatten(1) for coarse, fine in pairwise(results)]
        found.append([change.double().square().mean(1).sqrt() for change in changes])
    return [Doubling(plan.nfe, *changes) for plan, *changes in zip(plans[:-1], *found, strict=True)]
