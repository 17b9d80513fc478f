r"""Filling in the rows of a plan: states and outputs in, the next state out.

`FusedRows` keeps the outputs of past evaluations in one contiguous block, so that a row is a
single matrix-vector product with coefficients that are already on the device: no
synchronisation, no look-up, one new tensor. `TensorRows` writes the same sum out term by term,
for coefficients that are tensors and for runs that are differentiated.

Both keep states and outputs in float32 or better.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .edits import Edit, corrects, transport
from .noise import NoiseSource
from .plan import Coefficient, Plan
from .prediction import to_target

# States, outputs, the newest output and the edit that wait for an evaluation.
Mark = tuple[dict[int, Tensor], dict[int, Tensor], Tensor, Edit | None]


class Store(NamedTuple):
    """How the output of an evaluated row enters the block: first + ratio * second."""

    slot: int
    ratio: float
    state_first: bool  # x + ratio * out, otherwise out + ratio * x


class Sum(NamedTuple):
    """How a row is summed: a * state + (block weighted) + the rest."""

    state: int | None
    a: float
    others: tuple[tuple[int, float], ...]  # further states, in general none
    outputs: bool
    extra: bool  # an offset or noise
    direct: tuple[float, float] | None  # of a first-order step: on the state and on the output


@dataclass(frozen=True)
class Program:
    """A plan for one prediction type as `FusedRows` runs it; computed once."""

    sums: tuple[Sum, ...]
    stores: tuple[Store | None, ...]
    scales: Mapping[int, float]  # of stored outputs: g_k = scale * what is in its slot
    weights: Tensor  # (rows, slots) float64
    spent: tuple[tuple[int, ...], ...]  # states that nothing needs once row k is evaluated
    kept: frozenset[int]
    slots: int


def last_uses(plan: Plan) -> tuple[list[int], list[int]]:
    """For every row, the last row that needs its state and the last that needs its output."""
    states, outputs = list(range(len(plan.rows))), list(range(len(plan.rows)))
    for k, row in enumerate(plan.rows):
        for j, _ in row.states:
            states[j] = k
        for j, _ in row.outputs:
            outputs[j] = k
    return states, outputs


def kept_rows(plan: Plan) -> frozenset[int]:
    """The evaluated rows whose states are needed beyond the next evaluation.

    Their states are handed out, and by then may have been overwritten.
    """
    states, _ = last_uses(plan)
    following = [*plan.evaluated[1:], len(plan.rows)]
    return frozenset(k for k, m in zip(plan.evaluated, following, strict=True) if states[k] > m)


@lru_cache(maxsize=256)
def compile_plan(plan: Plan, prediction: str) -> Program:
    """Assign every evaluated row a slot, freed after its last use, and fold the conversions in.

    g = P out + Q x is stored as x + (P/Q) out, one fused operation, and Q goes into the weights.
    """
    rows = plan.rows
    state_use, output_use = last_uses(plan)
    stores: list[Store | None] = [None] * len(rows)
    scales: dict[int, float] = {}
    busy_until: list[int] = []
    latest = [0, *accumulate(state_use, max)]
    direct: list[tuple[float, float] | None] = [None] * len(rows)
    for k in range(1, len(rows)):
        if latest[k] <= k and output_use[k - 1] <= k:
            direct[k] = _direct(plan, prediction, k)
    for k in plan.evaluated:
        if direct[k + 1] is not None:
            continue
        free = (s for s, until in enumerate(busy_until) if until <= k)
        slot = next(free, len(busy_until))
        busy_until[slot : slot + 1] = [output_use[k]]
        target = rows[k].target
        assert target is not None
        out, state = (float(c) for c in to_target(prediction, rows[k].node, target))
        state_first = abs(state) * 1e6 > abs(out)
        scales[k] = state if state_first else out
        stores[k] = Store(slot, out / state if state_first else state / out, state_first)
    weights = torch.zeros(len(rows), max(1, len(busy_until)), dtype=torch.float64)
    sums = []
    for k, row in enumerate(rows):
        for j, b in row.outputs if direct[k] is None else ():
            store = stores[j]
            assert store is not None
            weights[k, store.slot] += float(b) * scales[j]
        states = tuple((j, float(a)) for j, a in row.states)
        first, a = states[0] if states else (None, 0.0)
        extra = bool(row.noise or row.offset)
        sums.append(Sum(first, a, states[1:], bool(row.outputs), extra, direct[k]))
    spent: list[tuple[int, ...]] = [()] * len(rows)
    alive = set(range(len(rows)))
    for k in plan.evaluated:
        spent[k] = tuple(j for j in range(k + 1) if j in alive and state_use[j] <= k)
        alive.difference_update(spent[k])
    kept, slots = kept_rows(plan), weights.shape[1]
    return Program(tuple(sums), tuple(stores), scales, weights, tuple(spent), kept, slots)


def _direct(plan: Plan, prediction: str, k: int) -> tuple[float, float] | None:
    """(a, b) if row k is a * state + b * output of the evaluation just made, and nothing else."""
    row, last = plan.rows[k], plan.rows[k - 1]
    if last.target is None or [j for j, _ in row.outputs] != [k - 1]:
        return None
    if any(j != k - 1 for j, _ in row.states):
        return None
    out, state = (float(c) for c in to_target(prediction, last.node, last.target))
    b = float(row.outputs[0][1])
    return sum(float(a) for _, a in row.states) + b * state, b * out


class FusedRows:
    """Rows with plain-number coefficients, one matrix-vector product each."""

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        self.plan = plan
        self.program = program = compile_plan(plan, prediction)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.block = torch.zeros(program.slots, x.numel(), dtype=dtype, device=x.device)
        self.states: dict[int, Tensor] = {}
        self.shape = x.shape
        self.drawn: list[Tensor] = []
        self.output = x  # the newest, for a row that takes it directly
        self.edited: Edit | None = None
        self._set_views()

    def _set_views(self) -> None:
        block = self.block
        self.flat = block[0]
        self.columns = block.t()
        self.slots = [slot.view(self.shape) for slot in block]
        self.weights = self.program.weights.to(block.device, block.dtype).unbind()

    def __getstate__(self) -> dict[str, Any]:
        views = ("flat", "columns", "slots", "weights")
        return {key: value for key, value in self.__dict__.items() if key not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_views()

    def start(self, x: Tensor) -> Tensor:
        self.states[0] = x.to(self.block.dtype)
        return self.states[0]

    def mark(self) -> Mark:
        """What `rewind` needs to evaluate the same row again, until another one is."""
        # An evaluation overwrites no slot that its own row or a later one reads.
        return dict(self.states), {}, self.output, self.edited

    def fork(self) -> FusedRows:
        """Another one in the same state."""
        other = copy(self)
        other.block, other.states = self.block.clone(), dict(self.states)
        other._set_views()
        return other

    def rewind(self, mark: Mark) -> None:
        states, _, self.output, self.edited = mark
        self.states = dict(states)

    def combine(self, k: int, draw: NoiseSource) -> Tensor:
        if self.program.sums[k].extra:
            self.drawn = [draw(term, self.slots[0]) for term in self.plan.rows[k].noise]
        result = self._sum(k)
        if self.edited is not None:
            result, self.edited = self.edited.temper(result), None
        self.states[k] = result
        return result

    def again(self, k: int) -> Tensor:
        """The state of row k computed anew, as long as nothing was stored since."""
        self.states[k] = self._sum(k)
        return self.states[k]

    def keep(self, k: int) -> None:
        """Hold the state of row k apart from the tensor handed out, if it is needed for long."""
        if k in self.program.kept:
            self.states[k] = self.states[k].clone()

    def _sum(self, k: int) -> Tensor:
        state, a, others, outputs, extra, direct = self.program.sums[k]
        if direct is not None:
            result = torch.mul(self.states[k - 1], direct[0]).add_(self.output, alpha=direct[1])
            return self._add_extra(k, result) if extra else result
        # Under autocast these would run in half precision, unless they are told where to write.
        flat = torch.empty_like(self.flat)
        if state is None:
            torch.mv(self.columns, self.weights[k], out=flat)
        elif outputs:
            base = self.states[state].reshape(-1)
            torch.addmv(base, self.columns, self.weights[k], beta=a, out=flat)
        else:
            torch.mul(self.states[state].reshape(-1), a, out=flat)
        result = flat.view(self.shape)
        for j, a in others:
            result.add_(self.states[j], alpha=a)
        return self._add_extra(k, result) if extra else result

    def _add_extra(self, k: int, result: Tensor) -> Tensor:
        row = self.plan.rows[k]
        result.add_(row.offset)
        for term, z in zip(row.noise, self.drawn, strict=True):
            result.add_(z, alpha=term.scale)
        return result

    def edit(self, k: int, edited: Tensor) -> None:
        # As in `again`.
        others = [j for j in self.states if j != k and j not in self.program.spent[k]]
        if others:
            difference = edited - self._sum(k)
            for j in others:
                self.states[j] = self.states[j] + transport(self.plan, k, j) * difference
            if corrects(self.plan, k + 1):
                self.edited = Edit(edited, difference)
        self.states[k] = edited

    def evaluate(self, k: int, output: Tensor) -> None:
        store = self.program.stores[k]
        if store is None:
            # The next row takes this output directly, and nothing older is needed any more.
            self.output, self.states = output, {k: self.states[k]}
            return
        slot, ratio, state_first = store
        x, stored = self.states[k], self.slots[slot]
        if ratio == 0:
            stored.copy_(x if state_first else output)
        elif state_first:
            torch.add(x, output, alpha=ratio, out=stored)
        else:
            torch.add(output, x, alpha=ratio, out=stored)
        for j in self.program.spent[k]:
            self.states.pop(j, None)


class TensorRows:
    """Rows term by term, differentiable in states, outputs and coefficients.

    Coefficients are brought to x's device and precision once. Raises ValueError if those of an
    event shape do not fit x.
    """

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        self.plan = plan
        self.like = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        check_event(plan, tuple(x.shape[1:]))
        self.conversions = {}
        for k in plan.evaluated:
            node, target = plan.rows[k].node, plan.rows[k].target
            assert target is not None
            out, state = to_target(prediction, node, target)
            self.conversions[k] = self._to(out), self._to(state)
        self.sums = [
            (
                [(j, self._to(a)) for j, a in row.states],
                [(j, self._to(b)) for j, b in row.outputs],
                self._to(row.offset),
            )
            for row in plan.rows
        ]
        self.state_use, self.output_use = last_uses(plan)
        self.kept = kept_rows(plan)
        self.states: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.drawn: list[Tensor] = []
        self.edited: Edit | None = None

    def start(self, x: Tensor) -> Tensor:
        self.states[0] = self.like
        return self.like

    def take_over(self, rows: FusedRows, k: int) -> None:
        """Go on where ``rows`` waits for the evaluation of row k."""
        self.states, self.drawn, self.edited = dict(rows.states), rows.drawn, rows.edited
        for j in self.plan.evaluated:
            if j >= k or self.output_use[j] < k:
                continue
            store = rows.program.stores[j]
            if store is None:  # row k takes the newest output as it came
                out, state = self.conversions[j]
                self.outputs[j] = self.states[j] * state + out * rows.output.to(self.like.dtype)
            else:
                self.outputs[j] = rows.slots[store.slot] * rows.program.scales[j]

    def mark(self) -> Mark:
        """What `rewind` needs to evaluate the same row again."""
        return dict(self.states), dict(self.outputs), self.like, self.edited

    def fork(self) -> TensorRows:
        """Another one in the same state."""
        other = copy(self)
        other.states, other.outputs = dict(self.states), dict(self.outputs)
        return other

    def rewind(self, mark: Mark) -> None:
        states, outputs, _, self.edited = mark
        self.states, self.outputs = dict(states), dict(outputs)

    def combine(self, k: int, draw: NoiseSource) -> Tensor:
        self.drawn = [draw(term, self.like) for term in self.plan.rows[k].noise]
        result = self._sum(k)
        if self.edited is not None:
            result, self.edited = self.edited.temper(result), None
        self.states[k] = result
        return result

    def again(self, k: int) -> Tensor:
        """As `FusedRows.again`."""
        self.states[k] = self._sum(k)
        return self.states[k]

    def keep(self, k: int) -> None:
        """As `FusedRows.keep`."""
        if k in self.kept:
            self.states[k] = self.states[k].clone()

    def _sum(self, k: int) -> Tensor:
        states, outputs, offset = self.sums[k]
        terms = [(a, self.states[j]) for j, a in states]
        terms += [(b, self.outputs[j]) for j, b in outputs]
        noise = zip(self.plan.rows[k].noise, self.drawn, strict=True)
        terms += [(term.scale, z) for term, z in noise]
        (first, x), *rest = terms or [(0.0, self.like)]
        if isinstance(offset, Tensor) and isinstance(first, Tensor):
            result = torch.addcmul(offset, first, x)
        else:
            result = x * first if isinstance(offset, float) and offset == 0 else x * first + offset
        for coefficient, x in rest:
            result = _add(result, coefficient, x)
        return result

    def edit(self, k: int, edited: Tensor) -> None:
        if k > 0:
            difference = edited - self._sum(k)
            for j in self.states:
                if j != k:
                    factor = self._to(transport(self.plan, k, j))
                    self.states[j] = self.states[j] + factor * difference
            if corrects(self.plan, k + 1):
                self.edited = Edit(edited, difference)
        self.states[k] = edited

    def evaluate(self, k: int, output: Tensor) -> None:
        out, state = self.conversions[k]
        x = self.states[k]
        self.outputs[k] = _add(x * state, out, output.to(x.dtype))
        self.states = {j: x for j, x in self.states.items() if self.state_use[j] > k}
        self.outputs = {j: g for j, g in self.outputs.items() if self.output_use[j] > k}

    def _to(self, value: Coefficient) -> Coefficient:
        return value.to(self.like.device, self.like.dtype) if isinstance(value, Tensor) else value


def _add(result: Tensor, coefficient: Coefficient, x: Tensor) -> Tensor:
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
