"""Convergence of a stochastic solver on one Brownian path, picture by picture.

A seed says which noise an interval of the path gets, so that two step counts with one seed make two
pictures. On a `BrownianPath` they see one and the same noise, finely or coarsely, and the pictures
of n and of 2 n steps approach each other: by half a doubling for strong order 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from logsnr.solvers import Plan, make_plan, sample
from logsnr.solvers.brownian import BrownianPath

from ..embedded.models import embedded_model


@dataclass(frozen=True)
class Doubling:
    """How far the pictures of ``nfe`` and of 2 ``nfe`` evaluations are apart.

    ``on_path`` and ``on_seeds`` are root mean squares over all pixels, in [-1, 1]: on one path, and
    with one seed.
    """

    nfe: int
    on_path: float
    on_seeds: float


def doublings(
    model: str,
    solver: str = "sde-dpm-solver++",
    *,
    nfe: Sequence[int] = (10, 20, 40, 80, 160),
    samples: int = 4,
    seed: int = 0,
    **options: Any,
) -> list[Doubling]:
    """The changes of an embedded model's pictures at every doubling of ``nfe``.

    ``options`` are those of `make_plan`. Raises ValueError for a plan that adds no noise, or noise
    of several clocks.
    """
    subject = embedded_model(model)
    x_T = subject.starts(samples, seed)
    denoise = subject.denoiser(subject.turns(torch.arange(samples)))
    plans = [make_plan(solver, subject.schedule, nfe=n, **options) for n in nfe]
    path = covering(plans, seed)
    on_path, on_seeds = (
        [sample(denoise, x_T, plan, noise=noise) for plan in plans] for noise in (path, seed)
    )
    return [
        Doubling(n, *(float((fine - coarse).square().mean().sqrt()) for coarse, fine in both))
        for n, *both in zip(nfe, pairwise(on_path), pairwise(on_seeds), strict=False)
    ]


def covering(plans: Sequence[Plan], seed: int) -> BrownianPath:
    """A path over all noise of the plans, which tells the shortest interval's ends apart."""
    terms = [term.key for plan in plans for row in plan.rows for term in row.noise]
    clocks = sorted({term.clock for term in terms})
    if len(clocks) != 1:
        raise ValueError(f"plans with noise of the clocks {clocks}: need one clock")
    readings = [end for term in terms for end in (term.start, term.end)]
    shortest = min(abs(term.end - term.start) for term in terms)
    low, high = min(readings), max(readings)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"plans with noise over [{low:g}, {high:g}]: need a finite range")
    return BrownianPath(seed, low, high, clock=clocks[0], tolerance=shortest / 8)
