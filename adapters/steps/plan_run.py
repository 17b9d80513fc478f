"""Driving a run one network evaluation at a time, for callers that own the loop."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from logsnr.solvers import Evaluation, Node, Plan
from logsnr.solvers.executor import Mark
from logsnr.solvers.prediction import to_data
from logsnr.solvers.running import executor_for, proceed, version
from logsnr.solvers.step_densities import StepDensities

from .step_density import StepDensity, check_stored
from .step_noise import StepNoise


class PlanRun:
    """One run of ``plan`` from ``sample`` (B, *event): each `step` sends a network output.

    Parameters
    ----------
    prediction : what the network predicts, once its output is multiplied by ``sign`` (1 or -1).
    threshold : applied to every data prediction.
    differentiable : keep the graph of the steps.
    place : which evaluation of a longer list the first one is.
    eta, takes_eta : what the plan was made with, and whether another would be another plan.
    noise : as that of `sample`; None draws from the generators of the steps.

    Attributes
    ----------
    place : that of the next evaluation.
    nodes : of all evaluations of the run.
    noise : where the noise of its steps comes from.
    """

    # The caller's tensors are known by identity, and kept alive by nobody but the caller.
    _handed: Callable[[], Tensor | None]
    _taken: Callable[[], Tensor | None]
    _mark: tuple[Mark, Tensor, int, int] | None
    evaluation: Evaluation | None

    def __init__(
        self,
        plan: Plan,
        prediction: str,
        sample: Tensor,
        *,
        sign: float = 1.0,
        threshold: Callable[[Tensor], Tensor] | None = None,
        differentiable: bool = False,
        place: int = 0,
        eta: float = 0.0,
        takes_eta: bool = False,
        noise: Any = None,
    ):
        self.prediction = prediction
        self.sign = sign
        self.threshold = threshold
        self.shape, self.dtype = sample.shape, sample.dtype
        self.memory_format = _memory_format(sample)
        self.noise = StepNoise(plan, sample, noise)
        self.differentiable = differentiable
        self.eta, self.takes_eta = eta, takes_eta
        self.begin = self.place = place
        self.nodes: list[Node] = [plan.rows[k].node for k in plan.evaluated]
        self.executor = executor_for(plan, sample, self._handed_on, differentiable=differentiable)
        self._forget()
        self._handed = ref(sample)
        self._proceed(sample, 0)

    @property
    def _handed_on(self) -> str:
        return self.prediction if self.threshold is None else "sample"

    def _forget(self) -> None:
        self._handed = self._taken = _nothing
        self._mark = None

    def _proceed(self, handed: Tensor, begin: int) -> None:
        self.process = proceed(self.executor, handed, self.noise, begin)
        self.evaluation = next(self.process)
        self._version = version(handed)

    def __getstate__(self) -> dict[str, Any]:
        # A live generator cannot be copied, but what it works with can.
        state = {**self.__dict__}
        for name in ("process", "_handed", "_taken", "_mark"):
            state.pop(name, None)  # the copy of a run that had ended has no process
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
        if self.evaluation is not None:
            self._proceed(self.evaluation.x, self.evaluation.index)

    @property
    def node(self) -> Node:
        """At which the network is to be called next."""
        return self.nodes[self.place - self.begin]

    @property
    def wanted(self) -> bool:
        """Whether anybody still has the state that was handed out last."""
        return self._handed() is not None

    def gave(self, sample: Tensor) -> bool:
        """Whether ``sample`` is the tensor that the last `step` handed out."""
        return self._handed() is sample

    def took(self, sample: Tensor) -> bool:
        """Whether the last `step` was made from ``sample``, and can be made again."""
        return (
            self._mark is not None and self._taken() is sample and version(sample) == self._mark[3]
        )

    def step_back(self) -> None:
        """Take the last `step` back: the next one may be given another output at its state."""
        assert self._mark is not None
        mark, handed, index, kept = self._mark
        self.executor.rewind(mark)
        self._proceed(handed, index)
        self._version, self._handed, self._mark = kept, self._taken, None
        self.place -= 1

    def fork(self) -> PlanRun:
        """Another run in which the last `step` is not made yet."""
        other = object.__new__(PlanRun)
        other.__dict__.update(self.__dict__, executor=self.executor.fork(), noise=copy(self.noise))
        other.step_back()
        return other

    @property
    def _rows(self) -> range:
        """The rows that the next step fills in."""
        plan, i = self.executor.plan, self.place - self.begin
        following = i + 1 < plan.nfe
        last = plan.evaluated[i + 1] if following else len(plan.rows) - 1
        return range(plan.evaluated[i] + 1, last + 1)

    def prepare(
        self,
        sample: Tensor,
        *,
        noise: Any = None,
        generator: Any = None,
        variance_noise: Any = None,
        log_prob: bool = False,
        prev_sample: Tensor | None = None,
    ) -> None:
        """Say what the next step, from ``sample``, draws from, and whether its density is wanted.

        Raises ValueError for noise, or a state ``prev_sample`` that it is to lead to, which does
        not fit.
        """
        executor, usual = self.executor, not log_prob and prev_sample is None
        if usual and executor.densities is None and variance_noise is None:
            if self.noise.goes_on(noise, generator):
                return
        rows = self._rows
        self.noise.take(
            rows,
            sample,
            noise=noise,
            generator=generator,
            variance_noise=variance_noise,
            stored=prev_sample is not None,
        )
        if log_prob or prev_sample is not None:
            if executor.densities is None:
                executor.densities = StepDensities(executor.plan)
            if prev_sample is not None:
                check_stored(prev_sample, sample, executor.densities, rows)
        if executor.densities is not None:
            executor.densities.asked = log_prob or prev_sample is not None
            executor.densities.given = prev_sample
            executor.densities.log_probs.clear()

    def density(self) -> StepDensity:
        """That of the step that was just made, which was prepared for it."""
        found = self.executor.densities
        assert found is not None
        each = list(found.log_probs.values())
        if not each:
            none = torch.zeros(self.shape[0], dtype=torch.float64, device=self.executor.like.device)
            return StepDensity(none, None, None)
        total = torch.stack(each).sum(0)
        (k, *others) = found.log_probs
        plan, i = self.executor.plan, self.place - self.begin
        if others or k != (*plan.evaluated, len(plan.rows) - 1)[i]:
            return StepDensity(total, None, None)
        return StepDensity(total, found.mean, found.innovations[k].deviation)

    def step(self, output: Tensor, sample: Tensor) -> Tensor:
        """Send the network's output at ``sample``; the next state (the result in the end).

        A ``sample`` that is not the tensor handed out before, or was changed in place, is taken
        as an edit and carried on. From the first step on whose output or state requires grad, the
        graph is kept.
        """
        evaluation, self.evaluation = self.evaluation, None
        assert evaluation is not None
        if torch.is_grad_enabled() and (output.requires_grad or sample.requires_grad):
            evaluation = self._differentiate(evaluation)
        handed, index = evaluation.x, evaluation.index
        edited = not self.gave(sample) or version(sample) != self._version
        if edited or sample.requires_grad:
            evaluation.x = sample
        self._taken = ref(sample)
        self._mark = None if edited else (self.executor.mark(), handed, index, self._version)
        if self.sign != 1:
            output = -output
        if self.threshold is not None:
            precise = torch.promote_types(sample.dtype, torch.float32)
            convert = to_data(self.prediction, evaluation.node)
            output = self.threshold(convert(output.to(precise), sample))
        self.place += 1
        try:
            self.evaluation = evaluation = self.process.send(output)
        except StopIteration as stop:
            self._handed = _nothing
            return self._as_given(stop.value)
        except ValueError:
            self._fail()
            raise
        # What is handed out is another tensor than what is kept, to see when the caller drops it.
        # Gradients want the very same.
        handed = self._as_given(evaluation.x)
        if handed is evaluation.x and not self.differentiable:
            handed = handed.detach()
        self._handed, self._version = ref(handed), version(handed)
        return handed

    def _fail(self) -> None:
        """After a step that was refused: before it, or where that is lost, nowhere."""
        if self._mark is not None:
            self.step_back()
        else:
            self.place, self._handed = -1, _nothing

    def _as_given(self, x: Tensor) -> Tensor:
        """``x`` in the memory format of the caller's states."""
        kept = self.memory_format
        return x if kept is None else x.contiguous(memory_format=kept)

    def _differentiate(self, evaluation: Evaluation) -> Evaluation:
        """Keep the graph from here on: what came before is constant."""
        if not self.differentiable:
            self.differentiable, index = True, evaluation.index
            self.executor = self.executor.recording(index)
            kept = self._version
            self._proceed(evaluation.x, index)
            again, self.evaluation, self._version = self.evaluation, None, kept
            assert again is not None
            return again
        return evaluation


def _memory_format(x: Tensor) -> torch.memory_format | None:
    """The format of a tensor whose channels come last, None for any other."""
    known = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    last = known is not None and x.is_contiguous(memory_format=known)
    return known if last and not x.is_contiguous() else None


def _nothing() -> None:
    """A reference to a tensor that is not there."""
