"""The scheduler that drives an algorithm from a pipeline's loop.

The pipeline calls ``step`` once for every evaluation it made. The output goes into the algorithm's
generator; the state that it asks for next is handed back, and its time is written into
``timesteps`` in place: pipelines iterate over views of that tensor, and so read it there. After
the end the pipeline is asked to stop; where it knows no such thing its networks rest (they repeat
their last output, at no cost) while the loop runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from logsnr.solvers import DiscreteVP, Node, Plan
from logsnr.solvers.prediction import to_data
from logsnr.solvers.registry import find_solver

from ..config.model import Model
from ..config.solver_choice import solver_choice
from ..plans import changed, spread_plan
from ..scheduler import PlanScheduler
from ..steps.step_arguments import without_variance
from ..timesteps.timetable import Timetable
from .algorithm import Algorithm, Loop
from .algorithm_run import AlgorithmRun, Counts, SingleRun, opening
from .batched_run import BatchedRun
from .loop_noise import LoopNoise
from .networks import TIME_ARGUMENTS, Networks


class LoopScheduler(PlanScheduler):
    """Built by ``from_config`` of the pipeline's own scheduler; `attach` gives it the algorithm.

    Times are laid out as `PlanScheduler` does, which decides where the run begins and ends; what
    the algorithm asks for then replaces them one by one.
    """

    algorithm_run: AlgorithmRun | None = None
    stopped = False  # the pipeline was asked to stop, and knows how to

    def attach(
        self,
        pipe: Any,
        algorithm: Algorithm,
        networks: Networks,
        *,
        generator: Any,
        whole_timesteps: bool,
        may_begin_later: bool,
    ) -> None:
        """Say what is driven in which pipeline.

        Parameters
        ----------
        generator : of the call, for stochastic algorithms.
        whole_timesteps : tell variance-preserving networks the nearest training step.
        may_begin_later : whether the pipeline may begin in the middle of ``timesteps``.
        """
        self.pipe, self.algorithm, self.networks = pipe, algorithm, networks
        self.generator, self.whole_timesteps = generator, whole_timesteps
        self.may_begin_later = may_begin_later
        self.counts = Counts()
        if algorithm.groups is not None:
            networks.tell(self._times_of_samples, len(self))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """As `PlanScheduler`; then room for as many times as the algorithm may need."""
        if self.algorithm_run is not None:
            self._begin_again()
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu)
        *nodes, end = self._grid()
        iterations = len(nodes)
        # Pipelines that begin in the middle find the place as a share of the length.
        if not self.may_begin_later:
            spare = self.algorithm.groups is not None  # the first iteration may go unused
            iterations = (self.algorithm.iterations or iterations) + spare
        nodes = [*nodes, *[nodes[-1]] * iterations][:iterations]
        device, levels_device = self.timesteps.device, self.sigmas.device
        self._table = self._timetable([*nodes, end], device, levels_device)
        if self.algorithm.opening is not None and not self.may_begin_later:
            nodes[0] = opening(self.algorithm, self._loop(0))[0]
            self._table = self._timetable([*nodes, end], device, levels_device)
        self.timesteps, self.sigmas = self._table.timesteps, self._table.sigmas
        self.algorithm_run, self.stopped = None, False

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *_: Any,
        return_dict: bool = True,
        **__: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state to evaluate next, or the sample once there is nothing more to evaluate.

        Raises ValueError if the algorithm needs more iterations than are left, and if the pipeline
        evaluated anything but what was asked for.
        """
        if self.algorithm_run is not None and self.algorithm_run.done:
            self.counts.after_end += 1
            self._step_index += 1  # type: ignore[operator]  # _advance has set it
        else:
            self._advance(model_output, timestep, sample)
        states = self._handed_back()
        return SchedulerOutput(prev_sample=states) if return_dict else (states,)

    def _handed_back(self) -> Tensor:
        assert self.algorithm_run is not None
        states, groups = self.algorithm_run.states, self.algorithm.groups
        last = self._step_index == len(self.timesteps)
        if self.algorithm_run.done and groups is not None and not (self.stopped or last):
            # The loop goes on with resting networks, and needs all its samples until the end.
            return states.repeat_interleave(groups, 0)
        return states

    def _advance(self, output: Tensor, timestep: Any, sample: Tensor) -> None:
        place = self._place(timestep, sample)
        if output.shape != sample.shape:
            output = without_variance(self._model.learned_variance, output, sample)
        algorithm_run = self.algorithm_run
        if algorithm_run is None:
            if self.algorithm.groups is not None and not self.networks.calls:
                raise ValueError(
                    f"{type(self.pipe).__name__} has no network with a time argument "
                    f"({', '.join(TIME_ARGUMENTS)}), so its samples cannot be told different times"
                )
            kind: Callable[..., AlgorithmRun] = (
                SingleRun if self.algorithm.groups is None else BatchedRun
            )
            loop = self._loop(place, sample.dtype)
            algorithm_run = kind(self.algorithm, loop, sample, self._convert, self.counts)
            self.algorithm_run = algorithm_run
        self.counts.iterations += 1
        algorithm_run.send(output, sample)
        self._step_index = place + 1
        if algorithm_run.done:
            self._stop()
        elif place + 1 == len(self.timesteps):
            raise ValueError(
                f"num_inference_steps allows {self.counts.iterations} iterations, and the "
                f"algorithm, which is at t={algorithm_run.nodes[0].t:.4g}, needs more: raise it"
            )
        else:
            self._ask(place + 1, algorithm_run.nodes[0])

    def _stop(self) -> None:
        # Pipelines that can be interrupted set the flag when they are called.
        self.stopped = "_interrupt" in vars(self.pipe)
        if self.stopped:
            self.pipe._interrupt = True
        else:
            self.networks.rest()

    def _begin_again(self) -> None:
        """Undo the end of a run: FreeInit goes through the loop several times."""
        if self.stopped:
            self.pipe._interrupt = False
        self.networks.wake()

    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError(
            f"{type(self.pipe).__name__} steps copies of its scheduler (one a modality, or one a "
            "frame), which an algorithm that chooses its own times cannot drive. PlanScheduler can"
        )

    # What the algorithm is given

    def _grid(self) -> tuple[Node, ...]:
        assert self._evaluations is not None
        return self._evaluations.layout.nodes

    def _loop(self, begin: int, dtype: torch.dtype = torch.float32) -> Loop:
        allotted, needed = len(self._nodes) - begin, self.algorithm.iterations or 1
        if needed > allotted:
            raise ValueError(
                f"num_inference_steps={self.num_inference_steps} leaves {allotted} iterations from "
                f"where the pipeline begins, the algorithm needs {needed}: raise it"
            )
        model = self._model
        return Loop(
            schedule=model.schedule,
            prediction="sample" if model.threshold else model.prediction,
            nodes=self._grid()[begin:],
            training_steps=len(self),
            allotted=allotted,
            inverted=model.inverted,
            noise=LoopNoise(self.noise, self.generator, dtype),
            planner=partial(self._planned, begin),
        )

    def _planned(self, begin: int, solver: str, options: Mapping[str, Any]) -> Plan:
        """The plan that a `PlanScheduler` with this config and ``solver`` runs from ``begin``."""
        assert self._evaluations is not None
        nodes, own = self._grid()[begin:], self._evaluations.description.solver
        beside: Mapping[str, Any] = {}
        if own.name == find_solver(solver).name:
            beside = own.beside
            nodes = nodes if begin else self._evaluations.whole.nodes
        n = len(self._grid()) - 1
        named = {**self.config, "solver": {**beside, "name": solver, **options}}
        choice = solver_choice(named, n)
        complete = choice.options(n, n - begin, 0.0)
        plan = spread_plan(self._model.schedule, choice.name, nodes, n - begin, complete)
        return changed(plan, **choice.table_changes(complete, begin))

    def _convert(self, output: Tensor, x: Tensor, node: Node) -> Tensor:
        model = self._model
        if model.sign != 1:
            output = -output
        if model.threshold is None:
            return output
        precise = torch.promote_types(x.dtype, torch.float32)
        return model.threshold(to_data(model.prediction, node)(output.to(precise), x))

    @property
    def _model(self) -> Model:
        assert self._evaluations is not None
        return self._evaluations.description.model

    # What the pipeline is told

    def _told(self, node: Node) -> float:
        assert self._evaluations is not None
        schedule = self._model.schedule
        if isinstance(schedule, DiscreteVP) and not self.whole_timesteps:
            return float(schedule.network_time(node.call[0]))
        (told,) = self._evaluations.layout.told([node], schedule, len(self))
        return round(told) if isinstance(schedule, DiscreteVP) else told

    def _level(self, node: Node) -> float:
        assert self._evaluations is not None
        return self._evaluations.layout.levels([node], self._model.schedule)[0]

    def _timetable(self, nodes: Sequence[Node], device: Any, levels_device: Any) -> Timetable:
        """That of evaluations at ``nodes``, of which the last is the end."""
        told, levels = self._values(nodes[:-1], nodes)
        return Timetable(told, levels, nodes[:-1], device, levels_device)

    def _values(self, nodes: Sequence[Node], levels: Sequence[Node]) -> tuple[Tensor, Tensor]:
        whole = self.whole_timesteps and isinstance(self._model.schedule, DiscreteVP)
        told = torch.tensor([self._told(node) for node in nodes], dtype=torch.float32)
        dtype = torch.int64 if whole else torch.float32
        shown = torch.tensor([self._level(node) for node in levels], dtype=torch.float32)
        return told.to(dtype), shown

    def _ask(self, place: int, node: Node) -> None:
        assert self._table is not None
        self._table.rewrite(place, [node], *self._values([node], [node]))

    def _times_of_samples(self) -> tuple[Tensor, float]:
        """What each sample of a batch is to be told, and the time that the pipeline was told."""
        if self.algorithm_run is None:
            begin = self._begin_index or 0
            nodes, here = opening(self.algorithm, self._loop(begin)), self._nodes[begin]
        else:
            nodes = list(self.algorithm_run.nodes)
            here = nodes[0]
        told = torch.tensor([self._told(node) for node in nodes], dtype=torch.float32)
        return told, self._told(here)

    def _place(self, timestep: Any, sample: Tensor) -> int:
        """Which of ``timesteps`` the pipeline was at; ValueError unless it is the one expected."""
        assert self._table is not None
        expected = self._begin_index if self._step_index is None else self._step_index
        seen = self._table.place_of_view(timestep)
        if expected is None:
            return self._table.place_of_value(timestep, [0]) if seen is None else seen
        if seen is not None:
            if seen == expected:
                return expected
            found = f"is at step {seen}, the algorithm at {expected}"
        else:
            known = None if isinstance(timestep, Tensor) else torch.float64
            value = torch.as_tensor(timestep, dtype=known).flatten()[0]
            wanted = float(self.timesteps[expected])
            whole = not value.is_floating_point()
            rounding = 0.5 if whole else torch.finfo(value.dtype).eps * abs(wanted)
            if abs(float(value) - wanted) <= rounding:
                return expected
            found = f"told the network {float(value):g}, the algorithm had asked for {wanted:g}"
        raise ValueError(
            f"{type(self.pipe).__name__} {found}: it reads its times up front, so that an "
            "algorithm that chooses its own cannot drive it. PlanScheduler can"
        )
