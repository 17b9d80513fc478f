"""Which run a call of ``step`` belongs to, where several go through the same timesteps.

A run waits at one place and has handed out one state. A call says where it is and which state it
has, and that decides, in this order:

* the state is the one that a run handed out, at the place where it waits: that run goes on;
* the state is the one that a run has just made a step from: the step is made again, from there;
* the latest run with states of this shape waits at this place, and no other that is still to go
  on does or did: the state is that run's, edited (inpainting, callbacks);
* otherwise a new run begins here.

So two images in one loop, a loop left early and begun again, a repeated call and a jump back to
noisier times (time travel, RePaint) all are what they would be alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Size, Tensor

from .plan_run import PlanRun

MOST = 64  # runs that are kept; what comes back to another is a new one


class Runs:
    """The runs under way through one list of timesteps; most often it is one.

    Attributes
    ----------
    current : the run of the latest step.
    place : of the step that is expected next, None before the first.
    """

    def __init__(self) -> None:
        self.current: PlanRun | None = None
        self._place: int | None = None  # where there is no current run
        self._others: list[PlanRun] = []  # whose last state somebody has, or the latest of a shape
        # Where runs were left for another one with states of the same shape, and that shape
        self._left: set[tuple[int, Size]] = set()

    def __getstate__(self) -> dict[str, Any]:
        # The others are known by the caller's tensors, of which a copy has none. A run that
        # records gradients cannot be copied.
        current = self.current
        if current is not None and current.differentiable:
            current = None
        left = self._left.union((run.place, run.shape) for run in self._others)
        return {"current": current, "_place": self.place, "_others": [], "_left": left}

    @property
    def place(self) -> int | None:
        return self._place if self.current is None else self.current.place

    def begin(self, run: PlanRun) -> None:
        """Add a run, which is the current one now."""
        self._switch(run)

    def end(self) -> None:
        """No run goes on: the next step begins one, where the last would have been or elsewhere."""
        if self.current is not None:
            self._place = self.current.place
            self._others.append(self.current)
        self.current = None

    def find(self, place: int, sample: Tensor) -> PlanRun | None:
        """The run of a step at ``place`` from ``sample``, None for one that begins there."""
        current = self.current
        if current is None:
            return None
        if current.place == place and current.gave(sample):
            if self._others:
                self._let_go(current)
            return current
        for run in self._all():
            if run.place == place and run.gave(sample):
                return self._switch(run)
            if run.place == place + 1 and run.took(sample):
                return self._again(run)
        alike = [run for run in self._all() if run.shape == sample.shape]
        here = [run for run in alike if run.place == place]
        if here == alike[:1] and (place, sample.shape) not in self._left:
            return self._switch(here[0]) if here else None
        return None

    def giver(self, sample: Tensor) -> PlanRun | None:
        """The run that handed out ``sample``."""
        return next((run for run in self._all() if run.gave(sample)), None)

    def places_of(self, sample: Tensor) -> list[int]:
        """Where ``sample`` is expected: where it was handed out for, or taken from, or next."""
        given = [run.place for run in self._all() if run.gave(sample)]
        taken = [run.place - 1 for run in self._all() if run.took(sample)]
        return [*given, *taken, self.place or 0]

    def _all(self) -> Iterable[PlanRun]:
        latest_first = reversed(self._others)
        return latest_first if self.current is None else (self.current, *latest_first)

    def _again(self, run: PlanRun) -> PlanRun:
        """The run in which the last step of ``run`` is not made yet."""
        if run.wanted:  # somebody may go on with the state that it led to
            return self._switch(run.fork())
        self._left.add((run.place, run.shape))
        run.step_back()
        return self._switch(run)

    def _switch(self, run: PlanRun) -> PlanRun:
        if self.current is not None and self.current is not run:
            self._others.append(self.current)
        self._others = [other for other in self._others if other is not run]
        self._left.update(
            (other.place, other.shape) for other in self._others if other.shape == run.shape
        )
        self.current = run
        self._let_go(run)
        return run

    def _let_go(self, current: PlanRun) -> None:
        """Keep no run that nobody can go on with."""
        others = (run for run in self._others if run.wanted or run.shape != current.shape)
        self._others = list(others)[-MOST:]
