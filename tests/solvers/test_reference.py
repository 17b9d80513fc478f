"""Converged solutions against the closed form of the Gaussian flow, and their error bars."""

from __future__ import annotations

import pytest
import torch
from cases import GAUSSIAN, MIXTURE, RANGES, normal, start_states

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import Node, make_plan, reference_solution, sample


def node(schedule, t: float) -> Node:
    return Node(t, schedule.alpha(t), schedule.sigma(t))


def rms(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def solve(name: str, x: torch.Tensor, **options):
    range_ = RANGES[name]
    kind = "flow_prediction" if range_.from_pure_noise else "epsilon"
    denoise = exact_denoiser(GAUSSIAN, range_.schedule, kind)
    return reference_solution(denoise, x, range_.schedule, **range_.ends, **options)


def start(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Start states and the exact endpoint."""
    range_ = RANGES[name]
    first, last = (node(range_.schedule, t) for t in (range_.t_start, range_.t_end))
    x = first.alpha * GAUSSIAN.mean + first.sigma * normal(3, 4)
    return x, GAUSSIAN.flow(first, x)(last)


@pytest.mark.parametrize("rtol", [1e-5, 1e-9])
@pytest.mark.parametrize("name", RANGES)
def test_error_is_within_the_bar_and_the_bar_is_not_idle(name, rtol):
    x, exact = start(name)
    solution, bar = solve(name, x, rtol=rtol)
    error = rms(solution - exact)
    assert error <= bar
    assert bar <= 1e4 * rtol * max(1.0, rms(x))


def test_defaults_reach_nine_digits_in_float64_and_five_in_float32():
    x, exact = start("vp_linear")
    solution, _ = solve("vp_linear", x)
    assert rms(solution - exact) < 1e-8
    single, bar = solve("vp_linear", x.float())
    assert single.dtype == torch.float32
    assert rms(single - exact) < 1e-4 and bar < 1e-3


def test_any_data_prediction_will_do_and_the_start_is_left_alone():
    range_ = RANGES["vp_cosine"]
    denoise = exact_denoiser(MIXTURE, range_.schedule)
    x = start_states(range_.schedule, range_.t_start)
    kept = x.clone()
    by_denoiser, _ = reference_solution(denoise, x, range_.schedule, **range_.ends)
    by_function, _ = reference_solution(
        lambda x, t: denoise(x, t), x, range_.schedule, **range_.ends
    )
    assert torch.equal(by_denoiser, by_function) and torch.equal(x, kept)


def test_it_agrees_with_a_fine_run_of_an_independent_method():
    range_ = RANGES["vp_linear"]
    denoise = exact_denoiser(MIXTURE, range_.schedule)
    x = start_states(range_.schedule, range_.t_start)
    solution, _ = reference_solution(denoise, x, range_.schedule, **range_.ends)
    plan = make_plan("unipc", range_.schedule, nfe=800, lower_order_final=False, **range_.ends)
    assert rms(solution - sample(denoise, x, plan)) < 1e-7


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"t_start": 0.2, "t_end": 0.5}, "t_end"),
        ({"t_start": 1.5}, "t_start"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": 0.5}, "rtol"),
    ],
)
def test_bad_input_is_refused_by_name(options, name):
    schedule = RANGES["vp_linear"].schedule
    denoise = exact_denoiser(GAUSSIAN, schedule)
    with pytest.raises(ValueError, match=name):
        reference_solution(denoise, normal(2, 4), schedule, **options)
    assert denoise.network.times == []
