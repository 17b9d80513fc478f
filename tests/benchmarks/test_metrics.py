"""Metrics against independent truths: numpy, scipy's matrix square root, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from logsnr.benchmarks.metrics import distances as metrics
from logsnr.benchmarks.metrics.distances import (
    FeatureStatistics,
    feature_statistics,
    fid,
    psnr,
    psnr_per_sample,
    rmse,
    rmse_per_sample,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frechet(mean_1, covariance_1, mean_2, covariance_2) -> float:
    """The distance of two Gaussians by scipy's matrix square root."""
    root = scipy.linalg.sqrtm(covariance_1 @ covariance_2)
    return float(
        np.sum((mean_1 - mean_2) ** 2) + np.trace(covariance_1 + covariance_2 - 2 * root.real)
    )


def exact_gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int) -> torch.Tensor:
    """`count` points whose sample mean and unbiased covariance are exactly those given."""
    z = normal(count, len(mean))
    z = z - z.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (count - 1)))
    return z @ whiten.T @ torch.linalg.cholesky(covariance).T + mean


def vectors() -> nn.Module:
    return nn.Identity().eval()


# RMSE and PSNR


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


# Frechet distance


@settings(max_examples=15, deadline=None)
@given(dimension=st.integers(1, 12), extra=st.integers(2, 80), seed=st.integers(0, 100))
def test_fid_of_known_gaussians(dimension, extra, seed):
    factors = normal(2, dimension, dimension, seed=seed)
    covariances = factors @ factors.mT + 0.1 * torch.eye(dimension)
    means = 3 * normal(2, dimension, seed=seed + 1)
    sets = [exact_gaussian(means[i], covariances[i], dimension + extra) for i in range(2)]
    truth = frechet(
        means[0].numpy(), covariances[0].numpy(), means[1].numpy(), covariances[1].numpy()
    )
    result = fid(sets[0], vectors(), sets[1], batch_size=7)
    assert result.value == pytest.approx(truth, rel=1e-6, abs=1e-6)
    assert (result.samples, result.reference_samples) == (dimension + extra,) * 2


def test_fid_of_commuting_gaussians_is_the_closed_form():
    """For diagonal covariances: |m_1 - m_2|^2 + sum (s_1 - s_2)^2 of the deviations s."""
    mean, other_mean = torch.tensor([1.0, -2.0, 0.5]).double(), torch.zeros(3).double()
    deviation = torch.tensor([1.0, 3.0, 0.2]).double()
    other_deviation = torch.tensor([2.0, 1.0, 0.2]).double()
    samples = exact_gaussian(mean, torch.diag(deviation**2), 64)
    reference = exact_gaussian(other_mean, torch.diag(other_deviation**2), 50)
    truth = (1 + 4 + 0.25) + (1 + 4 + 0)
    assert fid(samples, vectors(), reference).value == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("count", [2, 8, 64])
def test_fid_with_few_samples_and_singular_covariances(count):
    """tr (C_1 C_2)^(1/2) is the nuclear norm of L_1^T L_2 for C = L L^T: no root of a matrix."""
    samples, reference = normal(count, 16).numpy(), (1 + 2 * normal(100, 16, seed=1)).numpy()
    roots = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (samples, reference)]
    truth = np.sum((samples.mean(0) - reference.mean(0)) ** 2)
    truth += sum(np.sum(root**2) for root in roots)
    truth -= 2 * np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    result = fid(torch.as_tensor(samples), vectors(), torch.as_tensor(reference))
    assert result.value == pytest.approx(truth, rel=1e-6)


def test_a_float32_network_gives_a_float64_distance():
    """Equal statistics cancel to the rounding of float64, not that of the network's float32."""
    network = nn.Linear(5, 4).eval()
    samples = normal(300, 5)
    assert abs(fid(samples, network, samples).value) < 1e-12
    assert network.weight.dtype == torch.float32


def test_statistics_replace_the_images(tmp_path):
    samples, reference = normal(64, 6), normal(80, 6, seed=1)
    statistics = feature_statistics(reference, vectors(), batch_size=11)
    assert statistics.mean.numpy() == pytest.approx(reference.numpy().mean(0), abs=1e-13)
    covariance = np.cov(reference.numpy(), rowvar=False)
    assert statistics.covariance.numpy() == pytest.approx(covariance, abs=1e-12)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "statistics.safetensors")
    assert loaded.count == 80 and loaded.features == statistics.features
    assert torch.equal(loaded.sum, statistics.sum)
    assert torch.equal(loaded.cov_sum, statistics.cov_sum)
    exact = fid(samples, vectors(), reference).value
    assert fid(samples, vectors(), loaded).value == pytest.approx(exact, rel=1e-12)


def test_a_low_count_is_noted():
    reference = normal(500, 4, seed=1)
    assert fid(normal(40, 4), vectors(), reference).note is None
    low = fid(normal(39, 4), vectors(), reference).note
    assert low is not None and "39 samples for 4" in low and "singular" not in low
    assert "singular" in (fid(normal(4, 4), vectors(), reference).note or "")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"samples": normal(1, 4)}, r"samples has shape \(1, 4\).*N >= 2"),
        ({"samples": normal(4)}, r"samples has shape \(4,\)"),
        ({"samples": normal(4, 4) / 0}, "samples has 16 values that are not finite"),
        ({"samples": torch.zeros(4, 4, dtype=torch.uint8)}, "samples has dtype torch.uint8"),
        ({"reference": None}, "reference is None"),
        ({"reference": normal(1, 4)}, r"images has shape \(1, 4\)"),
        ({"reference": normal(8, 5)}, "reference has 5 features; it must have 4"),
        ({"feature_network": nn.Identity()}, "feature_network is in training mode"),
        ({"feature_network": nn.Unflatten(1, (2, 2)).eval()}, r"gave shape \(1, 2, 2\)"),
        ({"feature_network": nn.Threshold(1e9, math.nan).eval()}, "output of feature_network"),
        ({"feature_network": "inception"}, "feature_network is 'inception'"),
        ({"feature_network": 100}, "feature_network is 100; it must be 64, 192, 768 or 2048"),
        ({"feature_network": None}, r"samples has shape .*\(N, 1, 28, 28\)"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_errors_of_fid(arguments, names):
    given = {"samples": normal(8, 4), "feature_network": vectors(), "reference": normal(8, 4)}
    with pytest.raises(ValueError, match=names):
        fid(**(given | arguments))


def test_statistics_of_another_network_are_refused():
    statistics = feature_statistics(normal(8, 4), vectors())
    with pytest.raises(ValueError, match="Identity-feature FID.*Linear-feature FID"):
        fid(normal(8, 4), nn.Linear(4, 4).eval(), statistics)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"sum": torch.zeros(3)}, r"\(3,\) and \(2, 2\)"),
        ({"sum": torch.zeros(2)}, "sum has dtype torch.float32"),
        ({"cov_sum": torch.full((2, 2), math.nan).double()}, "cov_sum has 4 values"),
        ({"count": 1}, "count is 1"),
    ],
)
def test_errors_of_statistics(changed, names):
    given = {"sum": torch.zeros(2).double(), "cov_sum": torch.eye(2).double(), "count": 5}
    with pytest.raises(ValueError, match=names):
        FeatureStatistics(**(given | changed), features="test")


def test_inception_takes_bytes_of_three_channels(monkeypatch):
    """The network itself needs a download, so a stand-in checks what it would be given."""

    class Stub(nn.Module):
        def forward(self, images):
            assert images.dtype == torch.uint8 and images.shape[1:] == (3, 5, 5)
            return images.float().flatten(1)[:, :64]

    class Metric:
        def __init__(self, feature):
            assert feature == 64
            self.inception = Stub()

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "FrechetInceptionDistance", Metric)
        network = metrics.InceptionFeatures(64)
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.99, 1.0]).expand(2, 1, 5, 5)
    assert network(levels)[0, :5].tolist() == [0, 0, 128, 254, 255]
    assert metrics.rgb_bytes(levels).shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"\(2, 2, 5, 5\)"):
        metrics.rgb_bytes(torch.zeros(2, 2, 5, 5))


def _one_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    part = normal(64, 6)[:40] if rank == 0 else normal(64, 6)[40:]
    result = fid(part, vectors(), normal(80, 6, seed=1))
    value = torch.tensor([result.value, result.samples], dtype=torch.float64)
    torch.save(value, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_agree_with_one(tmp_path):
    torch.multiprocessing.spawn(_one_process, args=(str(tmp_path),), nprocs=2)
    truth = fid(normal(64, 6), vectors(), normal(80, 6, seed=1)).value
    for rank in range(2):
        value, samples = torch.load(tmp_path / f"{rank}.pt", weights_only=True).tolist()
        assert value == pytest.approx(truth, rel=1e-12)
        assert samples == 64
