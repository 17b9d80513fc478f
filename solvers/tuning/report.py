"""What is told of a fit, and by what it is known again: JSON values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..fitted_to import FittedTo
from ..guidance import ClassifierFree
from .errors import Comparison, Summary
from .options import Tuning

NOT_OF_THE_FIT = ("targets", "features", "checkpoint", "seconds", "progress")


def settings(denoise: Denoiser, starts: Tensor, options: Tuning) -> dict[str, Any]:
    """What makes two fits the same, as JSON: the options, the network's answers, the starts."""
    chosen = {
        f.name: getattr(options, f.name)
        for f in dataclasses.fields(options)
        if f.name not in NOT_OF_THE_FIT
    }
    chosen["features"] = _name(options.features)
    chosen |= {"solver_options": dict(options.solver_options), "iterations": options.steps}
    guidance = denoise.guidance
    about = {
        "options": chosen,
        "nfe": options.nfe,
        "level": options.level,
        "schedule": repr(denoise.schedule),
        "prediction": denoise.prediction,
        "guidance_scale": None if guidance is None else _scale(guidance),
        "event": list(starts.shape[1:]),
        "starts": [len(starts), _digest(starts)],
        "fingerprint": fingerprint(denoise, starts),
    }
    return json.loads(json.dumps(about))


def _scale(guidance: ClassifierFree) -> float | list[float]:
    scales = guidance.scales
    return scales if isinstance(guidance.scale, Tensor) else scales[0]


@torch.no_grad()
def fingerprint(denoise: Denoiser, starts: Tensor) -> list[float]:
    """A few numbers by which the network is known again: its data prediction of the first start."""
    schedule = denoise.schedule
    first = torch.arange(1)
    t = schedule.time(0.0)
    x0 = denoise.for_samples(first, len(starts))(starts[:1] * schedule.sigma(t), t)
    flat = x0.double().flatten().cpu()
    picked = torch.linspace(0, len(flat) - 1, min(8, len(flat)), dtype=torch.float64).long()
    return [float(f"{value:.4g}") for value in flat[picked].tolist()]


def _digest(starts: Tensor) -> str:
    numbers = starts.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


def listed(found: Comparison | Summary) -> dict[str, Any]:
    """As JSON values: what is not finite is None."""
    numbers = asdict(found)
    return {key: value if _finite(value) else None for key, value in numbers.items()}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def reason(found: Comparison) -> str:
    """Why the fitted plan is the result, or is not."""
    held = f"{found.ratio:.3g} times the untuned error ({found.measure}) on {found.count} starts"
    if found.better:
        return f"the tuned plan has {held}, p = {found.p_value:.2g}"
    return (
        f"the untuned plan is kept: the tuned one has {held}, p = {found.p_value:.2g}, which is "
        f"not better with a confidence of {found.confidence:g}"
    )


def fitted_model(denoise: Denoiser, starts: Tensor, options: Tuning) -> FittedTo:
    """What the plan is fitted to, with which `sample` compares what it is run on."""
    scales = [1.0] if denoise.guidance is None else denoise.guidance.scales
    if options.guidance is not None:
        scales = list(options.guidance)
    return FittedTo(
        schedule=repr(denoise.schedule),
        prediction=denoise.native,
        event=tuple(starts.shape[1:]),
        guidance=(min(scales), max(scales)),
    )


def _name(features: Any) -> str | None:
    if features is None:
        return None
    return getattr(features, "__qualname__", type(features).__qualname__)
