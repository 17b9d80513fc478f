"""What a plan is fitted to: a denoiser, start states and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from .errors import for_samples, plan_errors


@dataclass(frozen=True, eq=False)
class Part:
    """Starts (B, *event) of one denoiser, and their converged solutions."""

    denoise: Any
    starts: Tensor
    targets: Tensor

    def rows(self, rows: Tensor) -> Part:
        """Some of the starts."""
        own = rows.to(self.starts.device)
        part = for_samples(self.denoise, rows, len(self.starts))
        return Part(part, self.starts[own], self.targets[own])


@dataclass(frozen=True, eq=False)
class Parts:
    """Starts of several denoisers: those of a range of guidance scales; mostly of one."""

    each: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Of all starts."""
        return sum(len(part.starts) for part in self.each)

    def errors(self, plan: Plan) -> Tensor:
        """Of every start, (B,) float64."""
        found = [plan_errors(plan, p.denoise, p.starts, p.targets) for p in self.each]
        return torch.cat(found)

    def halves(self, share: float) -> tuple[Parts, Parts]:
        """Starts to fit to and starts held out, a ``share`` of every part, one at least of each."""
        kept, held = [], []
        for part in self.each:
            total = len(part.starts)
            count = min(max(1, round(share * total)), total - 1)
            kept.append(part.rows(torch.arange(total - count)))
            held.append(part.rows(torch.arange(total - count, total)))
        return Parts(tuple(kept)), Parts(tuple(held))

    def batch(self, step: int, size: int, seed: int) -> Part:
        """The starts of one step of the optimiser, by its number alone.

        Steps take the parts in turn, and each part's starts in an order that is drawn anew
        whenever all were taken.
        """
        part, turn = self.each[step % len(self.each)], step // len(self.each)
        total = len(part.starts)
        size = min(size, total)
        taken = torch.arange(turn * size, (turn + 1) * size)
        orders = {epoch: _order(total, seed, epoch) for epoch in set((taken // total).tolist())}
        rows = [int(orders[k // total][k % total]) for k in taken.tolist()]
        return part.rows(torch.tensor(sorted(rows)))

    def first(self, count: int) -> Parts:
        """About ``count`` starts, the first of every part."""
        some = max(1, count // len(self.each))
        return Parts(tuple(p.rows(torch.arange(min(some, len(p.starts)))) for p in self.each))


def _order(total: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(total, generator=generator)


def divided(starts: Tensor, count: int) -> Sequence[Tensor]:
    """The numbers of the starts of each of ``count`` parts, in turn."""
    return [torch.arange(k, len(starts), count) for k in range(count)]
