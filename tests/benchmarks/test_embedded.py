"""The embedded diffusion model and digit classifier, as they lie on disk."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors import safe_open
from torchmetrics.image.fid import FrechetInceptionDistance

from logsnr.benchmarks.embedded import (
    CLASSIFIER_FOLDER,
    DIGITS,
    EMBEDDED_MODELS,
    MODEL_FOLDER,
    NULL_LABEL,
    classifier_metadata,
    condition,
    embedded_model,
    load_classifier,
    load_feature_network,
    load_pipeline,
    load_reference_statistics,
    load_scheduler,
    load_scheduler_config,
    load_unet,
)
from logsnr.benchmarks.embedded.background import background_deviation, by_digit
from logsnr.benchmarks.embedded.classifiers import WEIGHTS_FILE
from logsnr.benchmarks.embedded.models import STATISTICS_FILE
from logsnr.benchmarks.embedded.quality import converged_samples
from logsnr.benchmarks.metrics.frechet import fid


def noise(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return load_unet()


@pytest.fixture(scope="module")
def generated() -> torch.Tensor:
    """Fifteen DDIM steps to each digit once or twice, (16, 1, 28, 28) in [-1, 1]."""
    pipe = load_pipeline(labels=[i % 10 for i in range(16)])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    images = pipe(batch_size=16, num_inference_steps=15, generator=rng, output_type="pt").images
    return 2 * images - 1


# Diffusion model


def test_the_model_is_small(unet):
    assert sum(p.numel() for p in unet.parameters()) <= 2_500_000
    files = [file for file in MODEL_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors"}


def test_the_unet_is_ready_for_inference(unet):
    assert not unet.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in unet.parameters())
    eps = unet(noise(), 500, class_labels=torch.tensor([3, NULL_LABEL])).sample
    assert eps.shape == (2, 1, 28, 28) and eps.dtype == torch.float32 and eps.isfinite().all()


def test_the_unet_in_float64_is_the_same_network(unet):
    double = load_unet(torch.float64)
    y = torch.tensor([3, NULL_LABEL])
    exact = double(noise().double(), 500, class_labels=y).sample
    assert exact.dtype == torch.float64
    assert (unet(noise(), 500, class_labels=y).sample - exact).abs().max() < 1e-4


def test_the_unet_predicts_noise(unet):
    """At a late time almost all of x is noise: the relative error must be far below 1."""
    x = noise(8)
    eps = unet(x, 990, class_labels=torch.full((8,), NULL_LABEL)).sample
    assert (eps - x).pow(2).mean() < 0.05


def test_the_schedule_is_the_trained_one():
    config = load_scheduler_config()
    scheduler = load_scheduler()
    assert isinstance(scheduler, DDPMScheduler)
    assert config["prediction_type"] == "epsilon" and not config["clip_sample"]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "guidance_scale"),
    [(None, 1.0)]
    + [(y, s) for y in (7, [1, 8], torch.tensor([0, NULL_LABEL])) for s in (0.0, 1.0, 2.5)],
)
def test_conditioning_is_the_guidance_formula(unet, labels, guidance_scale):
    y = torch.as_tensor(NULL_LABEL if labels is None else labels).expand(2)
    null = torch.full((2,), NULL_LABEL)
    hooked = load_unet()
    condition(hooked, labels, guidance_scale=guidance_scale)
    for t in (torch.tensor(400), torch.tensor([400, 20])):
        eps = unet(noise(), t, class_labels=y).sample
        eps_null = unet(noise(), t, class_labels=null).sample
        truth = eps_null + guidance_scale * (eps - eps_null)
        assert torch.allclose(hooked(noise(), t).sample, truth, atol=1e-5)
        given = hooked(sample=noise(), timestep=t, return_dict=False)
        assert isinstance(given, tuple) and torch.allclose(given[0], truth, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"labels": 11}, "labels is 11"),
        ({"labels": [3, -1]}, r"labels is \[3, -1\]"),
        ({"labels": 1.5}, "labels is 1.5"),
        ({"labels": []}, r"labels is \[\]"),
        ({"labels": [[1, 2]]}, r"labels is \[\[1, 2\]\]"),
        ({"guidance_scale": 2.0}, "labels is None"),
        ({"labels": 1, "guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_errors_of_conditioning(arguments, names):
    with pytest.raises(ValueError, match=names):
        condition(torch.nn.Identity(), **arguments)


def test_errors_at_the_call():
    unet = load_unet()
    condition(unet, [1, 2, 3])
    with pytest.raises(ValueError, match="labels has 3 entries; it must have 1 or 2"):
        unet(noise(), 10)
    with pytest.raises(ValueError, match="class_labels is"):
        unet(noise(3), 10, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("arguments", [{}, {"labels": [4, 2], "guidance_scale": 2.0}])
def test_the_stock_pipeline_runs(arguments):
    pipe = load_pipeline(**arguments)
    assert type(pipe) is DDPMPipeline
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    images = pipe(batch_size=2, num_inference_steps=2, generator=rng, output_type="pt").images
    assert images.shape == (2, 1, 28, 28) and images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0


def test_the_background_of_converged_digits_is_clean():
    """Black, as in the training images, where the deviation is .01 to .02; it was up to .11."""
    x, labels = converged_samples(DIGITS, 20, nfe=30)
    deviation = background_deviation(x, labels)
    assert deviation.median() < 0.02
    assert deviation.square().mean().sqrt() <= 0.04
    grey = background_deviation(x + 0.1, labels)
    assert (grey > 0.08).all()
    assert by_digit(deviation, labels)[3][1] == deviation[labels == 3].median()


# One interface


def test_models_are_found_by_name():
    assert EMBEDDED_MODELS and all(embedded_model(name).name == name for name in EMBEDDED_MODELS)
    with pytest.raises(ValueError, match="'digit'.*did you mean 'digits'"):
        embedded_model("digit")


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_denoiser_and_the_hooked_network_predict_alike(name, guidance):
    model = embedded_model(name)
    unet, hooked = model.load_unet(), model.load_unet()
    labels = model.turns(torch.tensor([3, 4]))
    model.condition(hooked, labels, guidance_scale=guidance)
    denoise = model.denoiser(labels, guidance=guidance, network=unet)
    x = model.starts(2, seed=5)
    t = denoise.schedule.time(torch.tensor(-0.5, dtype=torch.float64))
    out = denoise.evaluate(x, t)
    truth = hooked(x, denoise.network_time(t).to(x)).sample
    assert torch.allclose(out, truth, atol=1e-4)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_a_label_belongs_to_the_number_of_a_sample(name):
    model = embedded_model(name)
    numbers = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    together = model.turns(torch.arange(40))
    assert torch.equal(together[numbers], model.turns(numbers))
    assert (together != model.null_label).all() and together.max() < model.labels


# Classifier and features


def test_the_classifier_reached_its_accuracy():
    recorded = classifier_metadata()
    assert float(recorded["held_out_accuracy"]) >= 0.97
    assert int(recorded["held_out_digits"]) == 1000


def test_the_classifier_is_ready_for_inference():
    net = load_classifier()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert net(noise(3)).shape == (3, 10) and net(noise(3)).isfinite().all()


def test_the_classifier_recognises_generated_digits(generated):
    """Two independent networks agree on what a digit is; chance is 1 in 10."""
    found = load_classifier()(generated).argmax(dim=1)
    wanted = torch.arange(16) % 10
    assert (found == wanted).sum() >= 12


def test_the_statistics_belong_to_the_weights():
    with safe_open(CLASSIFIER_FOLDER / STATISTICS_FILE, framework="pt") as file:
        recorded = file.metadata()["weights_sha256"]
    weights = (CLASSIFIER_FOLDER / WEIGHTS_FILE).read_bytes()
    assert recorded == hashlib.sha256(weights).hexdigest()


def test_the_reference_statistics_are_moments():
    statistics = load_reference_statistics()
    assert statistics.count == 5000 and statistics.features == load_feature_network().metric_name
    assert statistics.sum.shape == (load_feature_network().num_features,)
    assert torch.linalg.eigvalsh(statistics.covariance).min() > 0


def test_torchmetrics_takes_the_feature_network():
    network = load_feature_network()
    metric = FrechetInceptionDistance(feature=network)
    for double in (False, True):
        if double:
            metric.set_dtype(torch.float64)  # converts the network, which then casts its input
        metric.reset()
        metric.update(noise(40, seed=1), real=True)
        metric.update(noise(40, seed=2), real=False)
        value = metric.compute()
        assert value.dtype == torch.float64
        if not double:
            ours = fid(noise(40, seed=2), network, noise(40, seed=1)).value
            assert value.item() == pytest.approx(ours, rel=1e-9)


def test_the_feature_network_stays_in_eval_mode():
    network = load_feature_network()
    assert not network.train().classifier.training
    before = network(noise())
    assert before.shape == (2, 32) and before.dtype == torch.float64
    assert torch.equal(network(noise()), before)
    assert torch.equal(network(3 * noise().sign()), network(noise().sign()))  # clipped
    with pytest.raises(ValueError, match=r"\(2, 3, 28, 28\)"):
        network(torch.zeros(2, 3, 28, 28))


def test_fid_ranks_digits_before_noise(generated):
    """With as few as 16 samples; the bias is noted."""
    network, reference = load_feature_network(), load_reference_statistics()
    good, bad = (fid(x, network, reference) for x in (generated, noise(16).clamp(-1, 1)))
    assert good.name == "MNIST-feature FID" and good.reference_samples == 5000
    assert good.note is not None and "16 samples" in good.note
    assert 0 < good.value < 0.5 * bad.value


def test_loading_needs_no_data_set_and_no_network():
    """In a process that can import no mlxtend and open no connection."""
    script = """
        import socket, sys
        def refuse(*args, **kwargs): raise OSError("no network in this test")
        socket.socket.connect = socket.getaddrinfo = refuse
        sys.modules["mlxtend"] = None
        from logsnr.benchmarks import embedded
        embedded.load_pipeline(labels=3)
        embedded.load_feature_network()
        embedded.load_reference_statistics()
    """
    subprocess.run([sys.executable, "-c", inspect.cleandoc(script)], check=True)
