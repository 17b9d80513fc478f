"""The Frechet distance against scipy's matrix square root, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from logsnr.benchmarks.metrics.features import Extractor, InceptionFeatures, rgb_bytes
from logsnr.benchmarks.metrics.frechet import (
    feature_statistics,
    fid,
    frechet_distance,
    gaussian_floor,
    real_against_real,
)
from logsnr.benchmarks.metrics.statistics import FeatureStatistics, merged


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
        ({"reference": normal(1, 4)}, r"images has shape \(1, 4\)"),
        ({"reference": normal(8, 5)}, "reference has 5 features; it must have 4"),
        ({"feature_network": nn.Identity()}, "feature_network is in training mode"),
        ({"feature_network": nn.Unflatten(1, (2, 2)).eval()}, r"gave shape \(1, 2, 2\)"),
        ({"feature_network": nn.Threshold(1e9, math.nan).eval()}, "output of feature_network"),
        ({"feature_network": "inception"}, "feature_network is 'inception'"),
        ({"feature_network": 100}, "feature_network is 100; it must be 64, 192, 768 or 2048"),
        ({"feature_network": None}, "feature_network is None"),
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
        ({"count": 0}, "count is 0"),
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
        patch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", Metric)
        network = InceptionFeatures(64)
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.99, 1.0]).expand(2, 1, 5, 5)
    assert network(levels)[0, :5].tolist() == [0, 0, 128, 254, 255]
    assert rgb_bytes(levels).shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"\(2, 2, 5, 5\)"):
        rgb_bytes(torch.zeros(2, 2, 5, 5))


def test_inception_without_its_extra_names_it(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ValueError, match=r"feature_network is 2048.*logsnr\[fid\]"):
        fid(torch.zeros(2, 3, 8, 8), 2048, torch.zeros(2, 3, 8, 8))


# What holds for every set


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dimension=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_parts_add_to_the_statistics_of_all(sizes, dimension, seed):
    features = normal(sum(sizes), dimension, seed=seed)
    parts = [FeatureStatistics.of(part, "x") for part in features.split(sizes)]
    whole, again = merged(parts), merged(parts)
    truth = features.numpy()
    assert whole.count == len(truth)
    assert whole.sum.numpy() == pytest.approx(truth.sum(0), rel=1e-13, abs=1e-13)
    assert whole.cov_sum.numpy() == pytest.approx(truth.T @ truth, rel=1e-13, abs=1e-13)
    assert torch.equal(whole.sum, again.sum) and torch.equal(whole.cov_sum, again.cov_sum)
    left = merged(parts[:1])
    for part in parts[1:]:  # what a merge resumed from a partial sum gives
        left = left + part
    assert torch.equal(whole.cov_sum, left.cov_sum)


def test_merging_refuses_what_does_not_belong_together():
    one = FeatureStatistics.of(normal(3, 2), "x")
    with pytest.raises(ValueError, match="'y'.*'x'"):
        one + FeatureStatistics.of(normal(3, 2), "y")
    with pytest.raises(ValueError, match="3 features"):
        one + FeatureStatistics.of(normal(3, 3), "x")
    with pytest.raises(ValueError, match="parts is empty"):
        merged([])


@pytest.mark.parametrize("shape", [(4,), (0, 3), (4, 0), (2, 3, 4)])
def test_statistics_want_vectors(shape):
    with pytest.raises(ValueError, match="features has shape"):
        FeatureStatistics.of(torch.zeros(shape), "x")


def test_a_single_sample_has_statistics_but_no_distance():
    one, two = (FeatureStatistics.of(normal(n, 3), "x") for n in (1, 2))
    with pytest.raises(ValueError, match="count is 1"):
        _ = one.covariance
    with pytest.raises(ValueError, match="samples has 1 sample"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match="reference has 1 sample"):
        frechet_distance(two, one)


def test_a_damaged_file_of_statistics_is_a_clear_error(tmp_path):
    path = tmp_path / "statistics.safetensors"
    FeatureStatistics.of(normal(8, 3), "x").save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="has no feature statistics"):
        FeatureStatistics.load(path)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), batch=st.integers(1, 80))
def test_order_and_batch_size_change_nothing_but_rounding(seed, batch):
    network = nn.Linear(5, 4).double().eval()
    samples, reference = normal(60, 5, seed=seed), normal(70, 5, seed=seed + 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    truth = fid(samples, network, reference).value
    assert fid(samples[order], network, reference, batch_size=batch).value == pytest.approx(
        truth, rel=1e-9
    )
    assert fid(reference, network, samples).value == pytest.approx(truth, rel=1e-9)


def test_real_features_against_themselves_fall_as_one_over_n():
    """To leading order the bias of two independent sets is proportional to 1/N + 1/M."""
    features = normal(4000, 8)
    few, many = (real_against_real(features, n, draws=6) for n in (100, 800))
    assert few.count == 6 and few.deviation is not None
    assert few.mean / many.mean == pytest.approx(
        (1 / 100 + 1 / 3900) / (1 / 800 + 1 / 3200), rel=0.15
    )


@pytest.mark.parametrize("count", [200, 1000])
def test_the_floor_of_statistics_is_that_of_their_gaussian(count):
    reference = FeatureStatistics.of(3 + normal(20_000, 6), "x")
    floor = gaussian_floor(reference, count, draws=16, seed=3)
    fresh = [
        frechet_distance(
            FeatureStatistics.of(3 + normal(count, 6, seed=10 + i), "x"), reference
        ).value
        for i in range(16)
    ]
    assert floor.mean == pytest.approx(np.mean(fresh), rel=0.3)


@pytest.mark.parametrize("count", [1, 21])
def test_errors_of_real_against_real(count):
    with pytest.raises(ValueError, match=f"count is {count}"):
        real_against_real(normal(40, 3), count)
    with pytest.raises(ValueError, match="features has 3 samples"):
        real_against_real(normal(3, 3), 2)


def test_features_of_a_float32_network_survive_float32():
    network = nn.Linear(4, 3).eval()
    features = Extractor.of(network, normal(6, 4))(normal(6, 4), batch_size=4)
    assert features.dtype == torch.float64
    assert torch.equal(features.float().double(), features)


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
