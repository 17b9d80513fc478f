"""Distributions whose denoiser is a formula, as subjects."""

from __future__ import annotations

from typing import Any

import torch

from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.benchmarks.problems.analytic import Mixture, Problem, exact_denoiser
from logsnr.solvers import NoiseSchedule


def analytic(problem: Problem, schedule: NoiseSchedule, **options: Any) -> NetworkSubject:
    """A problem with an exact denoiser on a noise schedule; options of `NetworkSubject`."""
    denoise = exact_denoiser(problem, schedule)
    kept = {key: value.tolist() for key, value in vars(problem).items() if torch.is_tensor(value)}
    said: dict[str, Any] = {
        "prediction": denoise.native,
        "network_time": denoise.network_time,
        "dtype": torch.float64,
        **options,
    }
    return NetworkSubject(
        name=problem.name,
        network=denoise.network,
        schedule=schedule,
        shape=(problem.dimension,),
        weights=digest([kept, repr(schedule)], 12),
        **said,
    )


def six_gaussians(device: str = "cpu") -> Mixture:
    """Six Gaussians in R^8 of deviation 0.15 to 0.4 around means drawn once from N(0, 1)."""
    means = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    scales = torch.linspace(0.15, 0.4, 6, dtype=torch.float64)
    return Mixture(weights.to(device), means.to(device), scales.to(device))
