"""PlanScheduler: every solver of the registry as a drop-in scheduler of diffusers pipelines.

    config = pipe.scheduler.config
    pipe.scheduler = PlanScheduler.from_config(config, solver="unipc", solver_order=3)

A pipeline owns the loop and calls ``step`` once for every network evaluation. The scheduler keeps
one run of a plan (a generator), sends it each network output and hands back the state to evaluate
next, so ``num_inference_steps`` is the NFE for every solver. States are what the network is shown,
variance-preserving or flow states also for EDM networks and for Stable Video Diffusion:
``init_noise_sigma`` is about 1 and the model input is not scaled.

The plan is laid out at the first ``step``, for the timesteps that remain: image-to-image strength
and split schedules start in the middle. Options are not read before ``set_timesteps``, because
Stable Diffusion's constructors rewrite the config of a scheduler that is already built.

A saved pipeline stores this module's dotted name; it must not be renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from logsnr.solvers import EMS, FlowMatching, Node, Plan
from logsnr.solvers.names import also_named
from logsnr.solvers.run import version

from .arguments import check_eta, check_others, count, listed, number, tensor, without_variance
from .attributes import StockAttributes
from .choices import OTHER_NAMES, check_implied, checked, without_implied
from .config import Config, as_one
from .course import Course, called, lay_out, training_course
from .description import Description, described
from .drive import Drive
from .ems_file import check_shape, read_beside, write_beside
from .foreign import in_force, is_own, model_in_force, of_the_model, with_habits
from .keys import check_known, defaults, said_only, unsaid
from .layout import node_told
from .noise_levels import noisy
from .noise_schedules import noise_schedule
from .rewritten import rewritten
from .runs import Runs
from .sigma_models import COSMOS, SigmaModel, StateOnly, start_deviation
from .spacing import one_grid
from .step_output import DataPrediction, StepOutput
from .stock import REPLACED, class_defaults, replaceable_class, stock_scheduler, swappable
from .summary import summary
from .timetable import Timetable
from .training import training_table

MULTISTEP = ("unipc", "dpm-solver++", "dpm-solver", "dpm-solver-v3", "deis")
LEVEL_ROUNDING = 1e-3  # in lambda, of which training steps are some 1e-2 apart


class PlanScheduler(StockAttributes, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler that runs a solver of ``logsnr.solvers.SOLVERS``.

    Parameters
    ----------
    solver : a name of the registry, or a mapping {"name": ..., option: value} for options that
        have no diffusers key. None, with ``solver_order=None``, is what is best for the number of
        evaluations (see `settled`).
    prediction_type : None is the velocity for flow models and epsilon otherwise.
    timestep_spacing : a name of ``logsnr.solvers.SPACINGS``. "auto" is the logistic grid.
    location, scale : its centre and its width in lambda; None is what is best known.
    final_sigmas_type : "zero" or "sigma_min"; None follows ``set_alpha_to_one`` for
        ``solver="ddim"`` and is "zero" otherwise.
    shift : makes this a flow-matching scheduler, as FlowMatchEulerDiscreteScheduler's;
        ``use_flow_sigmas`` with ``flow_shift`` does too, as the multistep schedulers do.

    sigma_data : makes this a scheduler for an EDM-preconditioned network, with ``sigma_min``,
        ``sigma_max``, ``sigma_schedule`` and ``rho`` as EDMDPMSolverMultistepScheduler's.
    exact_sigmas : use the ``sigmas`` given to a flow model as they are, without shift or stretch.
    ems : the statistics of DPM-Solver-v3, or the path of their file or folder. They are saved
        beside the config, which names the file.
    stock_class, replaced : the class of diffusers that the config came from, and what it said of
        sampling and is not followed; `from_config` fills them in, `to_stock` gives them back.

    All other parameters are diffusers' own; docs/pipelines.md lists them. Keys of other schedulers
    are kept in the config. Values are checked by ``set_timesteps`` (ValueError).
    """

    _compatibles = list(REPLACED)
    order = 1

    _described: Description | None = None
    _course: Course | None = None
    _table: Timetable | None = None
    _begin_index: int | None = None
    _index: int | None = None  # what the caller has set _step_index to
    _wanted: int | None = None  # where the caller said that the next step is
    _asked: dict[str, Any] | None = None  # what the timesteps were laid out by
    _first = 0  # where in the table the first of timesteps is

    @also_named(OTHER_NAMES)
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        timestep_type: str = "discrete",
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float | None = None,
        prediction_type: str | None = None,
        variance_type: str | None = None,
        solver: str | Mapping[str, Any] | None = None,
        solver_order: int | None = None,
        solver_type: str | None = None,
        predict_x0: bool = True,
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        disable_corrector: Sequence[int] = (),
        lambda_min_clipped: float | None = None,
        timestep_spacing: str = "auto",
        location: float | None = None,
        scale: float | None = None,
        steps_offset: int = 0,
        final_sigmas_type: str | None = None,
        set_alpha_to_one: bool | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float | None = None,
        shift_terminal: float | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        exact_sigmas: bool = False,
        ems: EMS | str | Path | None = None,
        stock_class: str | None = None,
        replaced: Mapping[str, Any] | None = None,
    ):
        said = set(self.config) - set(self.config.get("_use_default_values", ()))
        check_implied(self.config, said)
        self.register_to_config(**checked(self.config))
        # What training scripts read; pipelines replace it by set_timesteps.
        self.num_inference_steps: int | None = None
        self._runs = Runs()
        self.timesteps, self.sigmas = training_table(self.config, noise_schedule(self.config))

    @classmethod
    @also_named(OTHER_NAMES)
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        keep_sampling: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The scheduler for the config of another one, with ``kwargs`` instead of its values.

        What the config of a scheduler of diffusers says about the model is taken over. Its grid,
        its order and its last steps are not, unless ``keep_sampling`` says so: they are ours to
        choose, and yours as keywords. A log line names what is not followed.

        Raises ValueError for a keyword that no scheduler has, and for the config of a scheduler
        whose place cannot be taken: LCM, consistency models, Stable Cascade and others.
        """
        if isinstance(config, SchedulerMixin):
            raise ValueError(f"config is a {type(config).__name__}: give its .config")
        if isinstance(config, Mapping):
            if not return_unused_kwargs:
                check_known(kwargs, frozenset(defaults(cls)), cls._get_compatibles(), config)
            own, origin = is_own(config, cls.__name__), None
            if not own and (origin := replaceable_class(config)) is not None:
                kwargs.setdefault("stock_class", origin)
            config = as_one(config, class_defaults(config), settled=kwargs)
            if own:
                config = in_force(config)
            elif keep_sampling:
                config = with_habits(config)
            else:
                config = of_the_model(config, kwargs, origin)
            config = without_implied(one_grid(config, kwargs), kwargs)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers; with the statistics that the config names."""
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if "ems" in config:
            config["ems"] = read_beside(config, pretrained_model_name_or_path, kwargs)
        return loaded

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in diffusers; with the statistics beside the config."""
        write_beside(self.config, save_directory)
        super().save_config(save_directory, push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type]:
        """The classes of diffusers that this very config can be swapped with, there and back."""
        return swappable(self, defaults(PlanScheduler))

    def to_stock(self) -> Any:
        """A scheduler of diffusers' own with this config: of the class that it came from.

        For pipelines that are to be used where this package is not installed. A config that came
        from none gives the class nearest to its solver.
        """
        return stock_scheduler(self.config, defaults(PlanScheduler), self._description.solver)

    def to_json_string(self) -> str:
        """The config as JSON: what describes the model, and what was set to other than defaults."""
        return said_only(super().to_json_string(), unsaid(self.config, defaults(PlanScheduler)))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out a run of ``num_inference_steps`` network evaluations.

        Parameters
        ----------
        timesteps : what the network is told, in falling order; used exactly as given. Solvers with
            several evaluations a step make a full step from each (``heun``: 2n - 1 evaluations).
        sigmas : as diffusers has them. Flow: t of the evaluations, which the config's shift moves
            unless it has ``exact_sigmas``. Others: sigma / alpha of all nodes, the end included.
            Steps as for ``timesteps``, except for the lists that flow pipelines send by themselves.
        mu : the dynamic shift of flow models.

        Raises ValueError for bad values, here or in the config.
        """
        asked: dict[str, Any] = {
            "n": num_inference_steps,
            "timesteps": listed("timesteps", timesteps),
            "sigmas": listed("sigmas", sigmas),
            "mu": None if mu is None else number("mu", mu),
        }
        self._described = described(
            self.config, count(asked["n"], asked["timesteps"], asked["sigmas"])
        )
        course = lay_out(self.config, self._described, **asked)
        # As in diffusers, only flow models have their noise levels where the network is.
        flow = isinstance(course.schedule, FlowMatching)
        table = Timetable(
            course.told(course.nodes),
            course.levels([*course.nodes, course.end]),
            course.nodes,
            device,
            device if flow else None,
        )
        self._asked = asked
        self._follow(course, table)
        self._begin_index = None

    def _follow(self, course: Course, table: Timetable) -> None:
        self._course, self._table, self._runs = course, table, Runs()
        self.timesteps, self.sigmas = table.timesteps, table.sigmas
        self.num_inference_steps = course.nfe
        self._index = self._wanted = None
        self._first = 0

    @torch.compiler.disable  # a run is a generator; compiled, it would be traced at every step
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> StepOutput | tuple[Tensor]:
        """The state at the next evaluation, or the sample after the last one.

        Parameters
        ----------
        model_output : the network's output at ``sample`` (B, *event), which may have been edited
            since it was handed out.
        timestep : an entry of ``timesteps``, which says where in the run the step is. Where that
            is not the next one, or the sample not the one handed out, see `Runs`.
        eta : for solvers that have it.
        generator, variance_noise : the source of noise for stochastic solvers.
        others : what other classes of diffusers have, see `check_others`.

        Without ``set_timesteps`` the run goes through all timesteps of training. (As in diffusers
        the multistep solvers in lambda then refuse a plain number, which tells them no steps.)

        Raises ValueError for a timestep that is none of the run's, for a model_output that does not
        fit the sample, and for what was written on the scheduler since ``set_timesteps`` and cannot
        be followed.
        """
        if model_output.shape != sample.shape:
            model_output = without_variance(self.config, model_output, sample)
        eta = check_eta(eta)
        place = self._place(timestep, sample)
        if others:
            self._check_others(others, place)
        last = self._runs.current
        run = self._runs.find(place, sample)
        if run is None or run.eta != eta:
            run = self._begin(place, model_output, sample, eta)
        elif run is not last:
            self._tell(run.place, run.nodes[run.place - run.begin :])
        run.generator, run.variance_noise = generator, variance_noise
        node = run.node
        previous = run.step(model_output, sample)
        self._index = self._wanted = None
        if return_dict:
            predict = DataPrediction(self._description, node, model_output, sample)
            return StepOutput(previous, predict)
        return StateOnly((previous,)) if self._description.edm else (previous,)

    @property
    def plan(self) -> Plan | None:
        """The solver's table for the run under way, or for the one to come; None if none is laid
        out. ``print(scheduler.plan)`` shows its nodes and coefficients.
        """
        if self._course is None or self._table is None:
            return None
        run, begin = self._runs.current, self._first + (self._begin_index or 0)
        if run is not None:
            return self._course.plan(run.begin, self._table.nodes, run.eta)
        return self._course.plan(begin, self._table.nodes, 0.0)

    def __repr__(self) -> str:
        told = [] if self._table is None else self._table.told
        listed = self._course is not None and self._course.layout.listed is not None
        return summary(self._description.method, told, listed)

    @property
    def init_noise_sigma(self) -> float:
        """1, and as near to 1 as diffusers starts models that a range of sigma describes."""
        schedule = self._description.schedule
        if not isinstance(schedule, SigmaModel):
            return 1.0
        highest = schedule.sigma_max
        if self._nodes:
            highest = self._nodes[0].t * schedule.sigma_data
        return schedule.start_scale(highest, start_deviation(self.config, highest))

    def scale_model_input(self, sample: Tensor, timestep: Any = None, **_: Any) -> Tensor:
        """The sample itself.

        Raises ValueError for a number: a pipeline that scales one preconditions its network for
        states of variance 1 + sigma^2 (StableDiffusionLatentUpscalePipeline).
        """
        if sample.ndim == 0:
            raise ValueError(
                "scale_model_input was given a number: this pipeline preconditions its network "
                "itself, for states that PlanScheduler does not have"
            )
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at ``timesteps`` (one or B entries).

        The levels of the run if all of ``timesteps`` are its own, and of training otherwise.
        """
        known = timesteps.dtype if isinstance(timesteps, Tensor) else torch.float64
        nodes = self._nodes_of(torch.as_tensor(timesteps, dtype=known))
        return noisy(original_samples, noise, nodes, self._description.unit)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which of ``timesteps`` the next run begins; ValueError if there is none."""
        n = self.num_inference_steps
        if begin_index < 0 or (n is not None and begin_index >= n):
            raise ValueError(
                f"begin_index={begin_index}: the run has {n} evaluations, and at least one must "
                "remain; with a strength, num_inference_steps * strength must be at least 1"
            )
        self._begin_index = begin_index
        self._runs, self._index, self._wanted = Runs(), None, self._first + begin_index

    @property
    def begin_index(self) -> int | None:
        """What ``set_begin_index`` was given since the last ``set_timesteps``."""
        return self._begin_index

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
        if index is None:
            self._runs = Runs()
        self._index = index
        self._wanted = None if index is None else self._first + index

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

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
            expected = self._runs.place_of(sample) if wanted is None else wanted
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
        course, table = self._course, self._table
        if course is None or table is None:
            return
        if (
            table.untouched(self.timesteps, self.sigmas)
            and self.config.edition is course.description.edition
            and (self._kept is None or version(self._kept[0]) == self._kept[1])
            and self.num_inference_steps == course.nfe
        ):
            return
        if course.description is not self._description:
            if self._asked is None:
                raise ValueError(
                    "the config was changed after timesteps: call set_timesteps with both"
                )
            again = lay_out(self.config, self._description, **self._asked)
            told = again.told(again.nodes)
            if not torch.equal(told, course.told(course.nodes)):
                raise ValueError(
                    "the config was changed after set_timesteps, and now gives other timesteps: "
                    "call set_timesteps again"
                )
            levels = again.levels([*again.nodes, again.end])
            table.rewrite(0, again.nodes, told, levels)
            self._course = course = again
            self._runs.end()
        if not table.untouched(self.timesteps, self.sigmas):
            self._hear_times(course, table)
        n, laid_out = self.num_inference_steps, (self._course or course).nfe
        if n != laid_out and n != len(self.timesteps):
            raise ValueError(
                f"num_inference_steps={n} was set, but {laid_out} are laid out: call set_timesteps"
            )

    def _hear_times(self, course: Course, table: Timetable) -> None:
        timesteps, sigmas = tensor("timesteps", self.timesteps), tensor("sigmas", self.sigmas)
        first = table.slice_at(timesteps, sigmas)
        if first is not None:
            table.show_slices(timesteps, sigmas)
        elif (after := rewritten(course, table, timesteps, sigmas)) is None:
            table.show(timesteps, sigmas)
        else:
            levels = after.levels([*after.nodes, after.end])
            if len(sigmas) == len(levels):
                sigmas.copy_(levels)
            else:
                sigmas = levels.to(sigmas)
            self._table = Timetable(timesteps.cpu(), levels, after.nodes)
            self._table.show(timesteps, sigmas)
            self._course, self.num_inference_steps = after, after.nfe
            self._asked = None
            self._runs.end()
        self.timesteps, self.sigmas, self._first = timesteps, sigmas, first or 0

    def _go_through_training(self, timestep: Any) -> None:
        """The course over the timesteps of training, for a ``step`` without ``set_timesteps``."""
        solver = self._description.solver
        if solver in MULTISTEP and not isinstance(timestep, Tensor):
            raise ValueError(
                f"step was called before set_timesteps, with timestep={timestep!r}: solver="
                f"{solver!r} needs to know its steps, or an entry of timesteps"
            )
        course = training_course(self.config, self._describe(), self.timesteps.tolist())
        told, levels = self.timesteps.cpu(), course.levels([*course.nodes, course.end])
        table = Timetable(told, levels, course.nodes)
        table.show(self.timesteps, self.sigmas)
        self._course, self._table = course, table

    def _begin(self, place: int, output: Tensor, sample: Tensor, eta: float) -> Drive:
        """A new run from ``place`` to the end."""
        if not sample.is_floating_point():
            raise ValueError(f"sample is {sample.dtype}: need a tensor of a floating-point dtype")
        if output.device != sample.device:
            raise ValueError(f"model_output is on {output.device}, sample on {sample.device}")
        assert self._course is not None and self._table is not None
        description = self._course.description
        if description.ems is not None:
            check_shape(description.ems, tuple(sample.shape[1:]))
        self._check_level(place, sample)
        plan = self._course.plan(place, self._table.nodes, eta)
        self._tell(place, called(plan))
        run = Drive(
            plan,
            description.prediction,
            sample,
            sign=description.sign,
            threshold=description.threshold,
            differentiable=torch.is_grad_enabled()
            and (sample.requires_grad or output.requires_grad),
            place=place,
            eta=eta,
        )
        self._runs.begin(run)
        return run

    def _check_others(self, others: Mapping[str, Any], place: int) -> None:
        assert self._table is not None
        told = self._table.told
        following = told[place + 1] if place + 1 < len(told) else None
        check_others(others, following, self._description.method["solver_order"])

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
    def _internal_dict(self) -> Config:
        try:
            return self.__dict__["_internal_dict"]
        except KeyError as error:
            raise AttributeError("_internal_dict") from error

    @_internal_dict.setter
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        # diffusers writes it in register_to_config, its pipelines in their constructors.
        own = defaults(type(self))
        self.__dict__["_internal_dict"] = Config(model_in_force(as_one(config, own)), own)

    @property
    def _description(self) -> Description:
        """What the config says as it is now."""
        self._hear_tables()
        known = self._described
        return known if known and known.edition is self.config.edition else self._describe()

    def _describe(self) -> Description:
        self._described = described(self.config, self.num_inference_steps)
        return self._described

    @property
    def _nodes(self) -> Sequence[Node]:
        return () if self._table is None else self._table.nodes

    def _tell(self, begin: int, nodes: Sequence[Node]) -> None:
        """Have the evaluations from ``begin`` on at ``nodes``, of which the first was just made.

        Pipelines iterate over views of ``timesteps``, so that values written in place are seen.
        """
        assert self._course is not None and self._table is not None
        if list(nodes) != self._table.nodes[begin:]:
            if nodes[0] != self._table.nodes[begin]:
                raise ValueError(
                    "sample belongs to a run whose timesteps another run has changed since: let "
                    "each of them have a copy of the scheduler"
                )
            self._table.rewrite(begin, nodes, self._course.told(nodes), self._course.levels(nodes))

    def _nodes_of(self, timesteps: Tensor) -> list[Node]:
        """The nodes at which the network is told ``timesteps``: of the run, or else of training."""
        self._hear()
        if self._table is not None:
            here = self._runs.place if self._wanted is None else self._wanted
            places = self._table.all_places(timesteps, here)
            if places is not None:
                return [self._table.nodes[place] for place in places]
        schedule = self._description.schedule
        return [node_told(self.config, schedule, told) for told in timesteps.flatten().tolist()]

    def _get_conditioning_c_in(self, sigma: Any) -> Any:
        raise ValueError(COSMOS)
