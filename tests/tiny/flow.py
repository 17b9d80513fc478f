"""Flow-matching pipelines: images and videos whose network predicts the velocity."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch

from .family import family, image, normal, seeded
from .stable_diffusion import size, vae

EULER: dict[str, tuple[str, dict[str, Any]]] = {"ddim": ("FlowMatchEulerDiscreteScheduler", {})}
# Where a multistep scheduler is the pipeline's own, whose stock form tells the network whole times.
EULER_SHIFT_3 = {"ddim": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})}


def flow_euler(**changed: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**changed)


def dynamic(**changed: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """The shift depends on the size of the image."""
    return flow_euler(**{"shift": 3.0, "use_dynamic_shifting": True, **changed})


def guided(*shape: int) -> dict[str, Any]:
    return {"prompt_embeds": normal(*shape), "negative_prompt_embeds": torch.zeros(*shape)}


def masks() -> dict[str, torch.Tensor]:
    seen = torch.ones(1, 5, dtype=torch.long)
    return {"prompt_attention_mask": seen, "negative_prompt_attention_mask": seen}


@cache
@seeded
def sd3_parts() -> dict[str, Any]:
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
    own = vae(
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5
    )
    absent = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    absent += ["text_encoder_3", "tokenizer_3"]
    kept = {"transformer": transformer, "scheduler": flow_euler(shift=3.0), "vae": own}
    return kept | dict.fromkeys(absent)


def sd3_prompt() -> dict[str, Any]:
    pooled = {
        "pooled_prompt_embeds": normal(1, 32),
        "negative_pooled_prompt_embeds": torch.zeros(1, 32),
    }
    return guided(1, 5, 16) | pooled | size()


@family("sd3", "StableDiffusion3Pipeline", "flow, shift 3", network="transformer", stock=EULER)
def sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(**sd3_parts()), sd3_prompt


@family(
    "sd3-img2img",
    "StableDiffusion3Img2ImgPipeline",
    "flow, shift 3",
    network="transformer",
    stock=EULER,
)
def sd3_img2img() -> Any:
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**sd3_parts())
    return pipe, lambda: sd3_prompt() | {"image": image(), "strength": 1.0}


@cache
@seeded
def flux_parts() -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    own = vae(
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.36
    )
    absent = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    kept = {"transformer": transformer, "scheduler": dynamic(), "vae": own}
    return kept | dict.fromkeys(absent)


def flux_prompt() -> dict[str, Any]:
    return {"prompt_embeds": normal(1, 5, 16), "pooled_prompt_embeds": normal(1, 32)} | size()


@family("flux", "FluxPipeline", "flow, dynamic shift", network="transformer", stock=EULER)
def flux() -> Any:
    return diffusers.FluxPipeline(**flux_parts()), flux_prompt


@family(
    "flux-img2img",
    "FluxImg2ImgPipeline",
    "flow, dynamic shift",
    network="transformer",
    stock=EULER,
)
def flux_img2img() -> Any:
    pipe = diffusers.FluxImg2ImgPipeline(**flux_parts())
    return pipe, lambda: flux_prompt() | {"image": image(), "strength": 1.0}


@family(
    "wan",
    "WanPipeline",
    "flow, flow_shift 3 of UniPC",
    network="transformer",
    calls=2,
    stock=EULER_SHIFT_3,
    note="guidance calls the network twice a step",
)
def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer
    )
    return pipe, lambda: guided(1, 5, 16) | {"height": 32, "width": 32, "num_frames": 5}


@family(
    "ltx", "LTXPipeline", "flow, dynamic shift, shift_terminal", network="transformer", stock=EULER
)
def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    scheduler = dynamic(
        shift=1.0, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    pipe = diffusers.LTXPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer
    )
    small = {"height": 64, "width": 64, "num_frames": 9}
    return pipe, lambda: guided(1, 5, 16) | masks() | small


@family(
    "qwen-image",
    "QwenImagePipeline",
    "flow, dynamic shift, shift_terminal",
    network="transformer",
    calls=2,
    stock=EULER,
)
def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    scheduler = dynamic(shift=1.0, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    pipe = diffusers.QwenImagePipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer
    )
    seen = torch.ones(1, 5, dtype=torch.long)
    both = {"prompt_embeds_mask": seen, "negative_prompt_embeds_mask": seen}
    return pipe, lambda: guided(1, 5, 16) | both | {"height": 64, "width": 64}


@family(
    "z-image", "ZImagePipeline", "flow, shift 3, time reversed", network="transformer", stock=EULER
)
def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    pipe = diffusers.ZImagePipeline(
        scheduler=flow_euler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    given = {"prompt_embeds": [normal(5, 16)], "negative_prompt_embeds": [torch.zeros(5, 16)]}
    return pipe, lambda: given | {"height": 64, "width": 64}


@family(
    "lumina2",
    "Lumina2Pipeline",
    "flow, shift 6, time reversed",
    network="transformer",
    calls=2,
    stock=EULER,
)
def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=16,
    )
    pipe = diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow_euler(shift=6.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    return pipe, lambda: guided(1, 5, 16) | masks() | {"height": 64, "width": 64}


@family(
    "sana",
    "SanaPipeline",
    "flow, flow_shift 3 of DPM-Solver",
    network="transformer",
    stock=EULER_SHIFT_3,
)
def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler
    )
    plain = {"use_resolution_binning": False, "negative_prompt": None}
    return pipe, lambda: guided(1, 5, 16) | masks() | plain | {"height": 128, "width": 128}


@family("auraflow", "AuraFlowPipeline", "flow, shift 1.73", network="transformer", stock=EULER)
def auraflow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    pipe = diffusers.AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=transformer,
        scheduler=flow_euler(shift=1.73),
    )
    return pipe, lambda: guided(1, 5, 16) | masks() | {"height": 8, "width": 8}


@family(
    "hunyuan-video", "HunyuanVideoPipeline", "flow, shift 7", network="transformer", stock=EULER
)
def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=flow_euler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    given = {"prompt_embeds": normal(1, 5, 16), "pooled_prompt_embeds": normal(1, 8)}
    seen = {"prompt_attention_mask": torch.ones(1, 5, dtype=torch.long)}
    return pipe, lambda: given | seen | {"height": 32, "width": 32, "num_frames": 5}


@family("mochi", "MochiPipeline", "flow, inverted sigmas", network="transformer", stock=EULER)
def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    pipe = diffusers.MochiPipeline(
        scheduler=flow_euler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    small = {"height": 32, "width": 32, "num_frames": 7}
    return pipe, lambda: guided(1, 5, 16) | masks() | small
