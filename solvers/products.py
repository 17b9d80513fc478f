r"""Rows of plain numbers, one matrix-vector product each.

What is alive lies in one contiguous block, the weights are on the device before the first step, and
which rows are filled in is known before the run: nothing is looked up, nothing is read back, and
nothing is waited for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .executor import Executor, Mark
from .plan import Coefficient, Plan
from .segments import layout, maps, product, weights
from .terms import Terms

LARGE = 2**16
"""From so many numbers on, BLAS on a CPU is faster with a state that is scaled beforehand."""


class Products(Executor):
    """Rows of plain numbers: one matrix-vector product each."""

    _derived = ("lines", "like", "sums", "stores", "weights", "flat", "slots", "columns")

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
        self.like = self.slots[0]
        self.columns = [block[begin:end].t() for begin, end in made.spans]

    def mark(self) -> Mark:
        # An evaluation overwrites no slot that its own row or a later one reads.
        return self.waiting, self.state, self.output, self.edited, self._drawn_before()

    def rewind(self, mark: Mark) -> None:
        self.waiting, self.state, self.output, self.edited, before = mark
        self._draw_again(before)

    def _apart(self) -> None:
        self.block = self.block.clone()
        self._derive()

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
            x = torch.zeros_like(self.like) if self.state is None else self.state
            result = torch.mul(x, state)
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
            if row.offset != 0:
                result.add_(row.offset)
            for term, z in zip(row.noise, self.drawn, strict=True):
                result.add_(z, alpha=term.scale)
        if span is None:
            self._put(k, result)
        return result

    def held(self, k: int) -> Tensor:
        slot = self.lines[k].slot
        assert slot is not None
        return self.slots[slot].clone()

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
        other.memory, other.densities = self.memory, self.densities
        return other
