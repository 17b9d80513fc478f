"""PlanScheduler inside real diffusers pipelines: the embedded model and tiny ones from configs."""

from __future__ import annotations

import diffusers
import pytest
import torch

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.embedded import NULL_LABEL, load_pipeline
from logsnr.solvers import SOLVERS

NFE = 4
DETERMINISTIC = sorted(set(SOLVERS) - {"dpm-solver-v3"})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def stable_diffusion() -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[16],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=8,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stable_diffusion_3() -> diffusers.StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[16],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds(*, pooled: bool = False) -> dict[str, torch.Tensor]:
    given = {
        "prompt_embeds": torch.randn(1, 5, 16, generator=generator()),
        "negative_prompt_embeds": torch.zeros(1, 5, 16),
    }
    if pooled:
        given["pooled_prompt_embeds"] = torch.randn(1, 32, generator=generator())
        given["negative_pooled_prompt_embeds"] = torch.zeros(1, 32)
    return given


class Calls:
    """Counts the calls of a network and keeps the times that it was told."""

    def __init__(self, network: torch.nn.Module):
        self.times: list[float] = []
        self.handle = network.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, network, args, kwargs) -> None:
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.times.append(float(torch.as_tensor(t).flatten()[0]))

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_) -> None:
        self.handle.remove()


def latents(pipe, scheduler=None, *, network=None, **kwargs):
    """The pipeline's latents with another scheduler, and the times its network was told."""
    own = pipe.scheduler
    pipe.scheduler = scheduler or own
    try:
        with Calls(network or pipe.unet) as calls:
            result = pipe(output_type="latent", generator=generator(), **kwargs).images
    finally:
        pipe.scheduler = own
    return result, calls.times


def text_to_image(pipe, scheduler=None, **kwargs):
    options = {"num_inference_steps": NFE, "guidance_scale": 4.0, **embeds(), **kwargs}
    return latents(pipe, scheduler, height=8, width=8, **options)


def test_the_embedded_model_in_its_own_pipeline():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    network = pipe.unet
    labels = torch.full((2,), NULL_LABEL)
    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "class_labels": labels}), with_kwargs=True
    )
    images = []
    ours = PlanScheduler.from_config(pipe.scheduler.config, solver="ddim")
    stock = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    for scheduler in (ours, stock):
        pipe.scheduler = scheduler
        with Calls(network) as calls:
            result = pipe(
                batch_size=2, num_inference_steps=NFE, output_type="np", generator=generator()
            )
        images.append(torch.from_numpy(result.images))
        assert len(calls.times) == NFE
    hook.remove()
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_stable_diffusion_spends_num_inference_steps_evaluations(stable_diffusion, solver):
    scheduler = PlanScheduler.from_config(stable_diffusion.scheduler.config, solver=solver)
    result, times = text_to_image(stable_diffusion, scheduler)
    assert len(times) == NFE and times == scheduler.timesteps.tolist()
    assert result.isfinite().all()
    assert torch.equal(result, text_to_image(stable_diffusion, scheduler)[0])


@pytest.mark.parametrize(
    "name, solver",
    [
        ("DDIMScheduler", "ddim"),
        ("DPMSolverMultistepScheduler", "dpm-solver++"),
        ("UniPCMultistepScheduler", "unipc"),
    ],
)
def test_stable_diffusion_agrees_with_stock(stable_diffusion, name, solver):
    config = stable_diffusion.scheduler.config
    ours = PlanScheduler.from_config(config, solver=solver)
    stock = getattr(diffusers, name).from_config(config)
    results = [
        text_to_image(stable_diffusion, item, num_inference_steps=8) for item in (ours, stock)
    ]
    assert results[0][1] == results[1][1]
    scale = float(results[1][0].abs().max())
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_image_to_image_starts_in_the_middle(stable_diffusion, solver):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **stable_diffusion.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler = PlanScheduler.from_config(pipe.scheduler.config, solver=solver)
    image = torch.rand(1, 3, 8, 8, generator=generator())
    result, times = latents(
        pipe, scheduler, image=image, strength=0.6, num_inference_steps=8, **embeds()
    )
    assert len(times) == 4 and times == scheduler.timesteps[4:].tolist()
    assert result.isfinite().all()


def test_a_callback_that_edits_latents_is_heard(stable_diffusion):
    """Latents that the callback sets at the end of a step are those the network sees next."""

    def callback(pipe, step, timestep, kwargs):
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 2 else {}

    seen = []
    hook = stable_diffusion.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].clone()), with_kwargs=True
    )
    scheduler = PlanScheduler.from_config(stable_diffusion.scheduler.config, solver="unipc")
    edited, _ = text_to_image(stable_diffusion, scheduler, callback_on_step_end=callback)
    hook.remove()
    assert not seen[3].any() and seen[2].any()
    assert not torch.equal(edited, text_to_image(stable_diffusion, scheduler)[0])


def test_a_pipeline_saves_and_loads_its_scheduler(stable_diffusion, tmp_path):
    own = stable_diffusion.scheduler
    solver = {"name": "dpm-solver++", "steps": "singlestep"}
    stable_diffusion.scheduler = PlanScheduler.from_config(own.config, solver=solver)
    try:
        before, _ = text_to_image(stable_diffusion)
        stable_diffusion.save_pretrained(tmp_path)
    finally:
        stable_diffusion.scheduler = own
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None
    )
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is PlanScheduler and loaded.scheduler.config.solver == solver
    assert torch.equal(text_to_image(loaded)[0], before)
    back = diffusers.DDIMScheduler.from_config(loaded.scheduler.config)
    assert all(back.config[key] == own.config[key] for key in own.config if key[0] != "_")


def flow_text_to_image(pipe, scheduler=None, **kwargs):
    options = {"num_inference_steps": NFE, **embeds(pooled=True), **kwargs}
    return latents(pipe, scheduler, network=pipe.transformer, height=8, width=8, **options)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_stable_diffusion_3(stable_diffusion_3, solver):
    scheduler = PlanScheduler.from_config(stable_diffusion_3.scheduler.config, solver=solver)
    result, times = flow_text_to_image(stable_diffusion_3, scheduler)
    assert times == scheduler.timesteps.tolist() and len(times) == NFE
    assert result.isfinite().all()


def test_stable_diffusion_3_with_ddim_is_flow_euler(stable_diffusion_3):
    scheduler = PlanScheduler.from_config(stable_diffusion_3.scheduler.config, solver="ddim")
    ours, our_times = flow_text_to_image(stable_diffusion_3, scheduler, num_inference_steps=8)
    stock, times = flow_text_to_image(stable_diffusion_3, num_inference_steps=8)
    assert our_times == pytest.approx(times, rel=2e-7)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_stable_diffusion_3_image_to_image(stable_diffusion_3, solver):
    parts = {
        key: value
        for key, value in stable_diffusion_3.components.items()
        if key not in ("image_encoder", "feature_extractor")
    }
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    scheduler = PlanScheduler.from_config(pipe.scheduler.config, solver=solver)
    image = torch.rand(1, 3, 8, 8, generator=generator())
    result, times = latents(
        pipe,
        scheduler,
        network=pipe.transformer,
        image=image,
        strength=0.5,
        num_inference_steps=8,
        height=8,
        width=8,
        **embeds(pooled=True),
    )
    assert len(times) == 4 and times == scheduler.timesteps[4:].tolist()
    assert result.isfinite().all()
    if solver == "ddim":
        expected, _ = latents(
            pipe,
            network=pipe.transformer,
            image=image,
            strength=0.5,
            num_inference_steps=8,
            height=8,
            width=8,
            **embeds(pooled=True),
        )
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
