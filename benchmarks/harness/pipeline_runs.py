"""One call of a diffusers pipeline, watched: its last state, its picture, and what it cost.

The state that the scheduler hands out last is the sample in the space of the solver: latents for
latent models, pixels for the others, before anything is decoded, clipped or rounded. It is taken
at ``scheduler.step``, which every pipeline calls once for each evaluation of its network.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from PIL import Image
from torch import Tensor, nn

from logsnr.benchmarks.embedded import load_pipeline

EMBEDDED = "embedded"
NETWORKS = ("unet", "transformer", "transformer_2", "prior")
OPTIONS = ("prompt", "guidance_scale", "height", "width")
"""Arguments of a call that have an option of their own on the command line."""
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Subject:
    """A pipeline and the arguments of its call, but for the seed and the number of steps.

    ``problem`` says in JSON values what is sampled; equal problems give equal samples.
    """

    pipe: Any
    arguments: Mapping[str, Any]
    problem: Mapping[str, Any]

    @property
    def networks(self) -> list[nn.Module]:
        """The modules that are called for a prediction."""
        found = (getattr(self.pipe, name, None) for name in NETWORKS)
        return [module for module in found if isinstance(module, nn.Module)]


@dataclass
class Outcome:
    """What a call gave: the last state (1, *event), float32 on the CPU, and one picture if any."""

    x: Tensor
    picture: Image.Image | None
    evaluations: int
    network_calls: int
    seconds: float
    stochastic: bool


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
) -> Subject:
    """The pipeline called ``name``, ready to be sampled.

    Parameters
    ----------
    name : a folder that ``save_pretrained`` wrote, the ID of a pipeline on the Hub (which is
        downloaded; weights as safetensors only), or "embedded".
    prompt, guidance_scale, height, width : arguments of its call; None leaves one out. The
        embedded model takes a digit as its prompt.
    call_args : more arguments of its call. Nested lists of numbers (embeddings) become tensors;
        "output_type": "latent" saves the decoding, and the pictures.

    Raises ValueError naming the argument: for what is not a pipeline, a dtype that is not listed
    in ``DTYPES``, and arguments that the call does not have or lacks.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    _check_device(device)
    given = {
        "prompt": prompt,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        **(call_args or {}),
    }
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("num_inference_steps", "generator", "return_dict"):
        if key in given:
            raise ValueError(f"call_args={key!r}: this argument is set by the comparison")
    if name == EMBEDDED:
        pipe, arguments = _embedded(dict(given), DTYPES[dtype], device), {}
    else:
        pipe, arguments = _load(name, DTYPES[dtype], device), given
    _check_arguments(pipe, arguments)
    pipe.set_progress_bar_config(disable=True)
    tensors = {key: _tensor(value, DTYPES[dtype], device) for key, value in arguments.items()}
    subject = Subject(pipe, tensors, {})
    if not subject.networks:
        raise ValueError(
            f"pipeline={name!r}: {type(pipe).__name__} has none of {', '.join(NETWORKS)}"
        )
    if not hasattr(pipe, "scheduler"):
        raise ValueError(f"pipeline={name!r}: {type(pipe).__name__} has no scheduler")
    problem = {
        "pipeline": name,
        "class": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "weights": fingerprint(subject),
        "call": given,
        "dtype": dtype,
    }
    return Subject(pipe, tensors, problem)


def fingerprint(subject: Subject) -> str:
    """Twelve hexadecimal digits of the noise schedule's config and a share of the weights."""
    digest = hashlib.sha256()
    config = {k: v for k, v in subject.pipe.scheduler.config.items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for module in subject.networks:
        for name, value in module.state_dict().items():
            few = value.detach().flatten()[:8].to("cpu", torch.float64).tolist()
            digest.update(f"{name} {tuple(value.shape)} {few}".encode())
    return digest.hexdigest()[:12]


@torch.no_grad()
def run_pipeline_once(
    subject: Subject,
    scheduler: Any,
    steps: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Call the pipeline with ``scheduler`` for one sample; its own scheduler is put back.

    ``tick`` is called after each evaluation. Raises what the pipeline raises.
    """
    pipe = subject.pipe
    own, pipe.scheduler = pipe.scheduler, scheduler
    generator = torch.Generator().manual_seed(seed)
    arguments = {**subject.arguments, "num_inference_steps": steps, "generator": generator}
    if "vae" in pipe.components and pipe.vae is None:
        arguments.setdefault("output_type", "latent")  # nothing could decode it
    decoded = arguments.get("output_type") != "latent"
    try:
        with _watched(scheduler, generator, tick) as steps_seen, _counted(subject) as calls:
            began = time.perf_counter()
            output = pipe(**arguments)
            _wait(subject)
            seconds = time.perf_counter() - began
    finally:
        pipe.scheduler = own
    if steps_seen.state is None:
        raise ValueError(f"{type(pipe).__name__} never called scheduler.step")
    return Outcome(
        x=steps_seen.state[:1].float().cpu(),
        picture=picture(output) if decoded else None,
        evaluations=steps_seen.count,
        network_calls=calls[0],
        seconds=seconds,
        stochastic=steps_seen.stochastic,
    )


def picture(output: Any) -> Image.Image | None:
    """The first image of a pipeline's output, the middle frame of a video; None for sound."""
    value = getattr(output, "images", None)
    if value is None:
        value = getattr(output, "frames", None)
        if value is None or len(value) == 0:
            return None
        value = value[0]
        value = [value[len(value) // 2]]
    first = value[0]
    if isinstance(first, Image.Image):
        return first.convert("RGB")
    array = first.float().cpu().numpy() if isinstance(first, Tensor) else np.asarray(first)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


@dataclass
class _Seen:
    state: Tensor | None = None
    count: int = 0
    stochastic: bool = False


@contextmanager
def _watched(
    scheduler: Any, generator: torch.Generator, tick: Callable[[], None]
) -> Iterator[_Seen]:
    seen = _Seen()
    step = scheduler.step

    @wraps(step)
    def noted(*args: Any, **kwargs: Any) -> Any:
        before = _random_states(generator)
        result = step(*args, **kwargs)
        after = _random_states(generator)
        if not all(map(torch.equal, before, after)):
            seen.stochastic = True
        seen.state = result[0] if isinstance(result, tuple) else result.prev_sample
        seen.count += 1
        tick()
        return result

    scheduler.step = noted
    try:
        yield seen
    finally:
        del scheduler.step


def _random_states(generator: torch.Generator) -> list[Tensor]:
    # A step that draws from any of these is stochastic, whatever the scheduler is called.
    states = [generator.get_state(), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states


@contextmanager
def _counted(subject: Subject) -> Iterator[list[int]]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handles = [module.register_forward_pre_hook(count) for module in subject.networks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _wait(subject: Subject) -> None:
    if next(subject.networks[0].parameters()).device.type == "cuda":
        torch.cuda.synchronize()


def _check_device(device: str) -> None:
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
