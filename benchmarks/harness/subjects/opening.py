"""Pipelines of diffusers as subjects: what can be said of them, checked before they are called."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available

from logsnr.benchmarks.embedded import load_pipeline
from logsnr.benchmarks.harness.subjects.pipeline import NETWORKS, PipelineSubject, fingerprint

EMBEDDED = "embedded"
OPTIONS = ("prompt", "guidance_scale", "height", "width")
"""Arguments of a call that have an option of their own on the command line."""
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def open_pipeline(
    name: str,
    *,
    prompt: str | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    call_args: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = (),
) -> PipelineSubject:
    """The pipeline called ``name``, ready to be sampled.

    Parameters
    ----------
    name : a folder that ``save_pretrained`` wrote, the ID of a pipeline on the Hub (which is
        downloaded; weights as safetensors only), or "embedded".
    prompt, guidance_scale, height, width : arguments of its call; None leaves one out. The
        embedded model takes a digit as its prompt.
    prompts : in place of the one prompt, for the samples of a seed in turn.
    call_args : more arguments of its call. Nested lists of numbers (embeddings) become tensors;
        "output_type": "latent" saves the decoding, and the pictures.

    Raises ValueError naming the argument: for what is not a pipeline, a dtype that is not listed
    in ``DTYPES``, and arguments that the call does not have or lacks.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    check_device(device)
    given = {
        "prompt": prompts[0] if prompts else prompt,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        **(call_args or {}),
    }
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("num_inference_steps", "generator", "return_dict"):
        if key in given:
            raise ValueError(f"call_args={key!r}: this argument is set by the comparison")
    if name == EMBEDDED and prompts:
        raise ValueError("prompts: the embedded pipeline takes one prompt, a digit")
    if name == EMBEDDED:
        pipe, arguments = _embedded(dict(given), DTYPES[dtype], device), {}
    else:
        pipe, arguments = _load(name, DTYPES[dtype], device), given
    _check_arguments(pipe, arguments)
    pipe.set_progress_bar_config(disable=True)
    tensors = {key: _tensor(value, DTYPES[dtype], device) for key, value in arguments.items()}
    subject = PipelineSubject(name, pipe, tensors, {})
    if not subject.networks:
        raise ValueError(
            f"pipeline={name!r}: {type(pipe).__name__} has none of {', '.join(NETWORKS)}"
        )
    if not hasattr(pipe, "scheduler"):
        raise ValueError(f"pipeline={name!r}: {type(pipe).__name__} has no scheduler")
    about = {
        "pipeline": name,
        "class": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "weights": fingerprint(subject),
        "call": given | ({"prompt": list(prompts)} if prompts else {}),
        "dtype": dtype,
        "device": torch.device(device).type,
    }
    return PipelineSubject(name, pipe, tensors, about, tuple(prompts))


def check_device(device: str) -> None:
    """ValueError for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def _embedded(given: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    label, scale = given.pop("prompt", None), given.pop("guidance_scale", 1.0)
    if given:
        raise ValueError(f"call_args={', '.join(given)}: the embedded pipeline does not take them")
    if label is not None and label not in map(str, range(10)):
        raise ValueError(f"prompt={label!r}: the embedded model takes a digit, 0 to 9")
    if label is None and scale != 1:
        raise ValueError(f"guidance_scale={scale}: guidance needs a prompt")
    labels = None if label is None else int(label)
    return load_pipeline(labels, guidance_scale=scale, dtype=dtype, device=device)


def _load(name: str, dtype: torch.dtype, device: str) -> Any:
    folder = Path(name)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"pipeline={name!r}: need a folder with a model_index.json, as save_pretrained writes"
        )
    if not folder.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"pipeline={name!r}: no such folder; need one that save_pretrained wrote, an ID as "
            f"owner/name, or '{EMBEDDED}'"
        )
    try:
        index = DiffusionPipeline.load_config(name)
        absent = {
            key: None for key, value in index.items() if value in ([None, None], (None, None))
        }
        with warnings.catch_warnings():
            # The older name of the argument is the one that all supported versions know.
            warnings.filterwarnings("ignore", message=".torch_dtype. is deprecated")
            pipe = DiffusionPipeline.from_pretrained(
                name,
                torch_dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=is_accelerate_available(),
                **absent,
            )
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"pipeline={name!r} cannot be loaded: {error}") from error
    return pipe.to(device)


def _check_arguments(pipe: Any, given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(type(pipe).__call__).parameters
    has = [name for name in parameters if name not in ("self", "args", "kwargs")]
    for key in given:
        if key not in parameters:
            argument = key if key in OPTIONS else f"call_args={key!r}"
            raise ValueError(
                f"{argument}: the call of {type(pipe).__name__} has no such argument; it has "
                f"{', '.join(has)}"
            )
    missing = [
        name
        for name in has
        if parameters[name].default is inspect.Parameter.empty and name not in given
    ]
    if "prompt" in has and not {"prompt", "prompt_embeds"} & given.keys():
        missing.insert(0, "prompt")
    if missing:
        name = missing[0] if missing[0] in OPTIONS else "call_args"
        raise ValueError(
            f"{name}: the call of {type(pipe).__name__} needs {', '.join(dict.fromkeys(missing))}"
        )


def _tensor(value: Any, dtype: torch.dtype, device: str) -> Any:
    nested = isinstance(value, list) and value and isinstance(value[0], list)
    return torch.tensor(value, dtype=dtype, device=device) if nested else value
