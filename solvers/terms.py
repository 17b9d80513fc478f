r"""Rows term by term: for coefficients over the event shape, and for runs that record gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .executor import Executor, Mark
from .plan import Coefficient, Plan
from .prediction import at_home
from .segments import OUTPUT, STATE, layout, maps


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
        return self.waiting, list(self.values), self.edited, self._drawn_before()

    def rewind(self, mark: Mark) -> None:
        self.waiting, values, self.edited, before = mark
        self.values = list(values)
        self._draw_again(before)

    def _apart(self) -> None:
        self.values = list(self.values)

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
        if self.lines[k].adds:
            terms += [
                (n.scale, z) for n, z in zip(self.plan.rows[k].noise, self.drawn, strict=True)
            ]
        result = combination(terms or [(0.0, self.like)], self.offsets[k])
        self._put(k, result)
        return result

    def held(self, k: int) -> Tensor:
        slot = self.lines[k].slot
        assert slot is not None
        return _given(self.values[slot]).clone()

    def _put(self, k: int, state: Tensor) -> None:
        slot = self.lines[k].slot
        if slot is not None:
            self.values[slot] = state

    def _move(self, slot: int, factor: Coefficient, difference: Tensor) -> None:
        moved = at_home(factor, self.like) * difference
        self.values[slot] = _given(self.values[slot]) + moved


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def combination(terms: Sequence[tuple[Coefficient, Tensor]], offset: Coefficient) -> Tensor:
    """offset + sum of coefficient * x, one operation a term; in place where nothing is recorded."""
    (first, x), *rest = terms
    if isinstance(offset, Tensor) and isinstance(first, Tensor):
        result = torch.addcmul(offset, first, x)
    elif isinstance(offset, Tensor) or offset != 0:
        result = first * x + offset
    else:
        result = first * x
    for coefficient, x in rest:
        if torch.is_grad_enabled():
            result = result + coefficient * x
        elif isinstance(coefficient, Tensor):
            result.addcmul_(coefficient, x)
        else:
            result.add_(x, alpha=coefficient)
    return result


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
