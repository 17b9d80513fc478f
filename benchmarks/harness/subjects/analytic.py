"""Distributions whose denoiser is a formula, as subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.benchmarks.problems.analytic import Gaussian, Mixture, Problem, exact_denoiser
from logsnr.solvers import FlowMatching, NoiseSchedule, VarianceExploding, VPCosine, VPLinear


def analytic(problem: Problem, schedule: NoiseSchedule, **options: Any) -> NetworkSubject:
    """A problem with an exact denoiser on a noise schedule; options of `NetworkSubject`."""
    signal = schedule.alpha(schedule.t_start) > 0  # else the noise cannot be told from the state
    denoise = exact_denoiser(problem, schedule, "epsilon" if signal else "sample")
    kept = {key: value.tolist() for key, value in vars(problem).items() if torch.is_tensor(value)}
    said: dict[str, Any] = {
        "prediction": denoise.native,
        "network_time": denoise.network_time,
        "dtype": torch.float64,
        "name": problem.name,
        **options,
    }
    return NetworkSubject(
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


def one_gaussian() -> Gaussian:
    """N(mu, diag(s^2)) in R^8 with s from 0.1 to 1, whose ODE has a closed form."""
    mean = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64)
    return Gaussian(mean, torch.logspace(-1, 0, 8, dtype=torch.float64))


PROBLEMS: Mapping[str, Callable[[], Mixture | Gaussian]] = {
    "six-gaussians": six_gaussians,
    "gaussian": one_gaussian,
}
SCHEDULES: Mapping[str, Callable[[], NoiseSchedule]] = {
    "vp-linear": VPLinear,
    "vp-cosine": VPCosine,
    "flow": FlowMatching,
    "ve": lambda: VarianceExploding(0.002, 80.0),
}
"""By their names in suites."""
