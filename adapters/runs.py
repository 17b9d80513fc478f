"""Which run a call of ``step`` belongs to, where several go through the same timesteps.

A run waits at one place and has handed out one state. A call says where it is and which state it
has, and that decides, in this order:

* the state is the one that a run handed out, at the place where it waits: that run goes on;
* the state is the one that a run has just made a step from: the step is taken back and made again;
* a run waits at this place, and no other that is still to go on does or did: the state is that
  run's, edited (inpainting, callbacks);
* otherwise a new run begins here.

So two images in one loop, a loop left early and begun again, a repeated call and a jump back to
noisier times (time travel, RePaint) all are what they would be alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .drive import Drive


class Runs:
    """The runs under way through one list of timesteps; most often it is one.

    Attributes
    ----------
    current : the run of the latest step.
    place : of the step that is expected next, None before the first.
    """

    def __init__(self) -> None:
        self.current: Drive | None = None
        self._place: int | None = None  # where there is no current run
        self._others: list[Drive] = []  # whose last state somebody still has
        self._left: set[int] = set()  # where runs were left waiting, also those that are gone

    def __getstate__(self) -> dict[str, Any]:
        # The others are known by the caller's tensors, of which a copy has none. A run that
        # records gradients cannot be copied.
        current = self.current
        if current is not None and current.differentiable:
            current = None
        left = self._left.union(run.place for run in self._others)
        return {"current": current, "_place": self.place, "_others": [], "_left": left}

    @property
    def place(self) -> int | None:
        return self._place if self.current is None else self.current.place

    def end(self) -> None:
        """No run goes on: the next step begins one, where the last would have been or elsewhere."""
        if self.current is not None:
            self._place = self.current.place
            self._others.append(self.current)
        self.current = None

    def find(self, place: int, sample: Tensor) -> Drive | None:
        """The run of a step at ``place`` from ``sample``, None for one that begins there."""
        current = self.current
        if current is None:
            return None
        if current.place == place and (current.gave(sample) or self._alone(place)):
            return current
        for run in (current, *self._others):
            if run.place == place and run.gave(sample):
                return self._switch(run)
            if run.place == place + 1 and run.took(sample):
                self._left.add(run.place)  # somebody may go on with what is taken back
                run.step_back()
                return self._switch(run)
        return None

    def giver(self, sample: Tensor) -> Drive | None:
        """The run that handed out ``sample``."""
        runs = self._others if self.current is None else [self.current, *self._others]
        return next((run for run in runs if run.gave(sample)), None)

    def place_of(self, sample: Tensor) -> int:
        """Where ``sample`` is expected: where it was handed out for, or taken from, or next."""
        for run in () if self.current is None else (self.current, *self._others):
            if run.gave(sample):
                return run.place
            if run.took(sample):
                return run.place - 1
        return self.place or 0

    def begin(self, run: Drive) -> None:
        """Add a run, which is the current one now."""
        self._switch(run)

    def _alone(self, place: int) -> bool:
        return place not in self._left and all(run.place != place for run in self._others)

    def _switch(self, run: Drive) -> Drive:
        last = self.current
        if last is not None and last is not run:
            self._left.add(last.place)
            self._others.append(last)
        self._others = [other for other in self._others if other.wanted and other is not run]
        self.current = run
        return run
