"""The embedded models as subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from logsnr.benchmarks.embedded import EmbeddedModel
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.solvers.provenance import file_digest

ENDS = {"final_sigmas_type": "sigma_min", "set_alpha_to_one": False}
"""Ends schedulers at training step 0, the last of the noise schedule, which is where ``make_plan``
ends on a `DiscreteVP` (t_end = 1/N), in place of a first-order step on to sigma = 0. Orders,
variants and the lowering of the order towards the end are diffusers' defaults."""


def embedded_subject(
    model: EmbeddedModel,
    guidance: float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    network: Any = None,
    **options: Any,
) -> NetworkSubject:
    """An embedded model, with the labels of its samples in turn; options of `NetworkSubject`.

    network : one that was loaded before, or anything where it will not be called.
    """
    flow = model.prediction == "flow_prediction"

    def conditions(indices: Sequence[int]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        labels = model.turns(torch.tensor(list(indices))).to(device)
        return {"class_labels": labels}, {"class_labels": torch.full_like(labels, model.null_label)}

    said: dict[str, Any] = {
        "reference": {"solver": "unipc", "order": 3, "spacing": "auto" if flow else "karras"},
        "ends": {} if flow else ENDS,
        "statistics": (model.load_ems(), file_digest(model.ems_file))
        if model.ems_file.exists()
        else None,
        **options,
    }
    return NetworkSubject(
        name=model.name,
        network=model.load_unet(dtype, device) if network is None else network,
        schedule=model.schedule,
        shape=model.shape,
        weights=model.digest(),
        prediction=model.prediction,
        network_time=(lambda t: 1000 * t) if flow else None,
        conditions=conditions,
        guidance=guidance,
        config=model.load_scheduler_config(),
        dtype=dtype,
        device=device,
        data_range=2.0,
        stream=True,
        **said,
    )
