"""Other models with discrete betas: PixArt, AnimateDiff, Kandinsky, CogVideoX."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .family import family, normal
from .stable_diffusion import STOCK, ddim, prompt, size, unet, vae

WITHOUT_UNIPC = {solver: STOCK[solver] for solver in ("ddim", "dpm-solver++")}
"""For pipelines that hand over a generator, which stock UniPC refuses."""


def pixart_transformer() -> diffusers.PixArtTransformer2DModel:
    return diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )


def masked_prompt() -> dict[str, Any]:
    seen = torch.ones(1, 5, dtype=torch.long)
    masks = {"prompt_attention_mask": seen, "negative_prompt_attention_mask": seen}
    return prompt() | masks | {"negative_prompt": None}


def pixart(pipeline: type) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=pixart_transformer(),
        scheduler=scheduler,
    )
    plain = {"use_resolution_binning": False, "clean_caption": False}
    return pipe, lambda: masked_prompt() | size() | plain


@family(
    "pixart-alpha", "PixArtAlphaPipeline", "epsilon, linear", network="transformer", stock=STOCK
)
def pixart_alpha() -> Any:
    return pixart(diffusers.PixArtAlphaPipeline)


@family(
    "pixart-sigma", "PixArtSigmaPipeline", "epsilon, linear", network="transformer", stock=STOCK
)
def pixart_sigma() -> Any:
    return pixart(diffusers.PixArtSigmaPipeline)


@family("animatediff", "AnimateDiffPipeline", "epsilon, linear", stock=STOCK)
def animatediff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(),
        motion_adapter=adapter,
        scheduler=ddim(beta_schedule="linear"),
    )
    return pipe, lambda: prompt() | size() | {"num_frames": 4}


@family(
    "kandinsky-2.2",
    "KandinskyV22Pipeline",
    "epsilon, linear, learned variance",
    stock=WITHOUT_UNIPC,
)
def kandinsky_22() -> Any:
    own = unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        class_embed_type=None,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=4,
    )
    scheduler = ddim(beta_schedule="linear", prediction_type="epsilon")
    pipe = diffusers.KandinskyV22Pipeline(unet=own, scheduler=scheduler, movq=movq())
    given = {"image_embeds": normal(1, 16), "negative_image_embeds": torch.zeros(1, 16)}
    return pipe, lambda: given | {"height": 16, "width": 16}


def movq() -> diffusers.VQModel:
    return diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_type="spatial",
        vq_embed_dim=4,
    )


@family("kandinsky-3", "Kandinsky3Pipeline", "epsilon, squaredcos_cap_v2", stock=WITHOUT_UNIPC)
def kandinsky_3() -> Any:
    own = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=16,
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    pipe = diffusers.Kandinsky3Pipeline(
        tokenizer=None, text_encoder=None, unet=own, scheduler=scheduler, movq=movq()
    )
    seen = {"attention_mask": torch.ones(1, 5), "negative_attention_mask": torch.ones(1, 5)}
    return pipe, lambda: prompt() | seen | {"height": 16, "width": 16}


@family(
    "cogvideox",
    "CogVideoXPipeline",
    "v, scaled_linear, zero terminal SNR, snr_shift_scale 3",
    network="transformer",
    stock={"ddim": ("CogVideoXDDIMScheduler", {})},
    note="CogVideoXDPMScheduler has a step of its own; any other scheduler gets the usual one",
)
def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=5,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
        clip_sample=False,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler
    )
    small = {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 5}
    return pipe, lambda: prompt() | small
