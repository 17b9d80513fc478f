"""The steps of one fit: Adam in coordinates that the curvature makes alike, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .curvature import curvature, gradient_by_differences, preconditioner
from .family import Family
from .objective import gradient, losses
from .options import Tuning
from .problem import Part, Parts
from .relaxed import RelaxedStarts
from .state import Checkpoint

CHECKS = 8
"""How often the average is tried on the starts held out."""
CURVATURE_STARTS = 24
WARM_UP = 5
FIRST, SECOND = 0.9, 0.99
NAMES = ("theta", "average", "best", "first", "second", "frame")


class Fit:
    """One family fitted to ``parts``; its best iterate is the one best on ``held``."""

    def __init__(
        self,
        name: str,
        family: Family,
        parts: Parts,
        held: Parts,
        options: Tuning,
        scale: float,
        kept: Checkpoint,
        begin: Tensor | None = None,
        *,
        reverse: bool = True,
    ):
        self.name, self.family, self.parts, self.held = name, family, parts, held
        self.options, self.scale, self.kept = options, scale, kept
        self.step, self.reverse = 0, reverse
        zero = torch.zeros(family.size, dtype=torch.float64)
        begin = zero if begin is None else begin
        self.state: dict[str, Tensor] = {key: zero.clone() for key in NAMES}
        for key in ("theta", "average", "best"):
            self.state[key] = begin.clone()
        self.state["second"] = torch.zeros((), dtype=torch.float64)
        self.best = self._held_out(begin)
        self.rate = options.rate
        self.relaxed = RelaxedStarts(parts, options.relax) if options.relax else None

    def run(self, show: Callable[[int], None]) -> Tensor:
        """theta of the best iterate."""
        if not self.family.size:
            return self.state["best"]
        if f"{self.name}.step" in self.kept.values:
            self._take_up()
        else:
            self._look_around()
        steps = self.options.steps
        while self.step < steps:
            self._go()
            self.step += 1
            if self.step % max(1, steps // CHECKS) == 0 or self.step == steps:
                self._try_average()
            show(self.step)
            self._keep()
        self._keep(now=True)
        return self.state["best"]

    def _look_around(self) -> None:
        size = self.family.size
        if self.options.optimiser == "adam" or not self.options.steps:
            self.state["frame"] = torch.eye(size, dtype=torch.float64)
            return
        few = self.parts.first(CURVATURE_STARTS)
        hessian = curvature(self.family, self.state["theta"], few, *self._objective)
        # In one piece, as it is read back: sums in another order round differently.
        self.state["frame"] = preconditioner(hessian).contiguous()

    @property
    def _objective(self) -> tuple[str, float]:
        return self.options.objective, self.scale

    def _go(self) -> None:
        """One step. One that leads to no finite objective is taken back, and the rate halved."""
        state, number = self.state, self.step
        batch = self.parts.batch(number, self.options.batch_size, self.options.seed)
        try:
            slope = self._slope(batch)
        except (ValueError, ArithmeticError):
            slope = torch.full_like(state["theta"], math.nan)
        if not torch.isfinite(slope).all():
            self.rate /= 2
            state["theta"] = state["best"].clone()
            state["first"] = torch.zeros_like(state["first"])
            return
        slope = state["frame"].T @ slope
        state["first"] = FIRST * state["first"] + (1 - FIRST) * slope
        # One size for all: the frame has made the directions alike.
        whole = self.options.optimiser == "preconditioned"
        square = slope.square().mean() if whole else slope.square()
        state["second"] = SECOND * state["second"] + (1 - SECOND) * square
        first = state["first"] / (1 - FIRST ** (number + 1))
        second = state["second"] / (1 - SECOND ** (number + 1))
        move = first / second.sqrt().clamp(min=1e-30)
        state["theta"] = state["theta"] - state["frame"] @ (self._rate * move)
        share = min(self.options.average, number / (number + 1))
        state["average"] = share * state["average"] + (1 - share) * state["theta"]

    def _slope(self, batch: Part) -> Tensor:
        """The gradient by theta; starts that may move take their step."""
        theta, relaxed = self.state["theta"], self.relaxed
        moved = batch if relaxed is None else relaxed.moved(batch)
        if not self.reverse:
            return gradient_by_differences(self.family, theta, moved, *self._objective)
        found = gradient(
            self.family,
            theta,
            moved,
            *self._objective,
            by_starts=relaxed is not None,
            save_memory=self.options.save_memory,
        )
        if relaxed is not None and found.starts is not None and torch.isfinite(found.theta).all():
            relaxed.follow(batch, found.starts)
        return found.theta

    @property
    def _rate(self) -> float:
        fallen = (1 + math.cos(math.pi * self.step / self.options.steps)) / 2
        return self.rate * fallen * min(1.0, (self.step + 1) / WARM_UP)

    def _try_average(self) -> None:
        found = self._held_out(self.state["average"])
        if found < self.best:
            self.best = found
            self.state["best"] = self.state["average"].clone()

    def _held_out(self, theta: Tensor) -> float:
        """The objective on the starts held out; infinite for a plan that breaks."""
        try:
            errors = self.held.errors(self.family.plan(theta))
        except (ValueError, ArithmeticError):
            return math.inf
        loss = float(losses(self.options.objective, errors.square(), self.scale).mean())
        return loss if math.isfinite(loss) else math.inf

    def _keep(self, *, now: bool = False) -> None:
        for key, value in self.state.items():
            self.kept.tensors[f"{self.name}.{key}"] = value
        for number, offsets in enumerate(self._offsets):
            self.kept.tensors[f"{self.name}.offsets{number}"] = offsets.cpu()
        values = {"step": self.step, "best": self.best, "rate": self.rate}
        self.kept.values.update({f"{self.name}.{key}": value for key, value in values.items()})
        self.kept.save(now=now)

    def _take_up(self) -> None:
        self.state = {key: self.kept.tensors[f"{self.name}.{key}"].clone() for key in NAMES}
        for number, offsets in enumerate(self._offsets):
            offsets.copy_(self.kept.tensors[f"{self.name}.offsets{number}"])
        self.step, self.best, self.rate = (
            self.kept.values[f"{self.name}.{key}"] for key in ("step", "best", "rate")
        )

    @property
    def _offsets(self) -> list[Tensor]:
        return [] if self.relaxed is None else self.relaxed.offsets
