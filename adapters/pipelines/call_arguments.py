"""The arguments of a pipeline's call for several samples of each prompt, which start alike."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COPIES = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
"""What pipelines call the number of samples of each prompt."""


def spread(pipe: Any, call_kwargs: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """The arguments of a call for ``groups`` samples a prompt that all start alike.

    Given ``latents`` are repeated. A ``generator`` is cloned, so that the start state is that of a
    call for one sample; without either, the start is drawn from a seed that torch's global
    generator gives.

    Raises ValueError for pipelines that do not take several samples a prompt, or that choose
    between two networks by the time.
    """
    call = dict(call_kwargs)
    accepted = inspect.signature(type(pipe).__call__).parameters
    name = next((name for name in COPIES if name in accepted), None)
    if name is None and ("batch_size" not in accepted or "prompt" in accepted):
        raise ValueError(
            f"{type(pipe).__name__} takes none of {', '.join(COPIES)}: an algorithm that works on "
            "several states at once needs a pipeline that makes several samples of a prompt"
        )
    boundary = getattr(pipe.config, "boundary_ratio", None)
    if boundary is not None:
        raise ValueError(
            f"boundary_ratio={boundary!r}: the pipeline chooses between two networks by the time, "
            "so its samples cannot be told different times"
        )
    prompts = _prompts(call)
    if name is not None and call.get(name, 1) != 1:
        raise ValueError(f"{name}={call[name]!r}: need 1; it is used for the times of one sample")
    if name is None:
        call["batch_size"] = groups * prompts
    elif call.get("prompt_embeds") is None:
        call[name] = groups
    else:
        # Not all pipelines repeat embeddings that they are given.
        for key, value in call.items():
            embedding = "prompt" in key or key.endswith("attention_mask")
            if embedding and isinstance(value, Tensor | list):
                call[key] = _repeated(value, groups)
    if call.get("latents") is not None:
        call["latents"] = _repeated(call["latents"], groups)
    given = call.get("generator")
    if isinstance(given, list) and len(given) != prompts:
        raise ValueError(f"generator has {len(given)} entries: need one a prompt, {prompts}")
    seeds = given if isinstance(given, list) else _one_each(given, prompts)
    call["generator"] = [clone for seed in seeds for clone in _clones(seed, groups)]
    return call


STEPS = 10
"""Of a call whose own steps do not matter."""


def for_samples(
    pipe: Any, call_kwargs: Mapping[str, Any], count: int, prompts: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments of a call for ``count`` samples, of ``prompts`` where there are any.

    Raises ValueError for pipelines that do not take so many.
    """
    seeded = torch.Generator().manual_seed(0)
    call = {**call_kwargs, "num_inference_steps": STEPS, "generator": seeded}
    if prompts:
        for key, value in call.items():
            if "prompt" in key and isinstance(value, str):  # a negative one, a second one
                call[key] = [value] * count
        return {**call, "prompt": list(prompts)}
    return spread(pipe, call, count) if count > 1 else call


def _repeated(values: Any, groups: int) -> Any:
    """Each entry of a tensor or a list ``groups`` times over."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(groups, 0)
    return [value for value in values for _ in range(groups)]


def _prompts(call: Mapping[str, Any]) -> int:
    if isinstance(call.get("prompt"), list):
        return len(call["prompt"])
    if call.get("prompt_embeds") is not None:
        return len(call["prompt_embeds"])
    return int(call.get("batch_size", 1))


def _one_each(given: torch.Generator | None, count: int) -> list[torch.Generator]:
    """A generator for each prompt: the given one if there is one prompt, else seeded from it."""
    if given is not None and count == 1:
        return [given]
    seeds = torch.randint(
        2**62, (count,), generator=given, device="cpu" if given is None else given.device
    )
    device = "cpu" if given is None else given.device
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def _clones(generator: torch.Generator, count: int) -> list[torch.Generator]:
    copies = [torch.Generator(generator.device) for _ in range(count - 1)]
    for copy in copies:
        copy.set_state(generator.get_state())
    return [generator, *copies]
