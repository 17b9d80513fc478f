"""The levels of ``add_noise``: each of the run's times has its own, others that of training."""

from __future__ import annotations

import diffusers
import pytest
import torch
from scheduler_cases import (
    FAMILIES,
    LATENT,
    SHAPE,
    assert_close,
    drive,
    network,
    scheduler_for,
    start,
)
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.noise_schedules import is_flow
from logsnr.adapters.config.sigma_models import is_edm

N = 8


def mixed(scheduler: PlanScheduler, places: list[int]) -> Tensor:
    """Data and noise at the levels that ``sigmas`` gives for ``places``."""
    level = scheduler.sigmas[places].double().reshape(-1, 1, 1, 1)
    x0, eps = start(torch.float64), start(torch.float64).flip(0)
    if is_flow(scheduler.config):
        level = 1 - level if scheduler.config.invert_sigmas else level
        return (1 - level) * x0 + level * eps
    unit = scheduler.config.sigma_data if is_edm(scheduler.config) else 1.0
    alpha, sigma = 1 / (unit**2 + level**2).sqrt(), 1 / (1 + (unit / level) ** 2).sqrt()
    return alpha * x0 + sigma * eps


def noisy(scheduler: PlanScheduler, timesteps: Tensor) -> Tensor:
    x0, eps = start(torch.float64), start(torch.float64).flip(0)
    return scheduler.add_noise(x0, eps, timesteps)


WAYS = {
    "view": lambda t: t,
    "copy": lambda t: t.clone(),
    "elsewhere": lambda t: t.to(torch.float64),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begin", [None, 0, 3])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_time_has_its_own_level(family, solver, begin, way):
    """Differential diffusion takes the noisy image of every timestep before the loop."""
    config, given = FAMILIES[family]
    scheduler = PlanScheduler(**config, solver=solver)
    scheduler.set_timesteps(N, **given)
    if begin is not None:
        scheduler.set_begin_index(begin)
    first = begin or (1 if family == "zero_snr" else 0)
    for places in ([first], [first + 1, first + 2], [first + 3] * 2):
        times = torch.stack([scheduler.timesteps[k] for k in places])
        result = noisy(scheduler, WAYS[way](times))
        assert_close(result, mixed(scheduler, places), 1e-5)
    every = scheduler.timesteps[first::2]
    x0 = start(torch.float64)[:1].expand(len(every), *SHAPE[1:])
    result = scheduler.add_noise(x0, x0.flip(1), WAYS[way](every))
    for k, image in enumerate(result):
        alone = scheduler.add_noise(x0[:1], x0[:1].flip(1), every[k : k + 1])
        assert torch.equal(image, alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("begin", range(N))
def test_image_to_image_begins_at_the_level_of_its_first_time(begin, dtype):
    """Two of the times of a fine Karras grid are told the network as one training step."""
    scheduler = scheduler_for("unipc", use_karras_sigmas=True)
    scheduler.set_timesteps(60)
    assert len(set(scheduler.timesteps.tolist())) < 60
    place = 60 - N + begin
    scheduler.set_begin_index(place)
    latent_timestep = scheduler.timesteps[place : place + 1].repeat(2).to(dtype)
    assert_close(noisy(scheduler, latent_timestep), mixed(scheduler, [place]), 1e-6)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++"])
def test_inpainting_adds_the_noise_of_the_next_time(solver):
    scheduler = scheduler_for(solver, use_karras_sigmas=solver != "ddim")
    scheduler.set_timesteps(N)
    x, times = start(), scheduler.timesteps
    for k, t in enumerate(times[:-1]):
        x = scheduler.step(network(x, t), t, x).prev_sample
        result = noisy(scheduler, torch.tensor([times[k + 1]]))
        assert_close(result, mixed(scheduler, [k + 1]), 1e-6)


@pytest.mark.parametrize("begin", [None, 2])
@pytest.mark.parametrize("left", [0, 3, N])
@pytest.mark.parametrize(
    "options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "logsnr"}]
)
def test_training_times_are_heard_in_the_middle_of_a_run(options, left, begin):
    stock = diffusers.DDPMScheduler(**LATENT)
    scheduler, x = scheduler_for("unipc", **options), start()
    scheduler.set_timesteps(N)
    if begin is not None:
        scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin or 0 : left]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = torch.randint(0, 1000, (2,), generator=generator)
        if set(drawn.tolist()) <= set(scheduler.timesteps.tolist()):
            continue
        expected = stock.add_noise(start(), start().flip(0), drawn)
        result = scheduler.add_noise(start(), start().flip(0), drawn)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_models_mix_by_the_time_itself(shift):
    scheduler = PlanScheduler(shift=shift)
    scheduler.set_timesteps(N)
    scheduler.set_begin_index(2)
    drawn = torch.tensor([123.4, 876.5])
    x0, eps = start(), start().flip(0)
    t = (drawn / 1000).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scheduler.scale_noise(x0, drawn, eps), (1 - t) * x0 + t * eps)


def test_times_that_were_written_have_their_new_levels():
    scheduler, expected = scheduler_for("unipc"), scheduler_for("unipc")
    scheduler.set_timesteps(N)
    scheduler.timesteps[1:] -= 5
    scheduler.timesteps.clamp_(min=0)
    expected.set_timesteps(timesteps=scheduler.timesteps)
    for place in range(N):
        result = noisy(scheduler, scheduler.timesteps[place : place + 1])
        assert torch.equal(result, noisy(expected, expected.timesteps[place : place + 1]))
    assert torch.equal(scheduler.sigmas, expected.sigmas)


def test_one_noise_that_is_handed_over_is_that_of_every_sample():
    noise = torch.randn(1, *SHAPE[1:], generator=torch.Generator().manual_seed(4))
    results = []
    for given in (noise, noise.expand(SHAPE).contiguous()):
        scheduler = scheduler_for("ddim")
        scheduler.set_timesteps(5)
        results.append(drive(scheduler, start(), eta=1.0, variance_noise=given))
    assert torch.equal(*results)


def test_noise_of_another_shape_is_named():
    scheduler = scheduler_for("ddim")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=r"variance_noise has shape \(3, 3, 4, 4\)"):
        drive(scheduler, start(), eta=1.0, variance_noise=torch.zeros(3, *SHAPE[1:]))
