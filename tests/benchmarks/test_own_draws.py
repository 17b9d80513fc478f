"""Every contender's noise is that of the sample, whatever the size of a shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import GAUSSIAN
from torch import Tensor

from logsnr.benchmarks.harness.contenders import Contender, parse_contender
from logsnr.benchmarks.harness.sampling import FunctionSampling, PlanSampling, SchedulerSampling
from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import DiscreteVP, make_plan

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SCHEDULE = DiscreteVP(torch.cumprod(1 - BETAS, 0))


def sample_churned(model: Any, x: Tensor, sigmas: Tensor, disable: bool | None = None) -> Tensor:
    """Euler with churn as k-diffusion writes it: from torch's global generator."""
    for s, t in zip(sigmas[:-1], sigmas[1:], strict=True):
        hat = torch.minimum(1.2 * s, sigmas[0])
        x = x + torch.randn_like(x) * (hat**2 - s**2).sqrt()
        x = x + (x - model(x, hat.expand(len(x)))) / hat * (t - hat)
    return x


def sample_ancestral(
    model: Any, x: Tensor, sigmas: Tensor, disable: bool | None = None, noise_sampler: Any = None
) -> Tensor:
    """Ancestral Euler with k-diffusion's noise samplers."""
    for s, t in zip(sigmas[:-1], sigmas[1:], strict=True):
        up = t * (1 - (t / s) ** 2).sqrt()
        down = (t**2 - up**2).sqrt()
        x = x + (x - model(x, s.expand(len(x)))) / s * (down - s) + up * noise_sampler(s, t)
    return x


def contenders() -> dict[str, Any]:
    functions = (sample_churned, sample_ancestral)
    found: dict[str, Any] = {
        f.__name__: FunctionSampling(Contender(f"{__name__}.{f.__name__}", {}), SCHEDULE, 4)
        for f in functions
    }
    config = {"trained_betas": BETAS.tolist()}
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):
        found[name] = SchedulerSampling(parse_contender(name), config, {}, 4)
    found["plan"] = PlanSampling(make_plan("ddim", SCHEDULE, nfe=4, eta=1.0))
    return found


@pytest.mark.parametrize("name", contenders())
def test_a_sample_does_not_depend_on_its_shard(name):
    sampling, seeds = contenders()[name], [3, 5, 8, 9]
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    z = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, drawn = sampling(denoise, z, seeds)
    assert drawn
    parts = [sampling(denoise, z[i:j], seeds[i:j])[0] for i, j in ((0, 1), (1, 4))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-10)
    other, _ = sampling(denoise, z, [3, 5, 8, 10])
    torch.testing.assert_close(other[:3], whole[:3], rtol=1e-10, atol=1e-10)
    assert (other[3] - whole[3]).abs().max() > 1e-3
