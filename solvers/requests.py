r"""What an algorithm asks of a network, and the loop that answers.

An algorithm is a generator that never sees a network. It yields requests and is sent the answers:
an `Evaluation` (one state at one node: a plan, adaptive steps), a `Batch` (many nodes at once:
parallel-in-time sampling, estimation of statistics), or one of its own kind. Where the network
lives, on one device or on many, or in a pipeline's loop, is up to whoever answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .cfg_pp import ClassifierFreePP
from .checks import check_whole_or_none
from .denoiser import Denoiser, checked
from .plan import Node, Plan
from .state_edits import version

Result = TypeVar("Result")


@dataclass(slots=True)
class Evaluation:
    """A request to call the network at state ``x`` (B, *event) and ``node``.

    A driver that changed the state since it was handed out (inpainting, callbacks) puts the
    changed tensor into ``x``, or changes it in place: the run carries the edit on. (Under
    ``torch.inference_mode`` changes in place cannot be seen: put the tensor into ``x``.)

    A network that wrote to its input made no edit. A driver that sees this sends None, and is
    handed the state out again, in a tensor of its own.
    """

    x: Tensor
    node: Node
    index: int


@dataclass(slots=True)
class Batch:
    """A request to call the network at states ``x`` (P, B, *event), x[i] at ``nodes[i]``."""

    x: Tensor
    nodes: Sequence[Node]


class ToldTime(float):
    """A time of the schedule at which the network is ``told`` another one."""

    told: float

    def __new__(cls, t: float, told: float) -> ToldTime:
        time = super().__new__(cls, t)
        time.told = told
        return time


Evaluate = Callable[[Tensor, Sequence[float]], Tensor]
"""(states (P, B, *event), P times of the schedule) -> network outputs (P, B, *event).

A time at which the network is told another is a `ToldTime`.
"""


def evaluator(
    denoise: Denoiser | Callable[[Tensor, float], Tensor], *, max_groups: int | None = None
) -> Evaluate:
    """How to evaluate a `Batch` with ``denoise`` here: one network call for all P groups.

    The network is given a copy of the states, which it may write to.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0, which takes a single time and is
        therefore called once a group.
    max_groups : at most so many groups of B states in one network call; bounds its memory.

    Raises ValueError for max_groups < 1.
    """
    check_whole_or_none("max_groups", max_groups, 1)

    def evaluate(x: Tensor, times: Sequence[float]) -> Tensor:
        if not isinstance(denoise, Denoiser):
            single = checked(denoise)
            groups = zip(x, map(told_time, times), strict=True)
            return torch.stack([single(group.clone(), t) for group, t in groups])
        size = max_groups or len(x)
        told = (
            [told_time(t) for t in times] if any(isinstance(t, ToldTime) for t in times) else None
        )
        parts = [
            denoise.evaluate_groups(
                x[i : i + size].clone(),
                times[i : i + size],
                None if told is None else told[i : i + size],
            )
            for i in range(0, len(x), size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return evaluate


def single(
    denoise: Denoiser | Callable[[Tensor, float], Tensor], plan: Plan | None = None
) -> Callable[[Any], Tensor]:
    """How to answer an `Evaluation`, of a run of ``plan``, with ``denoise`` here."""
    everywhere = denoise if isinstance(denoise, Denoiser) else checked(denoise)
    each: dict[int, Denoiser] = {}  # where the guidance is that of a step
    if isinstance(denoise, Denoiser) and isinstance(denoise.guidance, ClassifierFreePP) and plan:
        guidances = denoise.guidance.along(plan).items()
        each = {k: denoise.with_guidance(guidance) for k, guidance in guidances}

    def answer(request: Evaluation) -> Tensor:
        node, function = request.node, each.get(request.index, everywhere)
        # Writes to an inference tensor leave no trace.
        x = request.x.clone() if request.x.is_inference() else request.x
        if isinstance(function, Denoiser):
            return function.evaluate(x, node.t, node.told, node.second)
        return function(x, *node.call)

    return answer


def drive(
    process: Generator[Any, Any, Result],
    answer: Callable[[Any], Any],
    watch: Callable[[Any, Any], None] | None = None,
    *,
    finite: bool = True,
) -> Result:
    """The plain loop: send every request of ``process`` its answer, and return the result.

    ``watch(request, answer)`` is called before an answer is sent. What the network writes to an
    evaluation's state is undone. Unless not ``finite``, outputs of another shape, or that are not
    finite, raise ValueError, which names the times.
    """
    pending: list[tuple[Sequence[Node], Tensor]] = []
    request = next(process)
    while True:
        before = version(request.x)
        answered = answer(request)
        if version(request.x) != before:
            request = process.send(None)
        if finite:
            pending.append(_finite(request, answered))
            # On an accelerator, reading the flags would make the host wait: at the end it does.
            if answered.device.type == "cpu":
                _raise_not_finite(pending)
        if watch is not None:
            watch(request, answered)
        try:
            request = process.send(answered)
        except StopIteration as stop:
            _raise_not_finite(pending)
            return stop.value


def relay(
    process: Generator[Any, Any, Result], ask: Callable[[Any], Generator[Any, Any, Any]]
) -> Generator[Any, Any, Result]:
    """``process``, whose requests are answered by what the processes ``ask(request)`` return."""
    request = next(process)
    while True:
        answered = yield from ask(request)
        try:
            request = process.send(answered)
        except StopIteration as stop:
            return stop.value


def _finite(request: Evaluation | Batch, output: Tensor) -> tuple[Sequence[Node], Tensor]:
    """The nodes of a request, and whether the output at each is finite."""
    if output.shape != request.x.shape:
        raise ValueError(
            f"network returned shape {tuple(output.shape)}: need {tuple(request.x.shape)}"
        )
    if isinstance(request, Evaluation):
        return [request.node], torch.isfinite(output).all()[None]
    return request.nodes, torch.isfinite(output).flatten(1).all(1)


def _raise_not_finite(pending: list[tuple[Sequence[Node], Tensor]]) -> None:
    for nodes, finite in pending:
        bad = [
            f"{node.t:.6g}" for node, good in zip(nodes, finite.tolist(), strict=True) if not good
        ]
        if bad:
            raise ValueError(
                f"network returned values that are not finite at t={', '.join(bad[:5])}"
            )
    pending.clear()


def drive_batches(
    process: Generator[Batch, Tensor, Result],
    evaluate: Evaluate,
    watch: Callable[[Batch, Tensor], None] | None = None,
) -> Result:
    """`drive` for a generator of batches."""
    return drive(process, lambda b: evaluate(b.x, _times(b.nodes)), watch)


def told_time(time: float) -> float:
    """What the network is told at a time of the schedule."""
    return time.told if isinstance(time, ToldTime) else time


def _times(nodes: Sequence[Node]) -> list[float]:
    """The times of a batch of nodes. ValueError for a node that tells the network a second one."""
    if any(node.second is not None for node in nodes):
        raise ValueError(
            "plan: second times that a node tells the network are for runs one after another"
        )
    return [
        float(node.t) if node.told is None else ToldTime(float(node.t), float(node.told))
        for node in nodes
    ]
