r"""Filling in the rows of a plan: states and outputs in, the next state out.

`FusedRows` keeps the outputs of past evaluations in one contiguous block, so that a row is a
single matrix-vector product with coefficients that are already on the device: no
synchronisation, no look-up, one new tensor. `TensorRows` writes the same sum out term by term,
for coefficients that are tensors and for runs that are differentiated.

Both keep states and outputs in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .noise import NoiseSource
from .plan import Coefficient, Plan
from .prediction import to_target


class Term(NamedTuple):
    """How an evaluated row enters the block of outputs: stored = (first) + ratio * (second)."""

    scale: float  # g = scale * stored
    ratio: float
    state_first: bool  # stored = x + ratio * out, otherwise out + ratio * x
    slot: int


@dataclass(frozen=True)
class Program:
    """What `FusedRows` needs of a plan for one prediction type; computed once."""

    terms: dict[int, Term]
    weights: Tensor  # (rows, slots) float64
    states: tuple[tuple[tuple[int, float], ...], ...]  # of each row: the A's
    last_use: tuple[int, ...]  # of each row's state, by later rows
    slots: int


@lru_cache(maxsize=256)
def compile_plan(plan: Plan, prediction: str) -> Program:
    """Assign every evaluated row a slot, freed after its last use, and fold the conversions in."""
    rows = plan.rows
    output_use = {k: k for k in plan.evaluated}
    state_use = list(range(len(rows)))
    for k, row in enumerate(rows):
        for j, _ in row.outputs:
            output_use[j] = k
        for j, _ in row.states:
            state_use[j] = k
    terms: dict[int, Term] = {}
    busy_until: list[int] = []
    for k in plan.evaluated:
        free = (s for s, until in enumerate(busy_until) if until <= k)
        slot = next(free, len(busy_until))
        busy_until[slot : slot + 1] = [output_use[k]]
        target = rows[k].target
        assert target is not None
        out, state = (float(c) for c in to_target(prediction, rows[k].node, target))
        if abs(state) * 1e6 > abs(out):
            terms[k] = Term(state, out / state, True, slot)
        else:
            terms[k] = Term(out, state / out, False, slot)
    weights = torch.zeros(len(rows), max(1, len(busy_until)), dtype=torch.float64)
    for k, row in enumerate(rows):
        for j, b in row.outputs:
            weights[k, terms[j].slot] += float(b) * terms[j].scale
    states = tuple(tuple((j, float(a)) for j, a in row.states) for row in rows)
    return Program(terms, weights, states, tuple(state_use), weights.shape[1])


class FusedRows:
    """Rows with plain-number coefficients, one matrix-vector product each."""

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        self.plan = plan
        self.program = compile_plan(plan, prediction)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.block = torch.zeros(self.program.slots, x.numel(), dtype=dtype, device=x.device)
        self.columns = self.block.t()
        self.slots = [slot.view(x.shape) for slot in self.block]
        self.weights = self.program.weights.to(x.device, dtype).unbind()
        self.states: dict[int, Tensor] = {}
        self.shape = x.shape
        self.drawn: list[Tensor] = []

    def start(self, x: Tensor) -> Tensor:
        self.states[0] = x.to(self.block.dtype)
        return self.states[0]

    def combine(self, k: int, draw: NoiseSource) -> Tensor:
        row = self.plan.rows[k]
        self.drawn = [draw(term, self.slots[0]) for term in row.noise]
        result = self._sum(k)
        self.states[k] = result
        return result

    def _sum(self, k: int) -> Tensor:
        row, weights = self.plan.rows[k], self.weights[k]
        if states := self.program.states[k]:
            (j, a), *others = states
            base = self.states[j].reshape(-1)
            if row.outputs:
                result = torch.addmv(base, self.columns, weights, beta=a).view(self.shape)
            else:
                result = (base * a).view(self.shape)
            for j, a in others:
                result.add_(self.states[j], alpha=a)
        else:
            result = torch.mv(self.columns, weights).view(self.shape)
        if row.offset:
            result.add_(row.offset)
        for term, z in zip(row.noise, self.drawn, strict=True):
            result.add_(z, alpha=term.scale)
        return result

    def edit(self, k: int, edited: Tensor) -> None:
        # Nothing was stored since row k was computed, so its old value can be computed again.
        others = [j for j in self.states if j != k and self.program.last_use[j] > k]
        if others:
            difference = edited - self._sum(k)
            for j in others:
                self.states[j] = self.states[j] + transport(self.plan, k, j) * difference
        self.states[k] = edited

    def evaluate(self, k: int, output: Tensor) -> None:
        x, (_, ratio, state_first, slot) = self.states[k], self.program.terms[k]
        stored = self.slots[slot]
        if ratio == 0:
            stored.copy_(x if state_first else output)
        elif state_first:
            torch.add(x, output, alpha=ratio, out=stored)
        else:
            torch.add(output, x, alpha=ratio, out=stored)
        last_use = self.program.last_use
        self.states = {j: state for j, state in self.states.items() if last_use[j] > k}


class TensorRows:
    """Rows term by term, differentiable in states, outputs and coefficients."""

    def __init__(self, plan: Plan, prediction: str, x: Tensor):
        self.plan = plan
        self.prediction = prediction
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.device = x.device
        self.states: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.drawn: list[Tensor] = []

    def start(self, x: Tensor) -> Tensor:
        self.states[0] = x.to(self.dtype)
        return self.states[0]

    def combine(self, k: int, draw: NoiseSource) -> Tensor:
        row = self.plan.rows[k]
        self.drawn = [draw(term, self.states[0]) for term in row.noise]
        self.states[k] = self._sum(k)
        return self.states[k]

    def _sum(self, k: int) -> Tensor:
        row = self.plan.rows[k]
        result = torch.zeros_like(self.states[0])
        for j, a in row.states:
            result = result + self._to(a) * self.states[j]
        for j, b in row.outputs:
            result = result + self._to(b) * self.outputs[j]
        for term, z in zip(row.noise, self.drawn, strict=True):
            result = result + term.scale * z
        return result + self._to(row.offset)

    def edit(self, k: int, edited: Tensor) -> None:
        if k > 0:
            difference = edited - self._sum(k)
            for j in [j for j in self.states if j != k]:
                self.states[j] = self.states[j] + transport(self.plan, k, j) * difference
        self.states[k] = edited

    def evaluate(self, k: int, output: Tensor) -> None:
        target = self.plan.rows[k].target
        assert target is not None
        out, state = to_target(self.prediction, self.plan.rows[k].node, target)
        x = self.states[k]
        self.outputs[k] = self._to(out) * output.to(self.dtype) + self._to(state) * x

    def _to(self, value: Coefficient) -> Coefficient:
        return value.to(self.device, self.dtype) if isinstance(value, Tensor) else value


def transport(plan: Plan, k: int, j: int) -> float:
    """How a difference of the state of row k carries to the state of row j."""
    target, here, there = plan.rows[k].target, plan.rows[k].node, plan.rows[j].node
    assert target is not None
    by_signal = here.sigma == 0 or (target == (1.0, 0.0, 0.0) and here.alpha > 0)
    return there.alpha / here.alpha if by_signal else there.sigma / here.sigma
