"""Starts near alpha = 0: their limit is alpha = 0, and no method falls behind the first order."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import GAUSSIAN, Options, deterministic_cases, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    VarianceExploding,
    VPCosine,
    make_plan,
    sample,
    sample_adaptive,
    sample_parallel,
)
from logsnr.solvers.grids import node_at
from logsnr.solvers.methods.pure_noise import DEEP, STRAIGHT


def nearly_zero_terminal(last: float) -> DiscreteVP:
    """A discrete schedule whose last alpha, meant to be 0, is ``last``."""
    root = torch.cumprod(1 - torch.linspace(1e-3, 0.1, 100, dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    root[-1] = last
    return DiscreteVP(root**2)


def schedule_and_start(family: str, distance: float) -> tuple[NoiseSchedule, float]:
    """alpha / sigma at the start is about ``distance``."""
    return {
        "flow": lambda: (FlowMatching(), 1 - distance),
        "cosine": lambda: (VPCosine(), 1 - distance),
        "discrete": lambda: (nearly_zero_terminal(distance), 1.0),
    }[family]()


@cache
def relative_error(
    solver: str,
    options: tuple[tuple[str, object], ...],
    family: str,
    distance: float,
    shift: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> float:
    """Against the closed-form flow of Gaussian data from the same start."""
    schedule, t_start = schedule_and_start(family, distance)
    arguments = {"t_start": t_start, "t_end": 0.0, "spacing": "time", "shift": shift}
    plan = make_plan(solver, schedule, nfe=12, **arguments, **dict(options))
    start, end = plan.rows[0].node, plan.rows[-1].node
    x = start.alpha * GAUSSIAN.draw(3, torch.Generator().manual_seed(0))
    x = x + start.sigma * normal(3, 4, seed=1)
    exact = GAUSSIAN.flow(start, x)(end)
    denoise = exact_denoiser(GAUSSIAN, schedule, "v_prediction")
    return float((sample(denoise, x.to(dtype), plan).double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("family", ["flow", "cosine", "discrete"])
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_no_start_makes_a_method_much_worse_than_the_first_order(name, options, family):
    chosen, single, double = tuple(options.items()), torch.float32, torch.float64
    for k, dtype in (
        (3, double),
        (5, single),
        (6, double),
        (7, single),
        (10, single),
        (16, double),
    ):
        if (family, k) != ("discrete", 3):  # its last alpha would not be the smallest
            error = relative_error(name, chosen, family, 10.0**-k, dtype=dtype)
            first = relative_error("ddim", (), family, 10.0**-k, dtype=dtype)
            assert error < 2 * first, k


@pytest.mark.parametrize("shift", [0.1, 0.3, 3.0, 30.0])
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_no_resolution_shift_makes_a_method_much_worse(name, options, shift):
    chosen = tuple(options.items())
    nearer = [d for d in (1e-3, 1e-2) if d / shift < STRAIGHT]
    for distance in (0.0, 1e-16, 1e-8, 1e-5, *nearer):
        error = relative_error(name, chosen, "flow", distance, shift)
        first = relative_error("ddim", (), "flow", distance, shift)
        assert error < 3 * first, distance


@pytest.mark.parametrize("shift", [0.05, 0.3, 7.0, 1e3])
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_the_limit_is_that_of_alpha_zero(name, options, shift):
    chosen = tuple(options.items())
    limit = relative_error(name, chosen, "flow", 0.0, shift)
    assert relative_error(name, chosen, "flow", 1e-15, shift) == pytest.approx(limit, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("heun", {}, 2),
        ("dpm-solver", {"order": 2}, 2),
        ("deis", {"order": 3, "variant": "rhork"}, 3),
        ("unipc", {"order": 2, "space": "noise", "lower_order_final": False}, 3),
        ("adams", {"order": 2, "space": "noise"}, 2),
    ],
)
def test_short_steps_keep_their_order_near_pure_noise(name, options: Options, order):
    schedule = VarianceExploding(0.5, 3e4)
    denoise = exact_denoiser(GAUSSIAN, schedule)
    start, end = node_at(schedule, 3e4), node_at(schedule, 300.0)
    assert start.alpha / start.sigma < end.alpha / end.sigma < DEEP
    # Only what the step does to the data is of interest, not to the noise 10^4 times as large.
    x = start.sigma * normal(3, 4, seed=1)
    exact = GAUSSIAN.flow(start, x)(end)
    errors = []
    for nfe in (48, 96):
        plan = make_plan(
            name, schedule, nfe=nfe, spacing="logsnr", t_start=start.t, t_end=end.t, **options
        )
        errors.append(float((sample(denoise, x, plan) - exact).norm()))
    assert errors[0] / errors[1] > 2 ** (order - 0.5)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "deis", "dpm-solver"])
def test_networks_that_predict_noise_need_a_digit_of_signal(solver, prediction):
    """x0 = (x - sigma eps) / alpha: below the rounding of x nothing is left of it."""
    for dtype, distance in ((torch.float32, 1e-8), (torch.float16, 1e-9), (torch.float64, 1e-17)):
        schedule = nearly_zero_terminal(distance)
        plan = make_plan(solver, schedule, nfe=6)
        denoise = exact_denoiser(GAUSSIAN, schedule, prediction)
        for run in (sample, sample_parallel):
            with pytest.raises(ValueError, match=f"prediction='{prediction}'.*v_prediction"):
                run(denoise, normal(3, 4, dtype=dtype), plan)
        with pytest.raises(ValueError, match=f"prediction='{prediction}'.*v_prediction"):
            sample_adaptive(denoise, normal(3, 4, dtype=dtype), schedule)
    schedule = nearly_zero_terminal(1e-6)
    plan = make_plan(solver, schedule, nfe=6, t_end=0.0)
    exact = sample(exact_denoiser(GAUSSIAN, schedule, "v_prediction"), normal(3, 4), plan)
    result = sample(exact_denoiser(GAUSSIAN, schedule, prediction), normal(3, 4), plan)
    torch.testing.assert_close(result, exact, rtol=0, atol=1e-8)


def test_times_a_rounding_above_the_end_are_the_end():
    schedule = FlowMatching()
    plan = make_plan("heun", schedule, times=[1 + 2e-16, 0.5, 0.0])
    assert plan.rows[0].node[:3] == (1.0, 0.0, 1.0)
