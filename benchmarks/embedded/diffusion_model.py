"""Loaders of the embedded diffusion model: UNet, noise schedule, and an unmodified pipeline.

The UNet predicts epsilon at the integer times 0..999 of the schedule, for a label 0..9 or for
NULL_LABEL (unconditional). Stock pipelines such as DDPMPipeline call `unet(x, t)` and know no
labels, so hooks on the UNet add them, and classifier-free guidance with them:

    eps = eps(x, t, null) + guidance_scale (eps(x, t, label) - eps(x, t, null))

Reference: Ho and Salimans, "Classifier-free diffusion guidance" (2022), equation 6, where
guidance_scale = 1 + w. The recipe of the weights is train_unet.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

NULL_LABEL = 10
MODEL_FOLDER = Path(__file__).parent / "model"

Labels = int | Sequence[int] | Tensor | None


def load_unet(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> UNet2DModel:
    """The embedded UNet in eval mode, without gradients of its parameters.

    `unet(x, t, class_labels=y).sample` is the predicted epsilon: x (B, 1, 28, 28) with digits in
    [-1, 1], t a number or (B,) in 0..999, y (B,) integers in 0..10. The disk holds half precision.
    """
    unet = UNet2DModel.from_pretrained(
        MODEL_FOLDER,
        subfolder="unet",
        torch_dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,  # True needs accelerate, and warns without it
    )
    return unet.to(device).eval().requires_grad_(False)


def load_scheduler_config() -> dict[str, Any]:
    """The diffusers config of the training schedule: scaled linear betas, 1000 steps."""
    return dict(DDPMScheduler.load_config(MODEL_FOLDER, subfolder="scheduler"))


def load_scheduler() -> DDPMScheduler:
    """The ancestral scheduler of that config; `.config` builds any other diffusers scheduler."""
    return DDPMScheduler.from_config(load_scheduler_config())


def load_pipeline(
    labels: Labels = None,
    *,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DDPMPipeline:
    """A stock DDPMPipeline of the embedded model, conditioned as `condition` says.

    `load_pipeline(labels=3)(batch_size=4, num_inference_steps=50).images` are four threes. The
    scheduler may be replaced as in any pipeline.
    """
    unet = load_unet(dtype, device)
    condition(unet, labels, guidance_scale=guidance_scale)
    return DDPMPipeline(unet=unet, scheduler=load_scheduler())


def condition(unet: nn.Module, labels: Labels = None, *, guidance_scale: float = 1.0) -> None:
    """Hook a UNet2DModel so that a plain `unet(x, t)` is the conditional, guided prediction.

    labels: None (unconditional), one digit for all samples, or one label a sample, shape (B,);
        each in 0..9, or NULL_LABEL = 10 for an unconditional sample.
    guidance_scale: finite; 1 is the plain conditional prediction, more follows the label more
        closely. A value other than 1 runs the network on 2 B rows, and needs labels.

    Raises ValueError for anything else: here, or at the call for a batch of another length or
    for class_labels that the caller gives too.
    """
    chosen = _check_labels(labels)
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}; it must be finite")
    guided = guidance_scale != 1
    if guided and labels is None:
        raise ValueError(f"guidance_scale is {guidance_scale} but labels is None; it must be 1")

    def add_labels(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = ("sample", "timestep", "class_labels", "return_dict")
        call = dict(zip(names, args, strict=False)) | kwargs
        if call.get("class_labels") is not None:
            raise ValueError(
                f"class_labels is {call['class_labels']}; it must be None, for this UNet's labels "
                "were set when it was conditioned"
            )
        x, t = call["sample"], call["timestep"]
        if len(chosen) not in (1, len(x)):
            raise ValueError(f"labels has {len(chosen)} entries; it must have 1 or {len(x)}")
        y = chosen.to(x.device).expand(len(x))
        if guided:
            x, y = torch.cat([x, x]), torch.cat([torch.full_like(y, NULL_LABEL), y])
            if torch.is_tensor(t) and t.ndim == 1 and len(t) > 1:
                t = torch.cat([t, t])
        return (), call | {"sample": x, "timestep": t, "class_labels": y}

    def guide(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        null, labelled = output[0].chunk(2)
        eps = null + guidance_scale * (labelled - null)
        return (eps,) if isinstance(output, tuple) else type(output)(sample=eps)

    unet.register_forward_pre_hook(add_labels, with_kwargs=True)
    if guided:
        unet.register_forward_hook(guide)


def _check_labels(labels: Labels) -> Tensor:
    """The labels as integers of shape (1,) or (B,)."""
    chosen = torch.as_tensor(NULL_LABEL if labels is None else labels)
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    allowed = f"integers in 0..9, or {NULL_LABEL} for none, as one number or a list"
    if not whole or chosen.ndim > 1 or chosen.numel() == 0:
        raise ValueError(f"labels is {labels}; it must be {allowed}")
    if chosen.min() < 0 or chosen.max() > NULL_LABEL:
        raise ValueError(f"labels is {labels}; it must be {allowed}")
    return chosen.reshape(-1).long()
