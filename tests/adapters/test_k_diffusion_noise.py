"""The noise of k-diffusion's samplers: ComfyUI's seeds, noise samplers, our own sources."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor

from logsnr.adapters.k_diffusion import sampler
from logsnr.adapters.k_diffusion.sampler_noise import sampler_noise
from logsnr.adapters.k_diffusion.samplers import nodes_of
from logsnr.solvers import CounterNoise, Noise, Plan, VarianceExploding, make_plan, sample
from logsnr.solvers.noise_terms import reading

SIGMAS = torch.tensor([20.0, 8.0, 3.0, 1.0, 0.2, 0.0], dtype=torch.float64)
WAYS: dict[str, dict[str, Any]] = {"ddim": {"eta": 1.0}, "euler": {"s_churn": 2.0}}


def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
    return torch.tanh(x) / (1 + sigma[:, None])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, 11, 2**64 - 1])
def test_a_seed_of_comfyui_decides_the_noise_of_each_sample(way, seed):
    ours, x, given = sampler(way, **WAYS[way]), 20 * normal(6, 4), {"seed": seed}
    whole = ours(model, x, SIGMAS, given)
    assert torch.equal(whole, ours(model, x, SIGMAS, dict(given)))
    assert torch.equal(ours(model, x[:2], SIGMAS, given), whole[:2])
    assert not torch.equal(whole, ours(model, x, SIGMAS, {"seed": seed - 1 if seed else 1}))
    if seed < 2**63:
        assert torch.equal(whole, ours(model, x, SIGMAS, noise_sampler=seed))
        alone = ours(model, x[4:5], SIGMAS, noise_sampler=CounterNoise(seed, samples=[4]))
        assert torch.equal(alone, whole[4:5])


def test_the_model_is_given_the_seed_and_a_noise_sampler_comes_first():
    seen = []

    def asks(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
        seen.append(seed)
        return model(x, sigma)

    ours, x = sampler("ddim", eta=1.0), 20 * normal(3, 4)
    first = ours(asks, x, SIGMAS, {"seed": 5}, noise_sampler=9)
    assert set(seen) == {5}
    assert torch.equal(first, ours(asks, x, SIGMAS, {"seed": 6}, noise_sampler=9))


def test_sources_of_ours_are_asked_as_they_are():
    ours, x = sampler("ddim", eta=1.0), 20 * normal(3, 4)
    expected = ours(model, x, SIGMAS, noise_sampler=11)
    assert torch.equal(expected, ours(model, x, SIGMAS, noise_sampler=CounterNoise(11)))
    source = CounterNoise(11)
    assert torch.equal(
        expected, ours(model, x, SIGMAS, noise_sampler=lambda term, like: source(term, like))
    )


def test_a_noise_sampler_has_no_levy_areas():
    plan = make_plan("ddim", VarianceExploding(0.2, 20.0), nfe=4, eta=1.0)
    rows = list(plan.rows)
    (term,) = rows[1].noise
    rows[1] = replace(rows[1], noise=(term, term._replace(moment=1)))
    plan = Plan(tuple(rows), consistent=False)

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        raise AssertionError("asked")

    theirs = sampler_noise(noise_sampler, None, [], VarianceExploding(), SIGMAS)
    for noise in (noise_sampler, theirs):
        with pytest.raises(ValueError, match="increments only, and the plan needs the Levy area"):
            sample(lambda x, t: x, normal(2, 3), plan, noise=noise)


@pytest.mark.parametrize("clock", ["lambda", "sigma", "sigma2", "snr"])
def test_noise_samplers_are_asked_at_the_very_numbers_of_sigmas(clock):
    nodes, asked = nodes_of(SIGMAS, "ve"), []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, 3)

    source = sampler_noise(noise_sampler, None, nodes, VarianceExploding(), SIGMAS)
    for s, t in pairwise(nodes[:-1]):
        source(Noise(1.0, reading(clock, s), reading(clock, t), clock), torch.zeros(2, 3))
    assert asked == [*pairwise(SIGMAS[:-1].tolist())]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "x"])
def test_bad_seeds_are_refused_before_the_model_is_called(seed):
    def never(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=r"extra_args\['seed'\]="):
        sampler("ddim", eta=1.0)(never, normal(2, 3), SIGMAS, {"seed": seed})


@pytest.mark.parametrize(
    ("noise_sampler", "message"),
    [
        (lambda a, b: torch.zeros(1), "noise_sampler has shape"),
        (lambda a, b: 0.0, "noise_sampler returned float"),
        ([1, 2, 3], "noise has 3 seeds: need one a sample, 2"),
        (CounterNoise(1, samples=[5]), "noise is for 1 samples"),
    ],
)
def test_noise_of_another_shape_is_named(noise_sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler("ddim", eta=1.0)(model, normal(2, 3), SIGMAS, noise_sampler=noise_sampler)
