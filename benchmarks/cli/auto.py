"""``logsnr auto``: the best known plan for a model, by measurement, written as a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logsnr.benchmarks.cli.pipeline_options import CallArgs, Device, Dtype, Height, Width
from logsnr.benchmarks.cli.tune import (
    BatchSize,
    Guidance,
    Json,
    Model,
    Nfe,
    Out,
    Pipeline,
    Prompt,
    Prompts,
    ReferenceNfe,
    Seed,
    Starts,
    Timeout,
    make_cards,
)


def auto(
    model: Model = None,
    pipeline: Pipeline = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    guidance_scale: Guidance = None,
    nfe: Nfe = "5,8,10",
    starts: Starts = 48,
    seed: Seed = 1000,
    reference_nfe: ReferenceNfe = 200,
    batch_size: BatchSize = 32,
    height: Height = None,
    width: Width = None,
    call_args: CallArgs = "{}",
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = Path("cards"),
    timeout: Timeout = 1800.0,
    json_: Json = False,
) -> None:
    """Choose solver, order, spacing and last step for your own model, and write them as cards.

    Nothing is differentiated. Starts that nobody has seen decide whether the default is left. A
    killed run goes on where it stopped; the converged solutions that it leaves serve tune, too.

    Example: logsnr auto --pipeline ./my-model --prompts prompts.txt --nfe 5,8 --out cards
    """
    asked: dict[str, Any] = dict(nfe=nfe, level="auto", options={}, starts=starts, seed=seed)
    asked |= dict(reference_nfe=reference_nfe, batch_size=batch_size)
    opened: dict[str, Any] = dict(model=model, pipeline=pipeline, prompt=prompt, prompts=prompts)
    opened |= dict(height=height, width=width, dtype=dtype, device=device, call_args=call_args)
    make_cards(asked, opened, guidance_scale, out, timeout, json_)
