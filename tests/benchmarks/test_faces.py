"""The embedded faces: labels, network, classifier, and the files they lie in."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.embedded import EMBEDDED_MODELS, embedded_model
from logsnr.benchmarks.embedded.face_labels import (
    ATTRIBUTES,
    NUM_LABELS,
    SHARES,
    face_attributes,
    face_label,
    face_turns,
    join_labels,
    split_labels,
)
from logsnr.benchmarks.embedded.models import FACES
from logsnr.benchmarks.embedded.quality import agreement, converged_samples
from logsnr.solvers import make_plan, sample

# Labels


def test_labels_and_attributes_are_one_to_one():
    labels = torch.arange(NUM_LABELS)
    assert torch.equal(join_labels(split_labels(labels)), labels)
    for label in (0, 1, 1234, NUM_LABELS - 1):
        assert face_label(**face_attributes(label)) == label
    assert face_label() == 0 == FACES.null_label
    assert face_attributes(face_label(hat="yes", skin="dark")) == {"skin": "dark", "hat": "yes"}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"glases": "yes"}, "'glases'.*glasses"),
        ({"hat": "maybe"}, "hat is 'maybe'.*'no', 'yes'"),
        ({"hat": True}, "hat is True"),
    ],
)
def test_unknown_attributes_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        face_label(**attributes)


@pytest.mark.parametrize("label", [-1, NUM_LABELS])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=str(label)):
        face_attributes(label)
    with pytest.raises(ValueError, match=str(label)):
        FACES.denoiser(label)


def test_turns_have_the_proportions_of_the_drawn_faces():
    """All of them set, each value as often as it is drawn, and independently of the others."""
    places = split_labels(face_turns(torch.arange(20_000))) - 1
    for index, shares in enumerate(SHARES.values()):
        found = torch.bincount(places[:, index], minlength=len(shares)) / len(places)
        assert torch.allclose(found, torch.tensor(shares), atol=2e-3)
    correlation = torch.corrcoef(places.double().T) - torch.eye(len(ATTRIBUTES))
    assert correlation.abs().max() < 0.02


# Classifier and real faces


def test_the_classifier_knows_faces_it_was_not_trained_on():
    images, labels = FACES.load_images()
    assert images.shape == (500, 3, 16, 16) and images.min() >= -1 and images.max() <= 1
    for name, share in agreement(FACES, images, labels).items():
        assert share >= (0.97 if name == "all attributes" else 0.98), name
    assert float(FACES.classifier_metadata()["held_out_accuracy"]) >= 0.98


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_reference_statistics_are_those_of_many_images(name):
    model = embedded_model(name)
    statistics, network = model.load_reference_statistics(), model.load_feature_network()
    covariance = statistics.covariance
    assert statistics.count == {"digits": 5000, "faces": 50_000}[name]
    assert statistics.features == network.metric_name
    assert covariance.shape == 2 * (network.num_features,)
    assert torch.equal(covariance, covariance.mT)
    assert torch.linalg.eigvalsh(covariance).min() > 0
    # 5,000 of the same images, in half precision
    few = model.load_reference_features()
    assert few.shape == (5000, network.num_features) and few.dtype == torch.float64
    deviation = covariance.diagonal().sqrt()
    assert ((few.mean(0) - statistics.mean).abs() < 5 * deviation / 5000**0.5).all()
    assert ((few.std(0) / deviation - 1).abs() < 0.1).all()


def test_features_of_other_real_faces_are_like_the_reference():
    images, _ = FACES.load_images()
    features, statistics = FACES.load_feature_network()(images), FACES.load_reference_statistics()
    error = (features.mean(0) - statistics.mean) / statistics.covariance.diagonal().sqrt()
    assert error.abs().max() < 5 / 500**0.5


# The network


def test_samples_show_what_their_labels_ask_for():
    x, labels = converged_samples(FACES, 24, nfe=12)
    found = agreement(FACES, x, labels)
    together = found.pop("all attributes")
    assert all(share > 0.75 for share in found.values()), found
    assert together > 0.5  # chance is 1 in 640
    assert x.min() > -1.5 and x.max() < 1.5


def test_an_attribute_alone_can_be_asked_for():
    labels = torch.tensor([face_label(hat="yes"), face_label(hat="no")]).repeat(6)
    denoise, x = FACES.denoiser(labels, guidance=2.0), FACES.starts(12)
    x = sample(denoise, x, make_plan("unipc", FACES.schedule, nfe=8))
    found = split_labels(FACES.load_classifier().classify(x))[:, list(ATTRIBUTES).index("hat")] - 1
    assert (found == torch.tensor([1, 0]).repeat(6)).sum() >= 10


def test_the_folder_is_a_stock_pipeline():
    pipe = DiffusionPipeline.from_pretrained(FACES.model_folder, low_cpu_mem_usage=False)
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    pipe.set_progress_bar_config(disable=True)
    FACES.condition(pipe.unet, face_label(hair="long"), guidance_scale=1.5)
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler.config)
    rng = torch.Generator().manual_seed(0)
    images = pipe(batch_size=2, num_inference_steps=3, generator=rng, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and images.std() > 0


# Files


def test_the_embedded_files_are_small_and_plain():
    folder = FACES.folder.parent
    files = [
        file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in str(file)
    ]
    assert sum(file.stat().st_size for file in files) <= 15_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors", ".py", ".mjs"}
