"""Subjects: starts by seed and index, evaluations counted at the network, models told apart."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from logsnr.benchmarks.embedded import DIGITS
from logsnr.benchmarks.embedded.models import FACES
from logsnr.benchmarks.harness.contenders import parse_contender
from logsnr.benchmarks.harness.subjects import sample_seed
from logsnr.benchmarks.harness.subjects.analytic import analytic, six_gaussians
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.benchmarks.harness.subjects.folders import edm_subject, unet_subject, weights_digest
from logsnr.benchmarks.harness.subjects.pipeline import PipelineSubject


def nothing():
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One tiny network: as a pipeline, in one place with its scheduler's config, and alone."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    base = tmp_path_factory.mktemp("models")
    scheduler = DDPMScheduler(clip_sample=False)
    DDPMPipeline(unet, scheduler).save_pretrained(base / "pipeline")
    unet.save_pretrained(base / "together")
    scheduler.save_pretrained(base / "together")
    unet.save_pretrained(base / "alone")
    return base


def test_a_folder_with_a_unet_is_a_network(folders):
    subject, alone = (unet_subject(str(folders / name)) for name in ("pipeline", "together"))
    assert alone.weights == subject.weights and subject.shape == (3, 8, 8)
    ours = subject.run(parse_contender("ddim:spacing=trailing"), 10, 0, [2, 5], nothing)
    theirs = alone.run(parse_contender("DDIM:trailing"), 10, 0, [2, 5], nothing)
    torch.testing.assert_close(ours.x, theirs.x, atol=1e-1, rtol=1e-3)
    # And both are what a loop over diffusers' own scheduler gives.
    config = {"set_alpha_to_one": False, "timestep_spacing": "trailing", "clip_sample": False}
    scheduler = DDIMScheduler.from_config(DDPMScheduler().config, **config)
    scheduler.set_timesteps(10)
    rng = (torch.Generator().manual_seed(sample_seed(0, index)) for index in (2, 5))
    x = torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in rng])
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(subject.network(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(theirs.x, x, atol=1e-4, rtol=1e-5)


def test_models_are_told_apart_by_all_of_their_weights(folders):
    subject = unet_subject(str(folders / "pipeline"))
    before = subject.weights
    last = list(subject.network.parameters())[-1]
    with torch.no_grad():
        last.view(-1)[-1] += 1e-6
    assert weights_digest(subject.network) != before


@pytest.mark.parametrize(
    ("folder", "says"), [("nowhere", "no such folder"), ("alone", "it has no scheduler_config")]
)
def test_what_is_missing_of_a_model_is_named(folders, folder, says):
    with pytest.raises(ValueError, match=says):
        unet_subject(str(folders / folder))


def gaussian(s=0.5):
    """D(x; sigma) of N(0, s^2)."""
    return lambda x, sigma: x * (s**2 / (s**2 + sigma.view(-1, 1) ** 2))


def test_a_network_of_edm_ends_at_the_closed_form():
    """For N(0, s^2), x / sqrt(s^2 + sigma^2) is constant along the ODE."""
    s, subject = 0.5, edm_subject(f"{__name__}:gaussian", shape=(4,))
    z = subject.starts(3, range(2))
    found = subject.converged(60, 3, range(2), nothing)
    high, low = subject.schedule.sigma(subject.schedule.t_start), 0.002
    start = z * math.sqrt(1 + high**2)
    exact = start * math.sqrt((s**2 + low**2) / (s**2 + high**2))
    torch.testing.assert_close(found.x, exact, atol=1e-3, rtol=1e-3)
    assert found.nfe_counted == 60


def test_schedulers_are_told_of_flow_matching_or_refused():
    """Those of diffusers take the faces for a model of training steps if nobody says otherwise."""
    subject = embedded_subject(FACES)
    truth = subject.converged(30, 0, [0], nothing).x
    for text in ("stock", "UniPCMultistep", "DPMSolverMultistep", "PlanScheduler"):
        found = subject.run(parse_contender(text), 8, 0, [0], nothing)
        assert (found.x - truth).square().mean().sqrt() < 0.3 * truth.square().mean().sqrt()
        assert found.nfe_counted == 8
    with pytest.raises(ValueError, match="EulerDiscreteScheduler does not know models of flow"):
        subject.check(parse_contender("EulerDiscrete"), 8)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_is_told_apart_from_evaluations(guidance):
    subject = embedded_subject(DIGITS, guidance)
    seen = []
    handle = subject.network.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    for text in ("unipc", "heun", "UniPCMultistep", "HeunDiscrete"):
        seen.clear()
        run = subject.run(parse_contender(text), 4, 0, range(3), nothing)
        rows = sum(seen) / 3
        assert run.network_rows == rows and run.network_calls == len(seen)
        assert run.nfe_counted == rows / (1 if guidance == 1 else 2) <= 4
    handle.remove()


def test_a_sample_is_that_of_its_seed_and_index():
    for subject in (
        embedded_subject(DIGITS),
        analytic(six_gaussians(), DIGITS.schedule),
    ):
        many = subject.starts(5, range(7))
        assert torch.equal(subject.starts(5, [6, 2]), many[[6, 2]])
        assert not torch.equal(subject.starts(6, [0]), many[:1])
    whole = subject.run(parse_contender("ddim:eta=1.0"), 4, 5, range(7), nothing)
    part = subject.run(parse_contender("ddim:eta=1.0"), 4, 5, [6, 2], nothing)
    torch.testing.assert_close(part.x, whole.x[[6, 2]], atol=1e-12, rtol=0)
    assert whole.stochastic and (whole.x[0] - whole.x[1]).norm() > 0


class Pipe:
    """As much of a pipeline as a subject needs."""

    def __init__(self):
        self.unet = torch.nn.Linear(4, 4)
        self.scheduler = DDPMScheduler()
        self.components = {"unet": self.unet}
        self.prompts = []

    def __call__(self, prompt, num_inference_steps, generator):
        self.prompts.append(prompt)
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(1, 4, generator=generator)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x), t, x, return_dict=False)[0]
        return x


def test_prompts_take_turns_and_each_sample_is_a_call_of_its_own():
    subject = PipelineSubject("pipe", Pipe(), {}, {}, prompts=("fox", "owl"))
    found = subject.run(parse_contender("ddim"), 3, 1, range(3), nothing)
    assert subject.pipe.prompts == ["fox", "owl", "fox"] and found.x.shape == (3, 4)
    alone = subject.run(parse_contender("ddim"), 3, 1, [2], nothing)
    assert torch.equal(alone.x, found.x[2:]) and subject.pipe.prompts[-1] == "fox"
    assert found.nfe_counted == 3 and found.network_calls == 9
