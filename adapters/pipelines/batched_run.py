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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Node
from logsnr.solvers.requests import Batch
from logsnr.solvers.running import version

from .algorithm import Algorithm, Loop
from .algorithm_run import (
    Convert,
    Counts,
    check_kind,
    generator_of,
    opening,
    refuse_edit,
    same_node,
    sample_of,
)


class BatchedRun:
    """A generator of `Batch`; see `AlgorithmRun`.

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
