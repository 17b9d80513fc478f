"""Where a step is, of which run, and after what was written on the scheduler.

`Stepping` keeps the evaluations that ``set_timesteps`` laid out, the table of their times, and the
runs that go through them. What it does before each step costs a handful of comparisons: the times
are recognised as views, and the tensors and the config by their versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, Node
from logsnr.solvers.running import version

from ..config.given_plan import warn_of
from ..timesteps.arguments import tensor
from ..timesteps.evaluations import (
    Evaluations,
    called,
    check_whole,
    evaluations_of_training,
    lay_out,
)
from ..timesteps.rewritten_times import rewritten
from ..timesteps.statistics_checks import check_shape
from ..timesteps.timetable import Timetable
from .plan_run import PlanRun
from .runs import Runs

if TYPE_CHECKING:
    from ..config.description import Description
    from ..config.store import Config

MULTISTEP = ("unipc", "dpm-solver++", "dpm-solver", "dpm-solver-v3", "deis")
LEVEL_ROUNDING = 1e-3  # in lambda, of which training steps are some 1e-2 apart


class Stepping:
    """The part of a scheduler that knows its place."""

    _evaluations: Evaluations | None = None
    _table: Timetable | None = None
    _begins: int | None = None  # what set_begin_index was given
    _index: int | None = None  # what the caller has set _step_index to
    _wanted: int | None = None  # where the caller said that the next step is
    _asked: dict[str, Any] | None = None  # what the timesteps were laid out by
    _first = 0  # where in the table the first of timesteps is

    if TYPE_CHECKING:
        config: Config
        timesteps: Tensor
        sigmas: Tensor
        num_inference_steps: int | None
        _kept: tuple[Tensor, int, DiscreteVP] | None

        @property
        def noise(self) -> Any: ...
        @property
        def _description(self) -> Description: ...
        def _describe(self) -> Description: ...

    def __init__(self) -> None:
        self._runs = Runs()

    def _follow(self, evaluations: Evaluations, table: Timetable) -> None:
        # At once, because every attribute that is set by itself is compared with the config's keys.
        self.__dict__.update(
            _evaluations=evaluations,
            _table=table,
            _runs=Runs(),
            timesteps=table.timesteps,
            sigmas=table.sigmas,
            num_inference_steps=len(evaluations.nodes),
            _begins=None,
            _index=None,
            _wanted=None,
            _first=0,
        )

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which of ``timesteps`` the next run begins; ValueError if there is none."""
        self._hear()
        n = self.num_inference_steps
        if begin_index < 0 or (n is not None and begin_index >= n):
            raise ValueError(
                f"begin_index={begin_index}: the run has {n} evaluations, and at least one must "
                "remain; with a strength, num_inference_steps * strength must be at least 1"
            )
        if self._description.plan is not None or self._description.cards is not None:
            check_whole(begin_index)
        self._begins, self._runs = begin_index, Runs()
        self._index, self._wanted = None, self._first + begin_index

    @property
    def begin_index(self) -> int | None:
        """What ``set_begin_index`` was given since the last ``set_timesteps``."""
        return self._begins

    @property
    def _begin_index(self) -> int | None:
        return self._begins

    @_begin_index.setter
    def _begin_index(self, index: int | None) -> None:
        if index is None:
            self._begins = self._wanted = None
        else:
            self.set_begin_index(index)

    @property
    def step_index(self) -> int | None:
        """The index of the next step in ``timesteps``, None before the first."""
        return self._step_index

    @property
    def _step_index(self) -> int | None:
        place = self._runs.place
        return self._index if self._index is not None or place is None else place - self._first

    @_step_index.setter
    def _step_index(self, index: int | None) -> None:
        # Pipelines set it to None to begin again, and count it down to repeat a step.
        self._hear()
        if index is None:
            self._runs = Runs()
        self._index = index
        self._wanted = None if index is None else self._first + index

    def __getstate__(self) -> dict[str, Any]:
        # A copy made in the middle of a run goes on by itself, where it is. A run that records
        # gradients cannot be copied: there it starts afresh from where it is.
        state = {**self.__dict__}
        if self._table is not None:
            # The times of a copy are its own: a run may change those that are to come.
            state["_table"] = table = deepcopy(self._table)
            for name in ("timesteps", "sigmas"):
                if state[name] is getattr(self._table, name):
                    state[name] = getattr(table, name)
            state["_runs"] = deepcopy(self._runs)
        return state

    def _place(self, timestep: Any, sample: Tensor) -> int:
        """Where in the run ``timestep`` is."""
        if self._table is None:
            self._go_through_training(timestep)
        self._hear()
        table, wanted = self._table, self._wanted
        assert table is not None
        place = table.place_of_view(timestep)
        if place is None:
            expected = self._runs.places_of(sample) if wanted is None else [wanted]
            place = table.place_of_value(timestep, expected)
        if wanted is None or place == wanted:
            return place
        raise ValueError(
            f"timestep={table.told[place]:g} is entry {place - self._first} of timesteps, but "
            f"the step to come was set to {wanted - self._first}"
        )

    def _hear(self) -> None:
        """Follow what was written on the scheduler since ``set_timesteps``, or refuse it.

        A run that is under way ends, and a new one goes on where it was.
        """
        evaluations, table = self._evaluations, self._table
        if evaluations is None or table is None:
            return
        if self._runs.current is None:
            table.check_values()
        if (
            table.untouched(self.timesteps, self.sigmas)
            and self.config.edition is evaluations.description.edition
            and (self._kept is None or version(self._kept[0]) == self._kept[1])
            and self.num_inference_steps in (evaluations.nfe, None)
        ):
            return
        if evaluations.description is not self._description:
            if self._asked is None:
                raise ValueError(
                    "the config was changed after timesteps: call set_timesteps with both"
                )
            again = lay_out(self._description, **self._asked)
            told = again.told(again.nodes)
            if not torch.equal(told, evaluations.told(evaluations.nodes)):
                raise ValueError(
                    "the config was changed after set_timesteps, and now gives other timesteps: "
                    "call set_timesteps again"
                )
            levels = again.levels([*again.nodes, again.end])
            table.rewrite(0, again.nodes, told, levels)
            self._evaluations = evaluations = again
            self._runs.end()
        if not table.untouched(self.timesteps, self.sigmas):
            self._hear_times(evaluations, table)
        n, laid_out = self.num_inference_steps, (self._evaluations or evaluations).nfe
        # Over the timesteps of training there is no such number.
        if n is not None and n != laid_out and n != len(self.timesteps):
            raise ValueError(
                f"num_inference_steps={n} was set, but {laid_out} are laid out: call set_timesteps"
            )

    def _hear_times(self, evaluations: Evaluations, table: Timetable) -> None:
        timesteps, sigmas = tensor("timesteps", self.timesteps), tensor("sigmas", self.sigmas)
        first, place = table.slice_at(timesteps, sigmas), self._runs.place or 0
        done = place + 1 if 0 < place < table.nfe else 0
        if first is not None:
            table.show_slices(timesteps, sigmas)
        elif (after := rewritten(evaluations, table, timesteps, sigmas, done)) is None:
            table.show(timesteps, sigmas)
        else:
            levels = after.levels([*after.nodes, after.end])
            if len(sigmas) == len(levels):
                sigmas.copy_(levels)
            else:
                sigmas = levels.to(sigmas)
            self._table = Timetable(timesteps.cpu(), levels, after.nodes)
            self._table.show(timesteps, sigmas)
            self._evaluations, self.num_inference_steps = after, after.nfe
            self._asked = None
            self._runs.end()
        self.timesteps, self.sigmas, self._first = timesteps, sigmas, first or 0

    def _go_through_training(self, timestep: Any) -> None:
        """Those over the timesteps of training, for a ``step`` without ``set_timesteps``."""
        solver = self._description.solver.name
        if solver in MULTISTEP and not isinstance(timestep, Tensor):
            raise ValueError(
                f"step was called before set_timesteps, with timestep={timestep!r}: solver="
                f"{solver!r} needs to know its steps, or an entry of timesteps"
            )
        evaluations = evaluations_of_training(self._describe(), self.timesteps.tolist())
        told, levels = (
            self.timesteps.cpu(),
            evaluations.levels([*evaluations.nodes, evaluations.end]),
        )
        table = Timetable(told, levels, evaluations.nodes)
        table.show(self.timesteps, self.sigmas)
        self._evaluations, self._table, self.num_inference_steps = (
            evaluations,
            table,
            evaluations.nfe,
        )

    def _begin(self, place: int, output: Tensor, sample: Tensor, eta: float) -> PlanRun:
        """A new run from ``place`` to the end."""
        if not sample.is_floating_point():
            raise ValueError(f"sample is {sample.dtype}: need a tensor of a floating-point dtype")
        if output.device != sample.device:
            raise ValueError(f"model_output is on {output.device}, sample on {sample.device}")
        assert self._evaluations is not None and self._table is not None
        model, ems = self._evaluations.description.model, self._evaluations.description.solver.ems
        if ems is not None:
            check_shape(ems, tuple(sample.shape[1:]))
        self._check_level(place, sample)
        if (given := self._description.plan) is not None:
            warn_of(given, event=sample.shape[1:])
        # For the next image: plans with statistics are kept by whoever uses them.
        self._latest_plan = plan = self._evaluations.plan(place, self._table.nodes, eta)
        self._tell(place, called(plan))
        run = PlanRun(
            plan,
            model.prediction,
            sample,
            sign=model.sign,
            threshold=model.threshold,
            differentiable=torch.is_grad_enabled()
            and (sample.requires_grad or output.requires_grad),
            place=place,
            eta=eta,
            takes_eta=self._evaluations.takes_eta,
            noise=self.noise,
        )
        self._runs.begin(run)
        return run

    def _check_level(self, place: int, sample: Tensor) -> None:
        """ValueError for a state that is known to be noisier than at ``place``."""
        assert self._table is not None
        told, run = self._table.told, self._runs.giver(sample)
        if run is not None and run.node.lam < self._table.nodes[place].lam - LEVEL_ROUNDING:
            raise ValueError(
                f"timestep={told[place]:g}, but sample is a state of more noise, for evaluation "
                f"{run.place} of the run: a step goes to the next of timesteps; to make larger "
                "ones, lay them out with set_timesteps"
            )

    @property
    def _nodes(self) -> Sequence[Node]:
        return () if self._table is None else self._table.nodes

    def _tell(self, begin: int, nodes: Sequence[Node]) -> None:
        """Have the evaluations from ``begin`` on at ``nodes``, of which the first was just made.

        Pipelines iterate over views of ``timesteps``, so that values written in place are seen.
        """
        assert self._evaluations is not None and self._table is not None
        if list(nodes) != self._table.nodes[begin:]:
            if nodes[0] != self._table.nodes[begin]:
                raise ValueError(
                    "sample belongs to a run whose timesteps another run has changed since: let "
                    "each of them have a copy of the scheduler"
                )
            self._table.rewrite(
                begin, nodes, self._evaluations.told(nodes), self._evaluations.levels(nodes)
            )
