r"""Where a run stands: a network's output in, the state of the next call out.

`segments` says what is kept, and where. `products` holds it in one contiguous block, so that a row
is a matrix-vector product; `terms` writes the sums out term by term, for coefficients over the
event shape and for runs that record gradients.

States and outputs are kept in float32 or better. A copy of a run is a copy of its executor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

from .plan import Coefficient, Plan
from .segments import Line
from .shared_noise import Memory, NoiseSource
from .state_edits import Edit, corrects, transport
from .step_densities import StepDensities

Kind = TypeVar("Kind", bound="Executor")
Mark = tuple[Any, ...]
"""What `Executor.rewind` needs to make the last evaluation again."""


class Executor(ABC):
    """A run of ``plan`` from the start state x (B, *event), between two evaluations.

    Attributes
    ----------
    waiting : the state of the row that waits for its evaluation; in the end the sample.
    memory : noise that was drawn and that later rows share.
    densities : what looks on at the noise of every row; None where nobody asks for it.
    """

    lines: tuple[Line, ...]
    _derived: tuple[str, ...]

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        self.plan, self.prediction = plan, prediction
        self.like = self.waiting = x.to(
            torch.float64 if x.dtype == torch.float64 else torch.float32
        )
        self.drawn: list[Tensor] = []
        self.edited: Edit | None = None
        self.memory: Memory = {}
        self.densities: StepDensities | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: value for k, value in self.__dict__.items() if k not in self._derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._derive()

    def combine(self, k: int, draw: NoiseSource) -> Tensor:
        """The state of row k."""
        if self.lines[k].adds:
            self.drawn = [draw(term, self.like) for term in self.plan.rows[k].noise]
        result = self._sum(k)
        if self.edited is not None:
            result, self.edited = self.edited.temper(result), None
            self._put(k, result)
        if self.densities is not None and self.plan.rows[k].noise:
            observed = self.densities.observe(k, result, self.drawn)
            if observed is not result:
                result = observed
                self._put(k, result)
        self.waiting = result
        return result

    def again(self, k: int) -> Tensor:
        """The state of row k computed anew, as long as nothing was evaluated since."""
        self.waiting = self._anew(k)
        return self.waiting

    def _drawn_before(self) -> Mark:
        return {**self.memory}, {} if self.densities is None else self.densities.known

    def _draw_again(self, before: Mark) -> None:
        memory, known = before
        self.memory = {**memory}
        if self.densities is not None:
            self.densities.known = known

    def _anew(self, k: int) -> Tensor:
        state = self._sum(k)
        return state if self.densities is None else self.densities.settled(k, state)

    def edit(self, k: int, edited: Tensor) -> None:
        """Put ``edited`` in place of the state of row k, and move the states held along."""
        others = self.lines[k].others
        if others:
            difference = edited - self._anew(k)
            for slot, j in others:
                self._move(slot, transport(self.plan, k, j), difference)
            if corrects(self.plan, k + 1):
                self.edited = Edit(edited, difference)
        self.waiting = edited

    @abstractmethod
    def mark(self) -> Mark:
        """What `rewind` needs to evaluate the same row again, until another one is."""

    @abstractmethod
    def rewind(self, mark: Mark) -> None:
        """Back to before the last evaluation."""

    @abstractmethod
    def _derive(self) -> None:
        """What follows from the plan and the other attributes; not copied with them."""

    @abstractmethod
    def evaluate(self, k: int, output: Tensor, *, shared: bool) -> None:
        """Take the network's output at row k, whose state others may write to if ``shared``."""

    @abstractmethod
    def held(self, k: int) -> Tensor:
        """A copy of the state of row k, which is not evaluated, while later rows need it."""

    def fork(self: Kind) -> Kind:
        """Another one in the same state."""
        other = copy(self)
        other.memory = dict(self.memory)
        other.densities = None if self.densities is None else self.densities.fork()
        other._apart()
        return other

    @abstractmethod
    def _apart(self) -> None:
        """Let go of the values that are shared with what this was copied from."""

    @abstractmethod
    def _sum(self, k: int) -> Tensor:
        """The state of row k, which is put into its slot if it has one and is not evaluated."""

    @abstractmethod
    def _put(self, k: int, state: Tensor) -> None:
        """Another state of row k, which is not evaluated."""

    @abstractmethod
    def _move(self, slot: int, factor: Coefficient, difference: Tensor) -> None:
        """Add to the state in a slot."""
