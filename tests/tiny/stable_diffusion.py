"""Stable Diffusion and its relatives: epsilon or v, scaled_linear betas, latents of 4x8x8."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch

from .family import family, image, normal, seeded

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
# SDXL's own scheduler. Euler's method in sigma / alpha is DDIM.
AS_EULER = STOCK | {"ddim": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"})}


def unet(**changed: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
            **changed,
        }
    )


def vae(**changed: Any) -> diffusers.AutoencoderKL:
    """One block: latents have the size of the image."""
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": [16],
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"],
            "latent_channels": 4,
            "norm_num_groups": 8,
            **changed,
        }
    )


def ddim(**changed: Any) -> diffusers.DDIMScheduler:
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return diffusers.DDIMScheduler(**{**SCALED_LINEAR, **fixed, **changed})


def prompt() -> dict[str, Any]:
    return {"prompt_embeds": normal(1, 5, 16), "negative_prompt_embeds": torch.zeros(1, 5, 16)}


def size() -> dict[str, int]:
    return {"height": 8, "width": 8}


def mask() -> torch.Tensor:
    """1 where the image is painted anew: the right half."""
    half = torch.zeros(1, 1, 8, 8)
    half[..., 4:] = 1
    return half


@cache
@seeded
def parts() -> dict[str, Any]:
    """Components of the plain pipeline."""
    return {
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@family("sd", "StableDiffusionPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd() -> Any:
    return diffusers.StableDiffusionPipeline(**parts()), lambda: prompt() | size()


@family(
    "sd-v",
    "StableDiffusionPipeline",
    "v, scaled_linear, zero terminal SNR",
    stock={"ddim": ("DDIMScheduler", {})},
    note="`timestep_spacing='trailing'`, `rescale_betas_zero_snr=True`",
)
def sd_v() -> Any:
    scheduler = ddim(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = diffusers.StableDiffusionPipeline(**parts() | {"scheduler": scheduler})
    return pipe, lambda: prompt() | size() | {"guidance_rescale": 0.7}


@family("sd-img2img", "StableDiffusionImg2ImgPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_img2img() -> Any:
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts())
    return pipe, lambda: prompt() | {"image": image(), "strength": 1.0}


@family("sd-inpaint", "StableDiffusionInpaintPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_inpaint() -> Any:
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts())
    given = {"image": image(), "mask_image": mask()}
    return pipe, lambda: prompt() | size() | given


@family("sd-inpaint-9", "StableDiffusionInpaintPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_inpaint_9() -> Any:
    own = {"unet": unet(in_channels=9), "scheduler": ddim()}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts() | own)
    given = {"image": image(), "mask_image": mask()}
    return pipe, lambda: prompt() | size() | given


@family("sd-depth2img", "StableDiffusionDepth2ImgPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_depth2img() -> Any:
    pipe = diffusers.StableDiffusionDepth2ImgPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(in_channels=5),
        scheduler=ddim(),
        depth_estimator=None,
        feature_extractor=None,
    )
    given = {"image": image(), "depth_map": image(1, 8, 8), "strength": 1.0}
    return pipe, lambda: prompt() | given


@family(
    "sd-upscale",
    "StableDiffusionUpscalePipeline",
    "v, scaled_linear",
    stock=STOCK,
    note="`low_res_scheduler` stays the stock one",
)
def sd_upscale() -> Any:
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=vae(scaling_factor=0.08333),
        text_encoder=None,
        tokenizer=None,
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(**SCALED_LINEAR),
        scheduler=ddim(prediction_type="v_prediction"),
        max_noise_level=350,
    )
    return pipe, lambda: prompt() | {"image": image()}


@family("sd-controlnet", "StableDiffusionControlNetPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_controlnet() -> Any:
    own = unet()
    controlnet = diffusers.ControlNetModel.from_unet(
        own, conditioning_channels=3, conditioning_embedding_out_channels=(16,)
    )
    for parameter in controlnet.parameters():  # its last layers are zeros until it is trained
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    changed = {"unet": own, "controlnet": controlnet, "scheduler": ddim()}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts() | changed)
    return pipe, lambda: prompt() | size() | {"image": image()}


@family("sd-t2i-adapter", "StableDiffusionAdapterPipeline", "epsilon, scaled_linear", stock=STOCK)
def sd_t2i_adapter() -> Any:
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=1
    )
    own = unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    changed = {"adapter": adapter, "unet": own, "scheduler": ddim()}
    pipe = diffusers.StableDiffusionAdapterPipeline(**parts() | changed)
    return pipe, lambda: prompt() | size() | {"image": image()}


def sdxl_unet() -> diffusers.UNet2DConditionModel:
    return unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
    )


@cache
@seeded
def sdxl_parts() -> dict[str, Any]:
    euler = diffusers.EulerDiscreteScheduler(
        **SCALED_LINEAR, timestep_spacing="leading", steps_offset=1
    )
    return {
        "vae": vae(force_upcast=False),
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": sdxl_unet(),
        "scheduler": euler,
        "add_watermarker": False,
    }


def sdxl_prompt() -> dict[str, Any]:
    pooled = {
        "pooled_prompt_embeds": normal(1, 32),
        "negative_pooled_prompt_embeds": torch.zeros(1, 32),
    }
    return prompt() | pooled


@family("sdxl", "StableDiffusionXLPipeline", "epsilon, scaled_linear", stock=AS_EULER)
def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(**sdxl_parts()), lambda: sdxl_prompt() | size()


@family(
    "sdxl-img2img",
    "StableDiffusionXLImg2ImgPipeline",
    "epsilon, scaled_linear",
    stock=AS_EULER,
)
def sdxl_img2img() -> Any:
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**sdxl_parts())
    return pipe, lambda: sdxl_prompt() | {"image": image(), "strength": 1.0}
