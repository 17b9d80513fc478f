"""The names of schedules in other programs, as docs/pipelines.md translates them.

The truth is what those names mean there, written out for N training steps, or for the times of a
flow model: n noise levels, and sigma = 0 after them.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from scheduler_cases import LATENT, drive, scheduler_for, start

from logsnr.adapters import PlanScheduler

N = 1000


def levels() -> np.ndarray:
    """sigma / alpha of the training steps, rising."""
    scheduler = scheduler_for("unipc")
    return scheduler.sigmas[:-1].double().numpy()[::-1]


def at(index: np.ndarray) -> np.ndarray:
    """log(sigma / alpha) at steps, fractions allowed, as those programs interpolate it."""
    return np.exp(np.interp(index, np.arange(N), np.log(levels())))


def shares(n: int, threshold: float = 0.025) -> np.ndarray:
    """linear_quadratic: half of the steps reach the threshold, the others are a parabola."""
    half = n // 2
    first = [threshold * i / half for i in range(half)] if half else []
    slope, rest = (threshold / half if half else 1.0), n - half
    bend = (1 - threshold * bool(half) - slope * rest) / rest**2
    then = [threshold * bool(half) + slope * i + bend * i**2 for i in range(rest)]
    return np.array([*first, *then])


def kl_optimal(low: float, high: float, n: int) -> np.ndarray:
    share = np.linspace(0, 1, n)
    return np.tan(share * np.arctan(low) + (1 - share) * np.arctan(high))


@pytest.mark.parametrize("n", [2, 5, 8, 20, 31])
@pytest.mark.parametrize("name", ["kl_optimal", "linear_quadratic", "normal"])
def test_levels_of_latent_models(name, n):
    table = levels()
    expected = {
        "kl_optimal": lambda: kl_optimal(table[0], table[-1], n),
        "linear_quadratic": lambda: table[-1] * (1 - shares(n)),
        "normal": lambda: at(np.linspace(N - 1, 0, n)),
    }[name]()
    spacing = {"normal": "time"}.get(name, name)
    for solver in ("unipc", "ddim"):
        scheduler = scheduler_for(solver, timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        tolerance = 5e-4 if name == "normal" else 1e-5  # log alpha or log sigma between two steps
        np.testing.assert_allclose(scheduler.sigmas[:-1], expected, rtol=tolerance)
        assert float(scheduler.sigmas[-1]) == 0
        assert drive(scheduler, start()).isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_flow_models(n, shift):
    def shifted(t: np.ndarray) -> np.ndarray:
        return shift * t / (1 + (shift - 1) * t)

    low = shifted(np.array(1 / N))
    for name, expected in (
        ("linear_quadratic", shifted(1 - shares(n))),
        ("kl_optimal", kl_optimal(float(shifted(low)), 1.0, n)),
    ):
        scheduler = PlanScheduler(shift=shift, solver="ddim", timestep_spacing=name)
        scheduler.set_timesteps(n)
        np.testing.assert_allclose(scheduler.sigmas[:-1], expected, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 5, 8, 20, 30])
def test_rules_for_training_steps(n):
    told = {}
    for name, solver in (("linspace", "unipc"), ("trailing", "unipc")):
        scheduler = scheduler_for(solver, timestep_spacing=name)
        scheduler.set_timesteps(n)
        told[name] = scheduler.timesteps.numpy()
    sgm_uniform = np.linspace(N - 1, 0, n + 1)[:-1]
    assert np.abs(told["linspace"] - sgm_uniform).max() < 0.5 + 1e-9
    simple = np.array([N - 1 - int(k * N / n) for k in range(n)])
    assert np.abs(told["trailing"] - simple).max() <= 1


@pytest.mark.parametrize("n", [5, 8, 20])
def test_ddim_uniform_where_n_divides_the_training_steps(n):
    steps = np.arange(1, N, N // n)[::-1]
    for solver in ("ddim", "euler"):
        scheduler = scheduler_for(solver, timestep_spacing="leading", steps_offset=1)
        scheduler.set_timesteps(len(steps))
        assert scheduler.timesteps.tolist() == steps.tolist()


def test_beta_is_one_of_steps():
    """Not of sigma, as diffusers' use_beta_sigmas is."""
    n = 12
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6)
    steps = np.unique(np.rint(quantiles * (N - 1)))[::-1]
    scheduler = PlanScheduler(**LATENT, solver="unipc")
    scheduler.set_timesteps(timesteps=steps)
    assert scheduler.timesteps.tolist() == steps.tolist()
    of_sigma = scheduler_for("unipc", use_beta_sigmas=True)
    of_sigma.set_timesteps(n)
    assert np.abs(of_sigma.timesteps.numpy() - steps).max() > 100


def test_linear_quadratic_goes_to_the_end():
    """Its last step is from the last listed level to sigma = 0, for every model."""
    scheduler = scheduler_for("ddim", timestep_spacing="linear_quadratic")
    scheduler.set_timesteps(6)
    x = torch.zeros(2, 3, 4, 4)
    for t in scheduler.timesteps:
        output = scheduler.step(torch.zeros_like(x), t, x)
        x = output.prev_sample
    assert torch.equal(x, torch.zeros_like(x))
