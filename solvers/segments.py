r"""A plan as its runs use it: where every value is kept, and its rows as one small matrix a call.

Between two network calls everything is linear. A call at row k takes what is alive, the *slots*
and the state x_k, and its output to what is alive at the next call,

    live' = W_k [live; x_k; output]  (+ offset, + noise).

Only what changes is written. A slot holds a state that is needed beyond the next call, or an output
that is; the state handed out next is a tensor of its own, since the caller may keep it. An output g
that only the next row needs, beside x_k, has no slot: that row is a x_k + b output.

`layout` says what is where, and holds for every prediction type and for coefficients of any kind;
`product` has the numbers of W for plans of plain numbers. Both are made once, and belong to the
plan: they live as long as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .plan import Coefficient, Plan
from .prediction import Linear, to_target

STATE, OUTPUT = -1, -2
"""The places, beside the slots, of the evaluated state and of its output."""

Terms = tuple[tuple[int, int, Coefficient], ...]
Made = TypeVar("Made")


class Line(NamedTuple):
    """A row of a plan with the places of its values.

    Parameters
    ----------
    states, outputs : (place, row, coefficient) of each term.
    adds : whether there is an offset or noise.
    slot : where the state of a row that is not evaluated is put; None: nowhere.
    keep, output : where the state and the g of an evaluated row are put, once it is evaluated.
    reads : whether rows up to the next call read its state as `STATE`, its output as `OUTPUT`.
    others : (slot, row) of the states that rows after this one need, beside its own.
    """

    states: Terms
    outputs: Terms
    adds: bool
    slot: int | None
    keep: int | None
    output: int | None
    reads: tuple[bool, bool]
    others: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """The lines of a plan, and how many slots they take."""

    lines: tuple[Line, ...]
    slots: int

    def held(self, k: int) -> dict[int, tuple[int, bool]]:
        """slot -> (row, whether it is its output) while row k is the newest, not yet evaluated."""
        held: dict[int, tuple[int, bool]] = {}
        for j, line in enumerate(self.lines[:k]):
            kept = {line.slot: False, line.keep: False, line.output: True}
            held |= {slot: (j, output) for slot, output in kept.items() if slot is not None}
        newest = self.lines[k].slot
        return held if newest is None else {**held, newest: (k, False)}


class Sum(NamedTuple):
    """A row of W: state x + output out + weights . slots[spans[span]], put into ``slot``."""

    state: float
    output: float
    span: int | None
    slot: int | None
    adds: bool


class Store(NamedTuple):
    """What an evaluation stores. g is ``scale`` times what is put into its ``slot``,

    x + ratio out if ``state_first``, else out + ratio x. ``keep`` is the slot of the state; for
    ``reads`` see `Line`.
    """

    slot: int | None
    ratio: float
    state_first: bool
    scale: float
    keep: int | None
    reads: tuple[bool, bool]


@dataclass(frozen=True)
class Product:
    """W of every call, for one prediction type: ``weights`` are those of all rows in sequence."""

    sums: tuple[Sum, ...]
    stores: tuple[Store, ...]
    spans: tuple[tuple[int, int], ...]
    weights: Tensor
    sizes: tuple[int, ...]


def made_once(plan: Plan, key: object, make: Callable[[], Made]) -> Made:
    """What ``make`` makes of the plan; kept with it, and gone with it."""
    if key not in plan.compiled:
        # What is kept may be used where gradients are recorded, wherever it is made.
        with torch.inference_mode(False):
            plan.compiled[key] = make()
    return plan.compiled[key]


def layout(plan: Plan) -> Layout:
    """Where every value of a run is kept."""
    return made_once(plan, "layout", lambda: _layout(plan))


def product(plan: Plan, prediction: str) -> Product:
    """The numbers of a plan of numbers, whose network's outputs are of type ``prediction``."""
    return made_once(plan, ("product", prediction), lambda: _product(plan, prediction))


def weights(
    plan: Plan, prediction: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Each row's weights of its slots, where and as precise as they are needed."""
    made = product(plan, prediction)

    def make() -> tuple[Tensor, ...]:
        # What is sent from the host's memory need not be waited for.
        moved = made.weights.to(dtype).to(device, non_blocking=True)
        return moved.split(made.sizes)

    return made_once(plan, (prediction, device, dtype), make)


def maps(plan: Plan, prediction: str) -> dict[int, Linear]:
    """For every evaluated row, g as a linear function of the network's output and the state."""

    def make() -> dict[int, Linear]:
        found = {}
        for k in plan.evaluated:
            row = plan.rows[k]
            assert row.target is not None
            found[k] = to_target(prediction, row.node, row.target)
        return found

    # A graph can be walked through once only.
    return make() if plan.requires_grad else made_once(plan, ("maps", prediction), make)


def last_uses(plan: Plan) -> tuple[list[int], list[int]]:
    """For every row, the last row that needs its state and the last that needs its output."""
    states, outputs = list(range(len(plan.rows))), list(range(len(plan.rows)))
    for k, row in enumerate(plan.rows):
        for j, _ in row.states:
            states[j] = k
        for j, _ in row.outputs:
            outputs[j] = k
    return states, outputs


class _Pool:
    """Slots of one kind; each is taken again once what it holds is not needed any more.

    What rows after the call at hand read is not written to: the call can be made again.
    """

    def __init__(self) -> None:
        self.until: list[int] = []

    def take(self, call: int, until: int) -> int:
        slot = next((s for s, end in enumerate(self.until) if end <= call), len(self.until))
        self.until[slot : slot + 1] = [until]
        return slot


def _layout(plan: Plan) -> Layout:
    rows, last = plan.rows, len(plan.rows) - 1
    state_use, output_use = last_uses(plan)
    following = dict(zip(plan.evaluated, [*plan.evaluated[1:], last], strict=True))
    states, outputs = _Pool(), _Pool()
    state_slot: dict[int, int] = {}
    output_slot: dict[int, int] = {}
    call = -1
    for k, row in enumerate(rows):
        if not row.evaluated and k < last:
            state_slot[k] = states.take(call, state_use[k])
        if not row.evaluated:
            continue
        call = k
        if state_use[k] > following[k]:
            state_slot[k] = states.take(call, state_use[k])
        alone = [j for j, _ in (*rows[k + 1].states, *rows[k + 1].outputs)]
        only_next = output_use[k] == k + 1 and set(alone) == {k} and k not in state_slot
        if output_use[k] > k and not only_next:
            output_slot[k] = outputs.take(call, output_use[k])
    count, sides = len(outputs.until), _sides(len(states.until))
    first = min(sides, default=0)
    state_slot = {
        k: sides[s] - first + (count if sides[s] >= 0 else 0) for k, s in state_slot.items()
    }
    output_slot = {k: s - first for k, s in output_slot.items()}

    def line(k: int) -> Line:
        row = rows[k]
        others = ((state_slot[j], j) for j in range(k) if j in state_slot and state_use[j] > k)
        direct = output_use[k] > k and k not in output_slot
        return Line(
            states=tuple((state_slot.get(j, STATE), j, a) for j, a in row.states),
            outputs=tuple((output_slot.get(j, OUTPUT), j, b) for j, b in row.outputs),
            adds=bool(row.noise) or isinstance(row.offset, Tensor) or row.offset != 0,
            slot=None if row.evaluated else state_slot.get(k),
            keep=state_slot.get(k) if row.evaluated else None,
            output=output_slot.get(k),
            reads=(direct or (state_use[k] > k and k not in state_slot), direct),
            others=tuple(others) if row.evaluated else (),
        )

    return Layout(tuple(map(line, range(len(rows)))), count + len(sides))


def _sides(count: int) -> list[int]:
    """Places -1, 0, -2, 1 ... of the states' slots, with the outputs between -1 and 0.

    A corrected state and the one before lie on both sides, so that each row reads neighbours.
    """
    return [-1 - i // 2 if i % 2 == 0 else i // 2 for i in range(count)]


def _product(plan: Plan, prediction: str) -> Product:
    lines, linear = layout(plan).lines, maps(plan, prediction)
    nothing = Store(None, 0.0, False, 1.0, None, (False, False))
    stores = [
        _store(line, *map(float, linear[k])) if k in linear else nothing
        for k, line in enumerate(lines)
    ]
    spans: list[tuple[int, int]] = []
    sums, weights, sizes = [], [], []
    for line in lines:
        state = output = 0.0
        slots: dict[int, float] = {}
        for place, _, a in line.states:
            if place == STATE:
                state += float(a)
            else:
                slots[place] = slots.get(place, 0.0) + float(a)
        for place, j, b in line.outputs:
            if place == OUTPUT:
                state += float(b) * float(linear[j].x)
                output += float(b) * float(linear[j].out)
            else:
                slots[place] = slots.get(place, 0.0) + float(b) * stores[j].scale
        span = (min(slots), max(slots) + 1) if slots else None
        if span is not None and span not in spans:
            spans.append(span)
        index = None if span is None else spans.index(span)
        sums.append(Sum(state, output, index, line.slot, line.adds))
        weights += [slots.get(slot, 0.0) for slot in range(*span or (0, 0))]
        sizes.append(len(range(*span or (0, 0))))
    numbers = torch.tensor(weights, dtype=torch.float64)
    return Product(tuple(sums), tuple(stores), tuple(spans), numbers, tuple(sizes))


def _store(line: Line, out: float, state: float) -> Store:
    """g = P out + Q x by one operation: the larger of P and Q goes into the weights."""
    if abs(state) * 1e6 > abs(out):
        return Store(line.output, out / state, True, state, line.keep, line.reads)
    ratio = state / out if out else 0.0
    return Store(line.output, ratio, False, out, line.keep, line.reads)
