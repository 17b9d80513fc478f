"""Distances of distributions beside the Frechet one, against their definitions written out."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from logsnr.benchmarks.metrics.kernel import kid
from logsnr.benchmarks.metrics.manifold import manifold
from logsnr.benchmarks.metrics.scores import inception_score
from logsnr.benchmarks.metrics.spread import Spread, spread
from logsnr.benchmarks.metrics.wasserstein import sliced_wasserstein


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(values: torch.Tensor, seed: int = 5) -> torch.Tensor:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]


SETS = st.tuples(st.integers(7, 30), st.integers(7, 30), st.integers(1, 6), st.integers(0, 99))


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 25), dimension=st.integers(1, 6), seed=st.integers(0, 99))
def test_kid_is_the_unbiased_discrepancy(count, dimension, seed):
    x, y = normal(count, dimension, seed=seed), 0.5 + normal(count, dimension, seed=seed + 1)
    total = 0.0
    for i in range(count):
        for j in range(count):
            k = [(float(a @ b) / dimension + 1) ** 3 for a, b in ((x[i], x[j]), (y[i], y[j]))]
            total += sum(k) / (count * (count - 1)) if i != j else 0
            total -= 2 * (float(x[i] @ y[j]) / dimension + 1) ** 3 / count**2
    result = kid(x, y)
    assert result.value == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert (result.subsets, result.subset_size, result.deviation) == (1, count, 0)


def test_kid_of_subsets_has_the_expectation_of_the_whole():
    x, y = normal(200, 3), normal(150, 3, seed=1) * 1.5
    whole = kid(x[:150], y).value
    state = torch.random.get_rng_state()
    parts = kid(x, y, subsets=300, subset_size=20)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert parts == kid(x, y, subsets=300, subset_size=20)
    assert (parts.subsets, parts.subset_size) == (300, 20)
    assert parts.value == pytest.approx(whole, abs=5 * parts.deviation / math.sqrt(300))


@settings(max_examples=25, deadline=None)
@given(sets=SETS, k=st.integers(1, 6), dense=st.integers(1, 6))
def test_the_manifold_metrics_are_their_definitions(sets, k, dense):
    count, other, dimension, seed = sets
    y, x = (
        normal(count, dimension, seed=seed).numpy(),
        normal(other, dimension, seed=77).numpy() * 2,
    )

    def radius(values, i, n):
        return sorted(np.linalg.norm(values - values[i], axis=1))[n]  # its own zero comes first

    def within(point, values, i, n):
        return np.linalg.norm(point - values[i]) <= radius(values, i, n) * (1 + 1e-12)

    result = manifold(
        torch.as_tensor(y), torch.as_tensor(x), neighbours=k, density_neighbours=dense
    )
    rows, columns = range(count), range(other)
    precision = np.mean([any(within(y[j], x, i, k) for i in columns) for j in rows])
    recall = np.mean([any(within(x[i], y, j, k) for j in rows) for i in columns])
    density = np.mean([sum(within(y[j], x, i, dense) for i in columns) / dense for j in rows])
    coverage = np.mean([any(within(y[j], x, i, dense) for j in rows) for i in columns])
    assert (result.precision, result.recall) == (precision, recall)
    assert (result.density, result.coverage) == (pytest.approx(density), coverage)


def test_density_and_coverage_of_one_distribution():
    """Density 1 and coverage 1 - (1 - C(...)) ~ 1 - 2^-k (Naeem et al. 2020, equation 7)."""
    result = manifold(normal(1500, 4), normal(1500, 4, seed=1))
    assert result.density == pytest.approx(1, abs=0.06)
    assert result.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_the_rows_in_memory_do_not_show(monkeypatch):
    y, x = normal(90, 3), normal(70, 3, seed=1)
    whole = manifold(y, x)
    monkeypatch.setattr("logsnr.benchmarks.metrics.manifold.CHUNK", 13)
    assert manifold(y, x) == whole == manifold(shuffled(y), shuffled(x))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 40), classes=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_score_is_its_definition(count, classes, seed):
    logits = 3 * normal(count, classes, seed=seed)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    truth = math.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), axis=1)))
    assert inception_score(logits).value == pytest.approx(truth, rel=1e-10)


def test_the_score_lies_between_one_and_the_number_of_classes():
    sure = 1e4 * torch.eye(5, dtype=torch.float64).repeat(4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inception_score(sure).value == pytest.approx(5)
    assert inception_score(torch.zeros(8, 5)).value == pytest.approx(1)
    assert inception_score(sure[:, :1].expand(-1, 2) * 1.0).value == pytest.approx(1)
    split = inception_score(sure, splits=4)
    assert split.splits == 4 and split.deviation is not None
    assert inception_score(sure).deviation is None


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 30), other=st.integers(1, 30), seed=st.integers(0, 99))
def test_in_one_dimension_it_is_the_transport_distance(count, other, seed):
    x, y = normal(count, 1, seed=seed), 0.3 + 2 * normal(other, 1, seed=seed + 1)
    truth = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, projections=3) == pytest.approx(truth, rel=1e-9)
    same = sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1), projections=3)
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(same, rel=1e-9)


def test_a_shift_is_seen_in_the_mean_over_directions():
    """|shift| sqrt(E cos^2) = |shift| / sqrt(D) for p = 2, exact for a large number of them."""
    x = normal(50, 4)
    shift = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64)
    value = sliced_wasserstein(x + shift, x, projections=20_000)
    assert value == pytest.approx(float(shift.norm()) / 2, rel=0.02)
    assert sliced_wasserstein(shuffled(x), x) == pytest.approx(0, abs=1e-14)
    images = normal(9, 1, 4, 4)
    assert sliced_wasserstein(images, images + 1) == sliced_wasserstein(images, images + 1)


@pytest.mark.parametrize("metric", [kid, manifold])
@pytest.mark.parametrize(
    ("samples", "reference", "names"),
    [
        (torch.zeros(1, 3), torch.zeros(9, 3), "samples has 1 samples"),
        (torch.zeros(9, 3), torch.zeros(1, 3), "reference has 1 samples"),
        (torch.zeros(9, 3), torch.zeros(9, 2), "samples have 3 features.*2"),
        (torch.full((9, 3), math.nan), torch.zeros(9, 3), "samples has 27 values"),
        (torch.zeros(9, 3), torch.full((9, 3), math.inf), "reference has 27 values"),
        (torch.zeros(9, 3, 1), torch.zeros(9, 3), r"samples has shape \(9, 3, 1\)"),
        (torch.zeros(9, 3, dtype=torch.int32), torch.zeros(9, 3), "samples has dtype"),
    ],
)
def test_errors_of_sets(metric, samples, reference, names):
    with pytest.raises(ValueError, match=names):
        metric(samples, reference)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda x: kid(x, x, subset_size=9), "subset_size is 9; it must be at most 8"),
        (lambda x: kid(x, x, subset_size=1), "subset_size is 1"),
        (lambda x: kid(x, x, subset_size=4, subsets=0), "subsets is 0"),
        (lambda x: manifold(x, x, neighbours=0), "neighbours is 0"),
        (lambda x: manifold(x, x, neighbours=8), "samples has 8 samples.*at least 9"),
        (lambda x: manifold(x, x, density_neighbours=2.5), "density_neighbours is 2.5"),
        (lambda x: inception_score(x[:, :1]), "2 classes"),
        (lambda x: inception_score(x, splits=9), "splits is 9"),
        (lambda x: sliced_wasserstein(x, x[:, :1]), r"samples has shape \(8, 2\).*\(1,\)"),
        (lambda x: sliced_wasserstein(x[0], x[0]), r"samples has shape \(2,\)"),
        (lambda x: sliced_wasserstein(x, x, p=3), "p is 3"),
        (lambda x: sliced_wasserstein(x, x / 0), "reference has .* not finite"),
        (lambda x: sliced_wasserstein(x, x, projections=0), "projections is 0"),
        (lambda x: spread([]), "values is empty"),
        (lambda x: spread([1.0, math.nan]), "values has nan"),
    ],
)
def test_errors_of_options(call, names):
    with pytest.raises(ValueError, match=names):
        call(normal(8, 2))


def test_spread_over_seeds():
    assert spread([1, 2, 6]) == Spread(3, pytest.approx(math.sqrt(7)), 1, 6, 3)
    assert spread([2.5]).deviation is None
    assert (str(spread([2.5])), str(spread([1, 2, 6]))) == ("2.5", "3 ± 2.6")
