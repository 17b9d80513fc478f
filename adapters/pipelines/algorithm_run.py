"""An algorithm under way in a pipeline's loop, one evaluation an iteration.

The pipeline has evaluated its start state before the algorithm is heard for the first time. Where
that is not what the algorithm asks for first, the evaluation goes unused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.solvers import Node
from logsnr.solvers.requests import Batch
from logsnr.solvers.running import Evaluation, version

from .algorithm import Algorithm, Loop

Convert = Callable[[Tensor, Tensor, Node], Tensor]
"""(network output, state, node) -> output of type ``loop.prediction``."""


@dataclass(slots=True)
class Counts:
    """What happened so far; see `PipelineStats`."""

    iterations: int = 0
    evaluations: int = 0
    unused: int = 0
    after_end: int = 0


class AlgorithmRun(Protocol):
    """What the scheduler needs of an algorithm under way.

    ``states`` and ``nodes`` are what the pipeline is to evaluate next. ``done`` says that there
    is nothing more: ``states`` is then the sample and ``result`` what the algorithm returned.
    """

    states: Tensor
    nodes: Sequence[Node]
    done: bool
    result: Any

    def send(self, output: Tensor, sample: Tensor) -> None:
        """Take the network's output at ``sample``, the states of this iteration."""


class SingleRun:
    """A generator of `Evaluation`; see `AlgorithmRun`."""

    def __init__(
        self, algorithm: Algorithm, loop: Loop, x: Tensor, convert: Convert, counts: Counts
    ):
        self.process = generator_of(algorithm, loop, x)
        self.edits, self.convert, self.counts = algorithm.edits, convert, counts
        self.states = x
        self.nodes: Sequence[Node] = opening(algorithm, loop)
        self.version = version(x)
        self.done = False
        self.result: Any = None
        self.evaluation: Evaluation | None = None

    def send(self, output: Tensor, sample: Tensor) -> None:
        evaluation = self.evaluation
        if evaluation is None:
            evaluation = self._advance(None)
            if evaluation is None:
                return
            if not same_node(evaluation.node, self.nodes[0]) or not torch.equal(
                evaluation.x, sample
            ):
                self.counts.unused += 1
                self._hand_out(evaluation)
                return
        elif not self.edits:
            refuse_edit(self.states, sample, self.version)
        evaluation.x = sample
        self.counts.evaluations += 1
        following = self._advance(self.convert(output, sample, evaluation.node))
        if following is not None:
            self._hand_out(following)

    def _advance(self, output: Tensor | None) -> Evaluation | None:
        try:
            evaluation = self.process.send(output)
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            self.states = sample_of(stop.value, self.states)
            return None
        check_kind(evaluation, Evaluation)
        return evaluation

    def _hand_out(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.states, self.nodes = evaluation.x, (evaluation.node,)
        self.version = version(self.states)


def opening(algorithm: Algorithm, loop: Loop) -> list[Node]:
    """The nodes of the first iteration, one a group: what the algorithm is expected to ask for."""
    nodes = list(loop.nodes[:1] if algorithm.opening is None else algorithm.opening(loop))
    count = algorithm.groups or 1
    return [*nodes, *[nodes[-1]] * count][:count]


def same_node(a: Node, b: Node) -> bool:
    """Whether two nodes are the same up to rounding."""
    ours, theirs = (*a[:3], *a.call), (*b[:3], *b.call)
    return len(ours) == len(theirs) and all(
        math.isclose(p, q, rel_tol=1e-9, abs_tol=1e-12) for p, q in zip(ours, theirs, strict=True)
    )


def generator_of(algorithm: Algorithm, loop: Loop, x: Tensor) -> Any:
    """The algorithm's generator; ValueError if its function returns anything else."""
    process = algorithm.process(x, loop)
    if not hasattr(process, "send"):
        raise ValueError(
            f"algorithm returned {type(process).__name__}: need a generator, as run() returns it"
        )
    return process


def check_kind(request: Any, kind: type) -> None:
    """ValueError unless the generator's request is what the algorithm_run can serve."""
    if isinstance(request, kind):
        return
    other = "groups=P in the Algorithm is for it" if isinstance(request, Batch) else "no groups"
    raise ValueError(f"algorithm yielded {type(request).__name__}, not {kind.__name__} ({other})")


def sample_of(result: Any, x: Tensor) -> Tensor:
    """The state to decode: the result if it is one like x, its first entry, or x itself."""
    first = result[0] if isinstance(result, tuple) and result else result
    return first if isinstance(first, Tensor) and first.shape == x.shape else x


def refuse_edit(handed: Tensor, sample: Tensor, handed_version: int) -> None:
    """ValueError if ``sample`` is not what was handed out, value by value."""
    if sample is handed and version(handed) == handed_version:
        return
    if sample is handed or sample.shape != handed.shape or not torch.equal(sample, handed):
        raise ValueError(
            "the pipeline changed the state between two evaluations (inpainting, a callback that "
            "sets latents), which this algorithm cannot follow; a Plan can"
        )
