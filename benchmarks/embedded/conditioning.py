"""Labels and guidance inside a UNet2DModel, for pipelines that know neither.

Stock pipelines such as DDPMPipeline call `unet(x, t)`. Hooks on the UNet add the labels, and
classifier-free guidance with them:

    out = out(x, t, null) + guidance_scale (out(x, t, label) - out(x, t, null))

Reference: Ho and Salimans, "Classifier-free diffusion guidance" (2022), equation 6, where
guidance_scale = 1 + w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Labels = int | Sequence[int] | Tensor | None


def add_condition(
    unet: nn.Module, labels: Labels, guidance_scale: float, *, count: int, null: int
) -> None:
    """Hook a UNet2DModel so that a plain `unet(x, t)` is the conditional, guided prediction.

    labels: None (unconditional), one label for all samples, or one a sample, shape (B,); each in
        0..count - 1, of which `null` is the unconditional one.
    guidance_scale: finite; 1 is the plain conditional prediction, more follows the label more
        closely. A value other than 1 runs the network on 2 B rows, and needs labels.

    Raises ValueError for anything else: here, or at the call for a batch of another length or
    for class_labels that the caller gives too.
    """
    chosen = check_labels(labels, count=count, null=null)
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
            x, y = torch.cat([x, x]), torch.cat([torch.full_like(y, null), y])
            if torch.is_tensor(t) and t.ndim == 1 and len(t) > 1:
                t = torch.cat([t, t])
        return (), call | {"sample": x, "timestep": t, "class_labels": y}

    def guide(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        free, labelled = output[0].chunk(2)
        out = free + guidance_scale * (labelled - free)
        return (out,) if isinstance(output, tuple) else type(output)(sample=out)

    unet.register_forward_pre_hook(add_labels, with_kwargs=True)
    if guided:
        unet.register_forward_hook(guide)


def check_labels(labels: Labels, *, count: int, null: int) -> Tensor:
    """The labels as integers of shape (1,) or (B,); ValueError if they are none."""
    chosen = torch.as_tensor(null if labels is None else labels)
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    allowed = f"integers in 0..{count - 1} ({null} for none), as one number or a list"
    if not whole or chosen.ndim > 1 or chosen.numel() == 0:
        raise ValueError(f"labels is {labels}; it must be {allowed}")
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"labels is {labels}; it must be {allowed}")
    return chosen.reshape(-1).long()
