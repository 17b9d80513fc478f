"""Distances to a reference against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.benchmarks.metrics.distances import (
    psnr,
    psnr_per_sample,
    reference_error,
    rmse,
    rmse_per_sample,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_rmse_and_psnr_agree_with_numpy(shape, dtype, seed):
    x, reference = normal(*shape, seed=seed).to(dtype), normal(*shape, seed=seed + 1).to(dtype)
    error = (x.numpy().astype(np.float64) - reference.numpy().astype(np.float64)) ** 2
    each = error.reshape(shape[0], -1).mean(1)
    close = {"rel": 1e-12}
    assert rmse(x, reference) == pytest.approx(math.sqrt(error.mean()), **close)
    assert rmse_per_sample(x, reference).numpy() == pytest.approx(np.sqrt(each), **close)
    assert psnr(x, reference) == pytest.approx(10 * np.log10(4 / error.mean()), **close)
    assert psnr(x, reference, 5.0) == pytest.approx(10 * np.log10(25 / error.mean()), **close)
    assert psnr_per_sample(x, reference).numpy() == pytest.approx(10 * np.log10(4 / each), **close)


def test_aggregates_pool_the_error_over_samples():
    x = torch.stack([torch.zeros(3), torch.full((3,), 2.0)])
    reference = torch.zeros(2, 3)
    assert rmse_per_sample(x, reference).tolist() == [0, 2]
    assert rmse(x, reference) == pytest.approx(math.sqrt(2))
    assert psnr_per_sample(x, reference).tolist() == [math.inf, 0]
    assert psnr(x, reference) == pytest.approx(20 * math.log10(2 / math.sqrt(2)))
    assert psnr(reference, reference) == math.inf


@pytest.mark.parametrize("metric", [rmse, rmse_per_sample, psnr, psnr_per_sample])
@pytest.mark.parametrize(
    ("x", "reference", "names"),
    [
        (torch.zeros(2, 3), torch.zeros(3), r"x has shape \(2, 3\).*\(3,\)"),
        (torch.zeros(3), torch.zeros(3), r"x has shape \(3,\).*\(B, \*event\)"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "x has shape .* not empty"),
        (torch.tensor([[math.nan]]), torch.zeros(1, 1), "x has 1 values that are not finite"),
        (torch.zeros(1, 1), torch.tensor([[math.inf]]), "reference has 1 values"),
        (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), "x has dtype torch.int64"),
    ],
)
def test_errors_of_rmse_and_psnr(metric, x, reference, names):
    with pytest.raises(ValueError, match=names):
        metric(x, reference)


@pytest.mark.parametrize("data_range", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("metric", [psnr, psnr_per_sample])
def test_data_range_is_positive_and_finite(metric, data_range):
    with pytest.raises(ValueError, match=f"data_range is {data_range}"):
        metric(torch.ones(1, 1), torch.zeros(1, 1), data_range)


def test_the_summary_has_the_median_and_the_worst():
    reference = torch.zeros(4, 2)
    x = torch.tensor([1.0, 3.0, 2.0, 0.5])[:, None].expand(4, 2)
    error = reference_error(x, reference, error_bar=0.5)
    assert (error.median, error.worst, error.worst_sample) == (1.5, 3.0, 1)
    assert error.rmse == pytest.approx(math.sqrt((1 + 9 + 4 + 0.25) / 4))
    assert error.psnr == pytest.approx(psnr(x, reference))


@pytest.mark.parametrize(
    ("error_bar", "resolved"), [(None, False), (1.0, False), (0.5, True), (0.0, True)]
)
def test_a_reference_resolves_what_is_three_times_its_error(error_bar, resolved):
    error = reference_error(torch.full((1, 1), 2.0), torch.zeros(1, 1), error_bar=error_bar)
    assert error.resolved is resolved


@pytest.mark.parametrize("error_bar", [-1.0, math.nan, math.inf])
def test_error_bar_is_finite_and_not_negative(error_bar):
    with pytest.raises(ValueError, match="error_bar is"):
        reference_error(torch.ones(1, 1), torch.zeros(1, 1), error_bar=error_bar)
