"""What each metric says of samples that are known to be bad: faces that no network has drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from logsnr.benchmarks.embedded.models import DIGITS, FACES
from logsnr.benchmarks.metrics.features import extract
from logsnr.benchmarks.metrics.frechet import frechet_distance
from logsnr.benchmarks.metrics.kernel import kid
from logsnr.benchmarks.metrics.manifold import manifold
from logsnr.benchmarks.metrics.scores import inception_score
from logsnr.benchmarks.metrics.statistics import FeatureStatistics
from logsnr.benchmarks.metrics.wasserstein import sliced_wasserstein

COUNT = 250


def blurred(x: Tensor, width: float) -> Tensor:
    """By a Gaussian of so many pixels."""
    kernel = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = pad(x, (6, 6, 6, 6), mode="replicate")
    x = conv2d(x, kernel, groups=x.shape[1])
    return conv2d(x, kernel.mT, groups=x.shape[1])


@pytest.fixture(scope="module")
def values():
    """Each metric of each set against the same real faces."""
    rng = torch.Generator().manual_seed(0)
    images, _ = FACES.load_images()
    images = images[torch.randperm(len(images), generator=rng)]
    real, reference = images[:COUNT], images[COUNT : 2 * COUNT]
    network = FACES.load_feature_network()
    theirs = extract(reference, network)
    red = real[:, 0].mean((1, 2))  # a part of the faces, by their colour

    def noisy(scale: float) -> Tensor:
        return real + scale * torch.randn(real.shape, generator=rng)

    sets = {
        "real": real,
        "blur .5": blurred(real, 0.5),
        "blur 1": blurred(real, 1.0),
        "noise .1": noisy(0.1),
        "noise .3": noisy(0.3),
        "dropped": real[red > red.median()],
        "as many": real[: COUNT // 2],
        "repeated": real[:10].repeat(COUNT // 10, 1, 1, 1),
        "no faces": 2 * torch.rand(real.shape, generator=rng) - 1,
    }
    found = {}
    for name, x in sets.items():
        ours = extract(x, network)
        statistics = [FeatureStatistics.of(each, "faces") for each in (ours, theirs)]
        found[name] = {
            "fid": frechet_distance(*statistics).value,
            "kid": kid(ours, theirs, subsets=20).value,
            **vars(manifold(ours, theirs)),
            "is": inception_score(network.logits(ours)).value,
            "swd": sliced_wasserstein(ours, theirs),
            "swd pixels": sliced_wasserstein(x, reference),
        }
    return found


CASES = [
    # metric, from better to worse
    ("fid", ["real", "blur .5", "blur 1", "no faces"]),
    ("fid", ["real", "noise .1", "noise .3", "no faces"]),
    ("fid", ["as many", "dropped"]),
    ("fid", ["real", "repeated"]),
    ("kid", ["real", "blur .5", "blur 1", "no faces"]),
    ("kid", ["real", "noise .1", "noise .3", "no faces"]),
    ("kid", ["real", "repeated"]),
    ("swd", ["real", "blur .5", "blur 1", "no faces"]),
    ("swd", ["real", "noise .1", "noise .3", "no faces"]),
    ("swd pixels", ["real", "noise .1", "noise .3", "no faces"]),
    ("swd pixels", ["as many", "dropped"]),
    ("recall", ["real", "blur .5", "blur 1", "no faces"]),
    ("recall", ["as many", "dropped"]),
    ("recall", ["real", "noise .3", "repeated"]),
    ("coverage", ["real", "blur 1", "repeated", "no faces"]),
    ("coverage", ["as many", "dropped"]),
    ("density", ["real", "no faces"]),
    ("is", ["real", "noise .3", "no faces"]),
    ("is", ["real", "blur 1", "no faces"]),
]


@pytest.mark.parametrize(("metric", "sets"), CASES, ids=lambda value: str(value))
def test_worse_samples_have_worse_values(values, metric, sets):
    found = [values[name][metric] for name in sets]
    falls = metric in ("recall", "coverage", "density", "is")
    assert found == sorted(found, reverse=falls), found
    assert found[0] != found[-1]


def test_precision_falls_as_samples_leave_the_data():
    """In Gaussian features; with few and heavy-tailed ones the largest balls hide it."""
    rng = torch.Generator().manual_seed(0)
    x, y, noise = torch.randn(3, 800, 6, dtype=torch.float64, generator=rng)
    found = [manifold(y + scale * noise, x).precision for scale in (0, 1, 3, 9)]
    assert found == sorted(found, reverse=True) and found[0] > 0.8 and found[-1] < 0.05


@pytest.mark.parametrize("model", [DIGITS, FACES], ids=lambda model: model.name)
def test_class_scores_come_from_the_features(model):
    """The scores of a classifier's own images are those of its forward pass."""
    classifier, network = model.load_classifier(), model.load_feature_network()
    images = model.starts(5).clamp(-1, 1)
    scores = network.logits(network(images)).softmax(1)
    heads = classifier(images)
    heads = [head.softmax(1) for head in (heads if isinstance(heads, list) else [heads])]
    assert scores.shape == (5, torch.tensor([head.shape[1] for head in heads]).prod())
    # each head is a marginal of the joint scores
    joint = scores.reshape(5, *(head.shape[1] for head in heads))
    for i, head in enumerate(heads, start=1):
        others = [axis for axis in range(1, len(heads) + 1) if axis != i]
        marginal = joint.sum(others) if others else joint
        torch.testing.assert_close(marginal, head, rtol=1e-4, atol=1e-5)
