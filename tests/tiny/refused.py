"""Pipelines whose protocol is not that of a solver. PlanScheduler refuses them and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers

from logsnr.adapters import PlanScheduler

from . import stable_diffusion as sd
from .family import image, normal, seeded, using
from .unconditional import unet


@dataclass(frozen=True)
class Refused:
    """``scheduler`` is the pipeline's own, ``error`` a part of ours.

    ``build`` makes the pipeline and the arguments of a call; None where the error comes from the
    scheduler's config already.
    """

    pipeline: str
    scheduler: Callable[[], Any]
    error: str
    why: str
    build: Callable[[], tuple[Any, dict[str, Any]]] | None = None

    def attempt(self) -> None:
        """Use PlanScheduler all the same."""
        scheduler = PlanScheduler.from_config(self.scheduler().config, solver="ddim")
        if self.build is None:
            scheduler.set_timesteps(4)
            return
        pipe, arguments = seeded(self.build)()
        pipe.set_progress_bar_config(disable=True)
        with using(pipe, scheduler):
            pipe(num_inference_steps=4, **arguments)


def latent_consistency() -> tuple[Any, dict[str, Any]]:
    parts = sd.parts() | {
        "unet": sd.unet(time_cond_proj_dim=8),
        "scheduler": diffusers.LCMScheduler(**sd.SCALED_LINEAR),
    }
    pipe = diffusers.LatentConsistencyModelPipeline(**parts)
    return pipe, {"prompt_embeds": normal(1, 5, 16), "output_type": "latent"} | sd.size()


def latent_upscale() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.StableDiffusionLatentUpscalePipeline(
        vae=sd.vae(),
        text_encoder=None,
        tokenizer=None,
        unet=sd.unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + 32),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )
    pooled = {"pooled_prompt_embeds": normal(1, 32), "negative_pooled_prompt_embeds": normal(1, 32)}
    return pipe, sd.prompt() | pooled | {"image": image(), "output_type": "latent"}


def consistency() -> tuple[Any, dict[str, Any]]:
    scheduler = diffusers.CMStochasticIterativeScheduler()
    return diffusers.ConsistencyModelPipeline(unet=unet(), scheduler=scheduler), {}


class NoGuard:
    """Stands for the safety checker, which is a package of its own and sees no prompt here."""

    def to(self, device: Any) -> None:
        pass


def cosmos() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        concat_padding_mask=False,
    )
    pipe = diffusers.CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=diffusers.EDMEulerScheduler(sigma_data=1.0),
        safety_checker=NoGuard(),
    )
    small = {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
    return pipe, sd.prompt() | small


REFUSED = {
    "sd-latent-upscale": Refused(
        "StableDiffusionLatentUpscalePipeline",
        lambda: diffusers.EulerDiscreteScheduler(prediction_type="sample"),
        "scale_model_input",
        "preconditions the network itself, for states of variance 1 + sigma^2",
        latent_upscale,
    ),
    "lcm": Refused(
        "LatentConsistencyModelPipeline",
        lambda: diffusers.LCMScheduler(**sd.SCALED_LINEAR),
        "LCMScheduler",
        "a consistency step is a jump to the data and back to noise, not a solver of an ODE",
        latent_consistency,
    ),
    "consistency-model": Refused(
        "ConsistencyModelPipeline",
        diffusers.CMStochasticIterativeScheduler,
        "CMStochasticIterativeScheduler",
        "as LCM",
        consistency,
    ),
    "sana-sprint": Refused(
        "SanaSprintPipeline",
        diffusers.SCMScheduler,
        "SCMScheduler",
        "continuous-time consistency steps on a trigonometric path",
    ),
    "stable-cascade": Refused(
        "StableCascadePriorPipeline",
        diffusers.DDPMWuerstchenScheduler,
        "DDPMWuerstchenScheduler",
        "its times are ratios that the pipeline computes for its own scheduler only",
    ),
    "cosmos-1": Refused(
        "CosmosTextToWorldPipeline",
        lambda: diffusers.EDMEulerScheduler(sigma_data=1.0),
        "Cosmos 1",
        "asks for a second result of each step and sets the scheduler's private counter back",
        cosmos,
    ),
    "shap-e": Refused(
        "ShapEPipeline",
        lambda: diffusers.HeunDiscreteScheduler(beta_schedule="exp", prediction_type="sample"),
        "Shap-E",
        "its noise schedule is of no other model",
    ),
}
