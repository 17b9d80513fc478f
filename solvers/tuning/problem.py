"""What a plan is fitted to: a denoiser, start states and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, check_start
from ..guidance import ClassifierFree
from ..plan import Plan
from .along import Along
from .errors import Features, for_samples, plan_errors
from .options import Tuning
from .references import reference_plan, reference_targets
from .state import Checkpoint

SCALES_OF_RANGE = 4
LEAST_STARTS = 4


@dataclass(frozen=True, eq=False)
class Part:
    """Starts (B, *event) of one denoiser, and their converged solutions.

    ``features`` is what distances are taken of, see `errors.distances`; ``place`` says which part
    and which of its starts these are; ``along`` is there where the states on the way count, too.
    """

    denoise: Any
    starts: Tensor
    targets: Tensor
    features: Features | None = None
    place: tuple[int, Tensor] = (0, torch.zeros(0))
    along: Along | None = None

    def rows(self, rows: Tensor) -> Part:
        """Some of the starts."""
        own = rows.to(self.starts.device)
        part = for_samples(self.denoise, rows, len(self.starts))
        return replace(
            self,
            denoise=part,
            starts=self.starts[own],
            targets=self.targets[own],
            place=(self.place[0], rows),
            along=None if self.along is None else self.along.rows(rows.cpu()),
        )

    def gaps(self, x: Tensor) -> Tensor:
        """(B, m) what the distance of x from the targets is the root mean square of."""
        if self.features is None:
            return (x - self.targets).flatten(1)
        return (self.features(x) - self.features(self.targets)).flatten(1)

    def squares(self, states: Sequence[Tensor], times: Tensor) -> Tensor:
        """(B,) squared errors of a run, by the states at ``times`` (n,) and the sample behind."""
        found = self.gaps(states[-1]).square().mean(1)
        return found if self.along is None else found + self.along.squares(states[:-1], times)


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
        found = [
            plan_errors(plan, p.denoise, p.starts, p.targets, features=p.features)
            for p in self.each
        ]
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


def solved_parts(denoise: Denoiser, starts: Tensor, options: Tuning, kept: Checkpoint) -> Parts:
    """The starts with their converged solutions; for a range of scales, some for each of a few."""
    ends = {"t_start": options.t_start, "t_end": options.t_end}
    plan = reference_plan(denoise.schedule, options.reference_nfe, **ends)
    denoisers = [denoise]
    if options.guidance is not None:
        low, high = options.guidance
        steps = [k / (SCALES_OF_RANGE - 1) for k in range(SCALES_OF_RANGE)]
        denoisers = [guided(denoise, low + (high - low) * step) for step in steps]
    found = []
    rows = [torch.arange(k, len(starts), len(denoisers)) for k in range(len(denoisers))]
    for number, (one, own) in enumerate(zip(denoisers, rows, strict=True)):
        whole = Part(one, starts, starts, options.features, (number, own))
        mine = whole.rows(own)
        if options.targets is not None:
            targets = options.targets[own.to(options.targets.device)]
        elif f"targets{number}" in kept.tensors:
            targets = kept.tensors[f"targets{number}"].to(starts.device)
        else:
            targets = reference_targets(mine.denoise, mine.starts, plan)
            kept.tensors[f"targets{number}"] = targets.cpu()
            kept.save()
        found.append(replace(mine, targets=targets))
    return Parts(tuple(found))


def guided(denoise: Denoiser, scale: float) -> Denoiser:
    """The denoiser at another guidance scale."""
    assert denoise.guidance is not None
    return denoise.with_guidance(replace(denoise.guidance, scale=scale))


def check(denoise: Any, starts: Any, options: Tuning) -> None:
    """Raise ValueError for what cannot be fitted, before the network is called."""
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser")
    check_start(starts, denoise)
    least = LEAST_STARTS * (1 if options.guidance is None else SCALES_OF_RANGE)
    if len(starts) < least:
        raise ValueError(f"starts has {len(starts)} entries: need at least {least}, better 100")
    if options.guidance is not None and not isinstance(denoise.guidance, ClassifierFree):
        raise ValueError(f"guidance={options.guidance!r}: denoise has no ClassifierFree guidance")
    targets = options.targets
    if targets is None:
        return
    if options.guidance is not None:
        raise ValueError("targets were given beside guidance, whose scales have their own")
    if not isinstance(targets, Tensor) or targets.shape != starts.shape:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else targets
        raise ValueError(f"targets={shape!r}: need the shape of starts, {tuple(starts.shape)}")
    if not torch.isfinite(targets).all():
        raise ValueError("targets has values that are not finite")
