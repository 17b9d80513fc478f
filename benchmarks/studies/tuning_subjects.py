"""What ``logsnr tune`` and ``logsnr auto`` open, from their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from logsnr.benchmarks.harness.subjects import Subject
from logsnr.benchmarks.harness.subjects.fitting import Fitting, fitting
from logsnr.benchmarks.harness.subjects.opening import open_pipeline
from logsnr.benchmarks.harness.suite_subjects import (
    KINDS,
    parse_subject,
    read_prompts,
    subject_table,
)

DEFAULT = "faces"
OF_PIPELINES = ("prompt", "prompts", "height", "width")


def guidance_range(text: str | None) -> tuple[float, float] | None:
    """The scales of 3 or 1:7; ValueError for anything else."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        scales = float(low), float(high if colon else low)
    except ValueError:
        raise ValueError(f"guidance_scale={text!r}: need a number, or a range as in 1:7") from None
    if not scales[0] <= scales[1]:
        raise ValueError(f"guidance_scale={text!r}: need the lowest first")
    return scales


@contextmanager
def fitting_of(
    guidance: tuple[float, float] | None,
    *,
    model: str | None = None,
    pipeline: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    call_args: Mapping[str, Any] | None = None,
    **of_pipelines: Any,
) -> Iterator[Fitting]:
    """The model or the pipeline, ready to be fitted to, while inside.

    Raises ValueError naming the option that is wrong.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {key: value for key, value in of_pipelines.items() if value is not None}
    if pipeline is not None:
        if model is not None:
            raise ValueError(f"model={model!r} was given beside pipeline: need one of them")
        if guidance is not None and guidance[0] < guidance[1]:
            raise ValueError(
                f"guidance_scale={guidance[0]:g}:{guidance[1]:g}: a call of a pipeline has one "
                "scale; a range is for networks"
            )
        if "prompts" in given:
            if "prompt" in given:
                raise ValueError("prompts was given beside prompt: need one of them")
            given["prompts"] = read_prompts(Path(given["prompts"]))
        scale = None if guidance is None else guidance[0]
        subject: Subject = open_pipeline(
            pipeline,
            guidance_scale=scale,
            dtype=dtype,
            device=device,
            call_args=call_args,
            **given,
        )
        with fitting(subject) as fitted:
            yield fitted
        return
    for key, value in {**given, **({"call_args": call_args} if call_args else {})}.items():
        raise ValueError(f"{key}={value!r} is for pipelines: give one, or leave it out")
    with fitting(_network(model or DEFAULT, dtype, device), guidance) as fitted:
        yield fitted


def _network(text: str, dtype: str, device: str) -> Subject:
    table = parse_subject(text, "model")
    kind = next((kind for kind in KINDS if kind in table), "model")
    places = {"dtype": dtype, "device": device}
    said = {key: value for key, value in places.items() if key in KINDS[kind].keys}
    try:
        return subject_table("model", {**said, **table}, Path()).open()
    except ValueError as error:
        raise ValueError(str(error).removeprefix("model.").removeprefix("model: ")) from error
