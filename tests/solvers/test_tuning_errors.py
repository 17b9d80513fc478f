"""Errors of plans, start by start, and the paired comparison of two of them."""

import math

import pytest
import torch

from logsnr.solvers import ClassifierFree, Denoiser, VPLinear, make_plan, sample
from logsnr.solvers.tuning.errors import better, distances, plan_errors, summary


def drawn(count, seed=0, spread=0.5):
    rng = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(count, generator=rng, dtype=torch.float64))


def test_the_errors_are_those_of_the_samples_whatever_the_batches_and_conditions():
    schedule = VPLinear()
    x = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = torch.arange(7.0, dtype=torch.float64).reshape(7, 1, 1)

    def network(x, t, mean):
        assert len(mean) == len(x)  # a condition is divided with its samples
        return 0.3 * x + mean

    condition, null = {"mean": means}, {"mean": -means}
    denoise = Denoiser(network, schedule, guidance=ClassifierFree(2.0, condition, null))
    plan = make_plan("ddim", schedule, nfe=4, t_end=1e-3)
    wanted = (sample(denoise, x, plan) - x).square().mean((1, 2)).sqrt()
    for size in (1, 3, 7, 64):
        assert torch.allclose(plan_errors(plan, denoise, x, x, batch_size=size), wanted, rtol=1e-12)


def test_a_run_that_breaks_is_infinitely_far_and_the_others_are_not():
    schedule = VPLinear()
    denoise = Denoiser(lambda x, t: torch.where(x > 2, torch.nan, x), schedule)
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    plan = make_plan("ddim", schedule, nfe=1, t_end=0.5)
    errors = plan_errors(plan, denoise, x, x)
    assert math.isfinite(errors[0]) and errors[1] == math.inf
    assert not better(errors, torch.ones(2, dtype=torch.float64)).better


def test_the_summary_is_that_of_the_definitions():
    e = drawn(101)
    found = summary(e)
    assert found.median == pytest.approx(float(torch.quantile(e, 0.5)))
    assert found.rmse == pytest.approx(float((e**2).sum() / 101) ** 0.5)
    assert found.log_mean == pytest.approx(float(e.prod()) ** (1 / 101))
    assert found.count == 101 and found.of("rmse") == found.rmse


@pytest.mark.parametrize("measure", ["log", "median", "rmse"])
def test_a_clear_gain_is_seen_and_a_tie_is_not(measure):
    old = drawn(64)
    assert better(0.6 * old * drawn(64, 1, 0.1), old, measure=measure).better
    assert not better(old, old, measure=measure).better
    assert not better(1.3 * old, old, measure=measure).better
    found = better(0.5 * old, old, measure=measure)
    assert found.ratio == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5) == found.high


@pytest.mark.parametrize("measure", ["log", "median", "rmse"])
def test_where_neither_is_better_one_in_twenty_is_taken_for_it(measure):
    wins = sum(
        better(drawn(24, 2 * k), drawn(24, 2 * k + 1), measure=measure).better for k in range(200)
    )
    assert wins <= 20  # 10 expected, deviation 3.1


def test_four_starts_convince_nobody():
    old = drawn(5)
    assert not better(0.01 * old[:4], old[:4]).better
    assert better(0.01 * old[:4], old[:4]).p_value == 1 / 16
    assert better(0.01 * old, old).better


def test_the_same_errors_get_the_same_answer():
    old, new = drawn(40), drawn(40, 1)
    torch.manual_seed(5)
    first = better(new, old)
    torch.manual_seed(6)
    assert better(new, old) == first


def test_what_is_wrong_with_the_input_is_named():
    e = drawn(3)
    with pytest.raises(ValueError, match="new has 3 errors, old 2"):
        better(e, e[:2])
    with pytest.raises(ValueError, match=r"confidence=1\.5: need a number in"):
        better(e, e, 1.5)
    with pytest.raises(ValueError, match=r"measure='mean': choose one of 'log'"):
        better(e, e, measure="mean")
    with pytest.raises(ValueError, match=r"errors=\[\]: need a tensor"):
        summary([])


def test_distances_are_per_start():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    found = distances(x, torch.zeros_like(x))
    assert found.tolist() == pytest.approx([math.sqrt(12.5), 0.0])
