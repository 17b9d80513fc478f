r"""Filling in the rows of a plan: a network's output in, the state of the next call out.

An `Executor` is where a run stands. `Products` holds what is alive in one contiguous block, so that
a row is a matrix-vector product with weights that are on the device: nothing is looked up, and
nothing is waited for. `Terms` writes the same sums out term by term, for coefficients over
the event shape and for runs that record gradients. `segments` says what is kept, and where.

States and outputs are kept in float32 or better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from .noise import NoiseSource
from .plan import Coefficient, Plan
from .prediction import at_home, check_signals
from .segments import OUTPUT, STATE, Line, layout, maps, product, weights
from .state_edits import Edit, corrects, transport

Mark = tuple[Any, ...]
"""What `Executor.rewind` needs to make the last evaluation again."""

LARGE = 2**16
"""From so many numbers on, BLAS on a CPU is faster with a state that is scaled beforehand."""


class Executor(ABC):
    """A run of ``plan`` from the start state x (B, *event), between two evaluations.

    Attributes
    ----------
    waiting : the state of the row that waits for its evaluation; in the end the sample.
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
        self.waiting = result
        return result

    def again(self, k: int) -> Tensor:
        """The state of row k computed anew, as long as nothing was evaluated since."""
        self.waiting = self._sum(k)
        return self.waiting

    def edit(self, k: int, edited: Tensor) -> None:
        """Put ``edited`` in place of the state of row k, and move the states held along."""
        others = self.lines[k].others
        if others:
            difference = edited - self._sum(k)
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
    def fork(self) -> Executor:
        """Another one in the same state."""

    @abstractmethod
    def _sum(self, k: int) -> Tensor:
        """The state of row k, which is put into its slot if it has one and is not evaluated."""

    @abstractmethod
    def _put(self, k: int, state: Tensor) -> None:
        """Another state of row k, which is not evaluated."""

    @abstractmethod
    def _move(self, slot: int, factor: Coefficient, difference: Tensor) -> None:
        """Add to the state in a slot."""


class Products(Executor):
    """Rows of plain numbers: one matrix-vector product each."""

    _derived = ("lines", "sums", "stores", "weights", "flat", "slots", "columns")

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        super().__init__(plan, prediction, x)
        self.shape = x.shape
        self.block = self.like.new_zeros(max(1, layout(plan).slots), x.numel())
        self.scaled_first = x.device.type == "cpu" and x.numel() >= LARGE
        # Of the last evaluation, where rows read them.
        self.state: Any = None
        self.output: Any = None
        self._derive()
        self._put(0, self.waiting)

    def _derive(self) -> None:
        block, made = self.block, product(self.plan, self.prediction)
        self.lines, self.sums, self.stores = layout(self.plan).lines, made.sums, made.stores
        self.weights = weights(self.plan, self.prediction, block.device, block.dtype)
        self.flat = block.unbind()
        self.slots = [slot.view(self.shape) for slot in self.flat]
        self.columns = [block[begin:end].t() for begin, end in made.spans]

    def mark(self) -> Mark:
        # An evaluation overwrites no slot that its own row or a later one reads.
        return self.waiting, self.state, self.output, self.edited

    def rewind(self, mark: Mark) -> None:
        self.waiting, self.state, self.output, self.edited = mark

    def fork(self) -> Products:
        other = copy(self)
        other.block = self.block.clone()
        other._derive()
        return other

    def evaluate(self, k: int, output: Tensor, *, shared: bool) -> None:
        slot, ratio, state_first, _, keep, reads = self.stores[k]
        x = self.waiting
        self.state, self.output = x if reads[0] else None, output if reads[1] else None
        if keep is not None:
            self.slots[keep].copy_(x)
        if slot is None:
            return
        if ratio == 0:
            self.slots[slot].copy_(x if state_first else output)
        elif state_first:
            torch.add(x, output, alpha=ratio, out=self.slots[slot])
        else:
            torch.add(output, x, alpha=ratio, out=self.slots[slot])

    def _sum(self, k: int) -> Tensor:
        state, output, span, slot, adds = self.sums[k]
        if span is None:
            result = torch.mul(self.like if self.state is None else self.state, state)
            if output != 0:
                result.add_(self.output, alpha=output)
        else:
            # Under autocast these would run in half precision, unless they are told where to write.
            flat = torch.empty_like(self.flat[0]) if slot is None else self.flat[slot]
            if state == 0:
                torch.mv(self.columns[span], self.weights[k], out=flat)
            elif self.scaled_first:
                torch.mul(self.state.reshape(-1), state, out=flat)
                flat.addmv_(self.columns[span], self.weights[k])
            else:
                x = self.state.reshape(-1)
                torch.addmv(x, self.columns[span], self.weights[k], beta=state, out=flat)
            result = flat.view(self.shape)
        if adds:
            row = self.plan.rows[k]
            result.add_(row.offset)
            for term, z in zip(row.noise, self.drawn, strict=True):
                result.add_(z, alpha=term.scale)
        if span is None:
            self._put(k, result)
        return result

    def _put(self, k: int, state: Tensor) -> None:
        slot = self.lines[k].slot
        if slot is not None:
            self.slots[slot].copy_(state)

    def _move(self, slot: int, factor: Coefficient, difference: Tensor) -> None:
        self.slots[slot].add_(difference, alpha=float(factor))

    def recording(self, k: int) -> Terms:
        """One that goes on where row k waits for its evaluation, and records gradients."""
        lines, linear = self.lines, maps(self.plan, self.prediction)

        def state(j: int) -> Tensor:
            if j == k:
                return self.waiting
            slot = lines[j].slot if lines[j].keep is None else lines[j].keep
            return self.state if slot is None else self.slots[slot].clone()

        def output(j: int) -> Tensor:
            store = self.stores[j]
            if store.slot is None:
                return linear[j](self.output, self.state)
            return self.slots[store.slot] * store.scale

        other = Terms(self.plan, self.prediction, self.like)
        other.resume(k, state, output)
        other.drawn, other.edited = self.drawn, self.edited
        return other


class Terms(Executor):
    """Rows term by term, differentiable in states, outputs and coefficients.

    Coefficients are brought to x's device and precision once. Raises ValueError if those of an
    event shape do not fit x.
    """

    _derived = ("lines", "maps", "sums", "offsets")

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        super().__init__(plan, prediction, x)
        check_event(plan, tuple(x.shape[1:]))
        # The slots, then the newest output and state.
        self.values: list[Tensor | None] = [None] * (layout(plan).slots + 2)
        self._derive()
        self._put(0, self.waiting)

    def _derive(self) -> None:
        plan, like, self.lines = self.plan, self.like, layout(self.plan).lines
        self.maps = {k: map_.beside(like) for k, map_ in maps(plan, self.prediction).items()}
        self.sums = [
            [(at_home(a, like), place) for place, _, a in (*line.states, *line.outputs)]
            for line in self.lines
        ]
        self.offsets = [at_home(row.offset, like) for row in plan.rows]

    def mark(self) -> Mark:
        return self.waiting, list(self.values), self.edited

    def rewind(self, mark: Mark) -> None:
        self.waiting, values, self.edited = mark
        self.values = list(values)

    def fork(self) -> Terms:
        other = copy(self)
        other.values = list(self.values)
        return other

    def recording(self, k: int) -> Terms:
        """Itself."""
        return self

    def resume(
        self, k: int, state: Callable[[int], Tensor], output: Callable[[int], Tensor]
    ) -> None:
        """Go on at row k, where row j <= k has the state state(j) and g = output(j)."""
        for slot, (j, is_output) in layout(self.plan).held(k).items():
            self.values[slot] = output(j) if is_output else state(j)
        last = max((j for j in self.plan.evaluated if j < k), default=None)
        if last is not None:
            reads_state, reads_output = self.lines[last].reads
            self.values[STATE] = state(last) if reads_state else None
            self.values[OUTPUT] = output(last) if reads_output else None
        self.waiting = state(k)

    def evaluate(self, k: int, output: Tensor, *, shared: bool) -> None:
        line, x = self.lines[k], self.waiting
        g = self.maps[k](output, x)
        if line.keep is not None:
            self.values[line.keep] = x.clone() if shared else x
        if line.output is not None:
            self.values[line.output] = g
        reads_state, reads_output = line.reads
        self.values[STATE] = x if reads_state else None
        self.values[OUTPUT] = g if reads_output else None

    def _sum(self, k: int) -> Tensor:
        terms = [(coefficient, _given(self.values[place])) for coefficient, place in self.sums[k]]
        noise = zip(self.plan.rows[k].noise, self.drawn, strict=False)
        terms += [(term.scale, z) for term, z in noise]
        (first, x), *rest = terms or [(0.0, self.like)]
        offset = self.offsets[k]
        if isinstance(offset, Tensor) and isinstance(first, Tensor):
            result = torch.addcmul(offset, first, x)
        else:
            result = x * first if isinstance(offset, float) and offset == 0 else x * first + offset
        for coefficient, x in rest:
            result = _plus(result, coefficient, x)
        self._put(k, result)
        return result

    def _put(self, k: int, state: Tensor) -> None:
        slot = self.lines[k].slot
        if slot is not None:
            self.values[slot] = state

    def _move(self, slot: int, factor: Coefficient, difference: Tensor) -> None:
        moved = at_home(factor, self.like) * difference
        self.values[slot] = _given(self.values[slot]) + moved


def executor_for(
    plan: Plan, x: Tensor, prediction: str, *, differentiable: bool = False
) -> Products | Terms:
    """What fills in the rows of ``plan`` from the start state x.

    Raises ValueError where the network's prediction tells nothing of what a row asks for.
    """
    check_signals(plan, prediction, x.dtype)
    if plan.numeric and not differentiable:
        return Products(plan, prediction, x)
    return Terms(plan, prediction, x)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _plus(result: Tensor, coefficient: Coefficient, x: Tensor) -> Tensor:
    """result + coefficient * x, one operation; in place where no gradient is recorded."""
    if torch.is_grad_enabled():
        return result + coefficient * x
    if isinstance(coefficient, Tensor):
        return result.addcmul_(coefficient, x)
    return result.add_(x, alpha=coefficient)


def check_event(plan: Plan, event: tuple[int, ...]) -> None:
    """ValueError unless every coefficient of ``plan`` broadcasts to states with ``event`` axes."""
    for k, row in enumerate(plan.rows):
        for value in (*row.coefficients(), *(row.target or ()), row.offset):
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            fits = len(shape) == len(event) and all(
                a in (1, n) for a, n in zip(shape, event, strict=True)
            )
            if shape and not fits:
                raise ValueError(
                    f"x has event shape {event}, but row {k} of the plan has coefficients of shape "
                    f"{shape}: need as many axes, each of size 1 or that of x"
                )
