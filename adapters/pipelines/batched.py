"""Several (x, t) pairs in one iteration of a pipeline.

Algorithms that have work at many nodes at once yield a `Batch` of G groups, x (G, B, *event). The
pipeline is called for P samples of each of its B prompts, ``num_images_per_prompt=P``, and a hook
on its networks gives every sample its own time, so that one iteration evaluates P groups, with the
pipeline's own guidance and adapters. More groups take several iterations; what is left of the last
one is filled with repeats. Samples lie prompt by prompt, as diffusers repeats its embeddings:
sample b P + p belongs to prompt b and group p.

At the end only the B samples that are wanted are handed back, so that nothing else is decoded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Node
from logsnr.solvers.requests import Batch
from logsnr.solvers.running import version

from .algorithm import Algorithm, Loop
from .drivers import (
    Convert,
    Counts,
    check_kind,
    generator_of,
    opening,
    refuse_edit,
    same_node,
    sample_of,
)

COPIES = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
"""What pipelines call the number of samples of each prompt."""


class Batches:
    """A generator of `Batch`; see `Driver`.

    Raises ValueError if the pipeline's samples are not P for each prompt.
    """

    def __init__(
        self, algorithm: Algorithm, loop: Loop, x: Tensor, convert: Convert, counts: Counts
    ):
        assert algorithm.groups is not None
        self.convert, self.counts, self.groups = convert, counts, algorithm.groups
        if len(x) % self.groups:
            raise ValueError(
                f"the pipeline has {len(x)} samples: need a multiple of groups={self.groups}"
            )
        rows = self._grouped(x)
        self.x = rows[0]
        self.opened = bool((rows == self.x).all())
        if not self.opened and len(self.x) > 1:
            raise ValueError(
                "the samples of one prompt do not start alike, so it is not known which belong "
                "together: with several prompts this pipeline cannot be run in batches"
            )
        self.process = generator_of(algorithm, loop, self.x)
        self.states = x
        self.nodes: Sequence[Node] = opening(algorithm, loop)
        self.version = version(x)
        self.done = False
        self.result: Any = None
        self.batch: Batch | None = None
        self.outputs: list[Tensor] = []

    def send(self, output: Tensor, sample: Tensor) -> None:
        if self.batch is None:
            self._advance(None)
            if self.done:
                return
            if not self._foreseen():
                self.counts.unused += self.groups
                self._hand_out()
                return
        else:
            refuse_edit(self.states, sample, self.version)
        self._collect(output, sample)
        if not self.done:
            self._hand_out()

    def _collect(self, output: Tensor, sample: Tensor) -> None:
        """Keep what was asked for of one iteration's outputs; send them once they are complete."""
        assert self.batch is not None
        wanted = len(self.batch.nodes) - self.answered
        rows = zip(self._grouped(output), self._grouped(sample), self.nodes, strict=True)
        used = list(rows)[:wanted]
        self.outputs.append(torch.stack([self.convert(*row) for row in used]))
        self.counts.evaluations += len(used)
        self.counts.unused += self.groups - len(used)
        if len(used) == wanted:
            outputs, self.outputs = torch.cat(self.outputs), []
            self._advance(outputs.view(self.asked))

    @property
    def answered(self) -> int:
        """How many groups of the present batch are evaluated."""
        return sum(map(len, self.outputs))

    def _advance(self, outputs: Tensor | None) -> None:
        try:
            batch = self.process.send(outputs)
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            self.states = sample_of(stop.value, self.x)
            return
        check_kind(batch, Batch)
        self.asked = batch.x.shape
        self.batch = self._fitted(batch)

    def _fitted(self, batch: Batch) -> Batch:
        """The batch with groups of as many states as there are prompts."""
        asked, prompts = batch.x.shape[1], len(self.x)
        if asked == prompts:
            return batch
        if prompts == 1:
            nodes = [node for node in batch.nodes for _ in range(asked)]
            return Batch(batch.x.flatten(0, 1).unsqueeze(1), nodes)
        raise ValueError(
            f"the algorithm asks for groups of {asked} states, the pipeline has {prompts} prompts: "
            "need as many, or a single prompt for all"
        )

    def _foreseen(self) -> bool:
        """Whether the first iteration evaluated what is asked for: x_T at the opening nodes."""
        assert self.batch is not None
        count = min(len(self.batch.nodes), self.groups)
        same = all(map(same_node, self.batch.nodes, self.nodes))  # as far as both go
        return self.opened and same and bool((self.batch.x[:count] == self.x).all())

    def _hand_out(self) -> None:
        """The next P groups of the batch, filled up with the last."""
        assert self.batch is not None
        first, last = self.answered, len(self.batch.nodes) - 1
        chosen = [min(first + p, last) for p in range(self.groups)]
        self.nodes = [self.batch.nodes[i] for i in chosen]
        states = self.batch.x[chosen].to(self.x.dtype)
        self.states = states.transpose(0, 1).flatten(0, 1).contiguous()
        self.version = version(self.states)

    def _grouped(self, samples: Tensor) -> Tensor:
        """(B P, *event) prompt by prompt -> (P, B, *event)."""
        return samples.unflatten(0, (-1, self.groups)).transpose(0, 1)


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
