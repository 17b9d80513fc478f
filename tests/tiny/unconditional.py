"""The older pipelines: DDPM, DDIM, DiT, LDM. They hand out decoded images only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from .family import family, image
from .stable_diffusion import STOCK, vae
from .stable_diffusion import ddim as scaled_ddim
from .stable_diffusion import unet as text_unet

PIXELS: dict[str, tuple[str, dict[str, Any]]] = {"ddim": ("DDIMScheduler", {})}


def unet(**changed: Any) -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            **changed,
        }
    )


@family("ddpm", "DDPMPipeline", "epsilon, linear", latent=False, stock=PIXELS)
def ddpm() -> Any:
    pipe = diffusers.DDPMPipeline(unet=unet(), scheduler=diffusers.DDPMScheduler(clip_sample=False))
    return pipe, lambda: {"output_type": "np"}


@family(
    "ddim",
    "DDIMPipeline",
    "epsilon, linear",
    latent=False,
    stock=PIXELS,
    note="its constructor replaces the scheduler: assign it afterwards",
)
def ddim() -> Any:
    pipe = diffusers.DDIMPipeline(unet=unet(), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    return pipe, lambda: {"output_type": "np"}


@family(
    "dit",
    "DiTPipeline",
    "epsilon, linear, learned variance",
    network="transformer",
    latent=False,
    stock=STOCK,
    note="steps the doubled batch of its guidance",
)
def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        norm_type="ada_norm_zero",
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler)
    return pipe, lambda: {"class_labels": [1], "output_type": "np"}


class Words(torch.nn.Module):
    """Stands for a text encoder: each word's embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.table = torch.nn.Embedding(8, width)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.table(ids),)


def tokens(texts: Any, **_: Any) -> Any:
    """Stands for a tokenizer: five tokens, 0 for an empty text."""
    texts = [texts] if isinstance(texts, str) else texts
    ids = torch.stack([torch.arange(5) * bool(text) for text in texts])
    return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


@family("ldm", "LDMTextToImagePipeline", "epsilon, scaled_linear", latent=False, stock=STOCK)
def ldm() -> Any:
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=vae(), bert=Words(16), tokenizer=tokens, unet=text_unet(), scheduler=scaled_ddim()
    )
    given = {"prompt": "a", "guidance_scale": 4.0, "height": 8, "width": 8, "output_type": "np"}
    return pipe, lambda: given


@family(
    "ldm-upscale", "LDMSuperResolutionPipeline", "epsilon, scaled_linear", latent=False, stock=STOCK
)
def ldm_upscale() -> Any:
    decoder = diffusers.VQModel(block_out_channels=(16,), norm_num_groups=8, latent_channels=3)
    pipe = diffusers.LDMSuperResolutionPipeline(
        vqvae=decoder, unet=unet(in_channels=6), scheduler=scaled_ddim()
    )
    return pipe, lambda: {"image": image(), "output_type": "np"}
