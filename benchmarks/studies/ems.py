"""The statistics of DPM-Solver-v3 of a pipeline, as ``logsnr ems`` asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from logsnr.adapters import run_pipeline, statistics
from logsnr.benchmarks.embedded import DIGITS
from logsnr.benchmarks.harness.subjects.opening import DTYPES, EMBEDDED, open_pipeline
from logsnr.solvers import EMS, estimate_ems
from logsnr.solvers.model_statistics.ems import DEGENERATE
from logsnr.solvers.progress import Show

FILE, CHECKPOINT = "ems.safetensors", "checkpoint"
GROUPS = 16
"""Evaluations in one iteration of a pipeline, unless another number is asked for."""
STEPS = 10
"""Of the pipeline's call. The estimation takes its own number, on its own range."""
FEWEST = 8
"""Samples that have standard errors: two groups of four."""


@dataclass(frozen=True)
class Request:
    """What is estimated: arguments of ``estimate_ems`` and of ``open_pipeline``."""

    pipeline: str
    opened: Mapping[str, Any]
    data: str | None
    nodes: int
    samples: int
    batch_size: int | None
    granularity: str
    jacobian: str
    seed: int
    stop: float | None
    check: bool
    progress: Show = False

    @property
    def estimation(self) -> dict[str, Any]:
        """The arguments that both ways of an estimation take."""
        names = ("nodes", "samples", "granularity", "seed", "stop", "check")
        return {name: getattr(self, name) for name in names}


def estimate(request: Request, call_args: Mapping[str, Any], checkpoint: Path) -> EMS:
    """The statistics that were asked for, with where they came from; kept in ``checkpoint``.

    Raises ValueError naming the option that is not possible.
    """
    embedded = request.pipeline == EMBEDDED
    if embedded and call_args:
        raise ValueError(f"call_args={dict(call_args)!r}: the embedded model takes none")
    found = (
        of_digits(request, checkpoint) if embedded else of_pipeline(request, call_args, checkpoint)
    )
    model = {"model": request.pipeline, "prompt": request.opened["prompt"]}
    scale = request.opened["guidance_scale"]
    if scale is not None:
        model["guidance_scale"] = scale
    return replace(found, about={**found.about, **model, "version": version("logsnr")})


def of_digits(request: Request, checkpoint: Path) -> EMS:
    """Of the embedded model: of one digit, or of all in turn."""
    opened = request.opened
    prompt = opened["prompt"]
    # This checks the options; the weights are small.
    open_pipeline(EMBEDDED, **{**opened, "prompt": "0" if prompt is None else prompt})
    if prompt is None and request.data is not None:
        raise ValueError("prompt=None: data have no labels here, need the digit that they show")
    labels = DIGITS.turns(torch.arange(max(1, request.samples)))  # fewer are refused below
    if prompt is not None:
        labels[:] = int(prompt)
    device = opened["device"]
    network = DIGITS.load_unet(DTYPES[opened["dtype"]], device)
    guidance = 1.0 if opened["guidance_scale"] is None else opened["guidance_scale"]
    return estimate_ems(
        DIGITS.denoiser(labels.to(device), guidance=guidance, network=network),
        request.data,
        **request.estimation,
        batch_size=request.batch_size,
        jacobian=request.jacobian,
        shape=DIGITS.shape,
        checkpoint=checkpoint,
        progress=request.progress,
    )


def of_pipeline(request: Request, call_args: Mapping[str, Any], checkpoint: Path) -> EMS:
    """Of any other pipeline, through its own call."""
    if request.jacobian == "jvp":
        raise ValueError("jacobian='jvp': a pipeline gives outputs only, need difference or auto")
    # Nothing is sampled, so nothing has to be decoded.
    subject = open_pipeline(
        request.pipeline, **request.opened, call_args={"output_type": "latent", **call_args}
    )
    options = request.estimation
    algorithm = statistics(
        request.data,
        groups=GROUPS if request.batch_size is None else request.batch_size,
        **options,
        checkpoint=checkpoint,
        progress=request.progress,
    )
    run = run_pipeline(
        subject.pipe,
        algorithm,
        **subject.arguments,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(request.seed),
    )
    about = {"weights": subject.about["weights"], "class": subject.about["class"]}
    return replace(run.result, about={**run.result.about, **about})


def summary(found: EMS) -> dict[str, Any]:
    """What was found, as JSON values: medians over the coordinates of each node."""
    values: dict[str, Any] = {"about": dict(found.about), "event": list(found.event)}
    values["lam"] = found.lam.tolist()
    values["verdict"] = None if found.verdict is None else found.verdict.to_json()
    for name in DEGENERATE:
        values[name] = medians(getattr(found, name))
        if found.errors:
            values[f"error_{name}"] = medians(found.errors[name])
    return values


def medians(values: torch.Tensor) -> list[float]:
    """Over the coordinates, one a node."""
    return values.reshape(len(values), -1).median(dim=1).values.tolist()
