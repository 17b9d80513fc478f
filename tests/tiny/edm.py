"""Pipelines with EDM's preconditioning or continuous noise levels."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from .family import family, image, normal


@family(
    "svd",
    "StableVideoDiffusionPipeline",
    "v, scaled_linear, continuous times, Karras 700 to 0.002",
    stock={"euler": ("EulerDiscreteScheduler", {})},
)
def svd() -> Any:
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,  # to which the pipeline resizes
            intermediate_size=16,
            patch_size=56,
        )
    )
    network = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        timestep_spacing="leading",
        steps_offset=1,
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,), force_upcast=False),
        image_encoder=encoder,
        unet=network,
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    )
    picture = Image.fromarray((255 * image()[0].movedim(0, 2)).byte().numpy())
    given = {"image": picture, "num_frames": 2, "min_guidance_scale": 1.0, "fps": 7}
    return pipe, lambda: given | {"height": 8, "width": 8, "max_guidance_scale": 2.5}


@family(
    "stable-audio",
    "StableAudioPipeline",
    "EDM-preconditioned v, sigma_data 1",
    network="transformer",
    stock={
        "euler": ("EDMEulerScheduler", {}),
        "dpm-solver++": ("EDMDPMSolverMultistepScheduler", {}),
    },
)
def stable_audio() -> Any:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    transformer = diffusers.StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    codec = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    pipe = diffusers.StableAudioPipeline(
        vae=codec,
        text_encoder=None,
        projection_model=projection,
        tokenizer=None,
        transformer=transformer,
        scheduler=scheduler,
    )
    given = {"prompt_embeds": normal(1, 5, 16), "negative_prompt_embeds": normal(1, 5, 16, seed=1)}
    seen = torch.ones(1, 5, dtype=torch.long)
    return (
        pipe,
        lambda: (
            given
            | {
                "attention_mask": seen,
                "negative_attention_mask": seen,
                "audio_end_in_s": 2.0,
            }
        ),
    )
