"""The embedded model of digits as a subject."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from logsnr.benchmarks.embedded import (
    EMS_FILE,
    MODEL_FOLDER,
    NULL_LABEL,
    load_ems,
    load_scheduler,
    load_scheduler_config,
    load_unet,
)
from logsnr.benchmarks.harness.protocol import file_digest
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.solvers import DiscreteVP

DIGITS = 10
EVENT = (1, 28, 28)
WEIGHTS = MODEL_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
ENDS = {"final_sigmas_type": "sigma_min", "set_alpha_to_one": False}
"""Ends schedulers at training step 0, the last of the noise schedule, which is where ``make_plan``
ends on a `DiscreteVP` (t_end = 1/N), in place of a first-order step on to sigma = 0. Orders,
variants and the lowering of the order towards the end are diffusers' defaults."""


@cache
def schedule() -> DiscreteVP:
    """The noise schedule of the embedded model, from the same table that diffusers uses."""
    return DiscreteVP(load_scheduler().alphas_cumprod)


def digits(
    guidance: float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    label: int | None = None,
    **options: Any,
) -> NetworkSubject:
    """The embedded model, with the labels 0..9 taking turns, or of one label."""

    def labels(indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        turns = [index % DIGITS if label is None else label for index in indices]
        chosen = torch.tensor(turns, device=device)
        return {"class_labels": chosen}, {"class_labels": torch.full_like(chosen, NULL_LABEL)}

    said: dict[str, Any] = {"ends": ENDS, **options}
    return NetworkSubject(
        name="digits",
        network=load_unet(dtype, device),
        schedule=schedule(),
        shape=EVENT,
        weights=file_digest(WEIGHTS),
        conditions=labels,
        guidance=guidance,
        config=load_scheduler_config(),
        statistics=(load_ems(), file_digest(EMS_FILE)),
        dtype=dtype,
        device=device,
        data_range=2.0,
        stream=True,
        **said,
    )
