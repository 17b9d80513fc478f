"""PlanScheduler: every solver of the registry as a drop-in scheduler of diffusers pipelines.

    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler.config)

A pipeline owns the loop and calls ``step`` once for every network evaluation. The scheduler keeps
one run of a plan (a generator), sends it each network output and hands back the state to evaluate
next, so ``num_inference_steps`` is the NFE for every solver. States are what the network is shown,
variance-preserving or flow states also for EDM networks and for Stable Video Diffusion:
``init_noise_sigma`` is about 1 and the model input is not scaled.

The plan is laid out at the first ``step``, for the timesteps that remain: image-to-image strength
and split schedules start in the middle. Options are checked when a scheduler is made, and read by
``set_timesteps``: Stable Diffusion's constructors rewrite the config of one that is built.

A saved pipeline stores this module's dotted name; it must not be renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from logsnr.solvers import EMS, FlowMatching, Plan
from logsnr.solvers.names import also_named
from logsnr.solvers.tuning.card import Card
from logsnr.solvers.tuning.cards import Cards

from .config.checks import OTHER_NAMES, check_implied, checked
from .config.configured import Configured
from .config.noise_schedules import noise_schedule
from .config.sigma_models import COSMOS, SigmaModel, StateOnly, start_deviation
from .steps.step_arguments import check_eta, check_others, without_variance
from .steps.step_noise import RunNoise
from .steps.step_output import DataPrediction, StepOutput
from .steps.stepping import Stepping
from .summary import summary
from .timesteps.arguments import listed, number
from .timesteps.layout_cache import known_layout
from .timesteps.timetable import Timetable
from .training.forward_process import ForwardProcess
from .training.tables import TrainingTables
from .training.timesteps import training_table


# diffusers looks for SchedulerMixin in the very module that a saved pipeline names.
class PlanScheduler(Stepping, RunNoise, TrainingTables, ForwardProcess, Configured, SchedulerMixin):
    """A diffusers scheduler that runs a solver of ``logsnr.solvers.SOLVERS``.

    Parameters
    ----------
    solver : a name of the registry, or a mapping {"name": ..., option: value} for options that
        have no diffusers key. None, with ``solver_order=None``, is what is best for the number of
        evaluations (see `with_default_solver`).
    prediction_type : None is the velocity for flow models and epsilon otherwise.
    timestep_spacing : a name of ``logsnr.solvers.SPACINGS``. "auto" is the logistic grid.
    location, scale : its centre and its width in lambda; None is what is best known.
    sample_size : the side (or both) of the images that the network makes, which tells the location
        for those of up to 32 (``pipe.unet.config.sample_size``).
    final_sigmas_type : "zero" or "sigma_min"; None follows ``set_alpha_to_one`` for
        ``solver="ddim"`` and is "zero" otherwise.
    shift : makes this a flow-matching scheduler, as FlowMatchEulerDiscreteScheduler's;
        ``use_flow_sigmas`` with ``flow_shift`` does too, as the multistep schedulers do.

    sigma_data : makes this a scheduler for an EDM-preconditioned network, with ``sigma_min``,
        ``sigma_max``, ``sigma_schedule`` and ``rho`` as EDMDPMSolverMultistepScheduler's.
    exact_sigmas : use the ``sigmas`` given to a flow model as they are, without shift or stretch.
    ems : the statistics of DPM-Solver-v3, or the path of their file or folder. They are saved
        beside the config, which names the file.
    plan : a Plan, or the path of a saved one, which is then the solver and the grid of every run;
        a run begins at its first node. Or cards (`Card`, `Cards`, a card folder), of which
        ``num_inference_steps`` picks one. They are saved beside the config, too.
    plan_fallback : run numbers of evaluations that ``plan`` lacks by the default solver.
    noise_seed : the seed of the noise of stochastic solvers, or a list of one for each sample. It
        is that of `CounterNoise`: sample i is the same in any batch, precision or process. Without
        it noise is drawn from the generators that ``step`` is given.
    stock_class, replaced : the class of diffusers that the config came from, and what it said of
        sampling and is not followed; `from_config` fills them in, `to_stock` gives them back.

    All other parameters are diffusers' own; docs/pipelines.md lists them. Keys of other schedulers
    are kept in the config. Raises ValueError for an unknown solver or spacing and for an option
    that is wrong by itself; what depends on the run is checked by ``set_timesteps``.
    """

    order = 1

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
        sample_size: float | None = None,
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
        plan: Plan | Card | Cards | str | Path | None = None,
        plan_fallback: bool | None = None,
        noise_seed: int | Sequence[int] | None = None,
        stock_class: str | None = None,
        replaced: Mapping[str, Any] | None = None,
    ):
        said = set(self.config) - set(self.config.get("_use_default_values", ()))
        check_implied(self.config, said)
        self.register_to_config(**checked(self.config))
        super().__init__()
        # What training scripts read; pipelines replace it by set_timesteps.
        self.num_inference_steps: int | None = None
        self.timesteps, self.sigmas = training_table(self.config, noise_schedule(self.config))

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
        found = known_layout(self.config, asked)
        evaluations, self._described = found.evaluations, found.evaluations.description
        # As in diffusers, only flow models have their noise levels where the network is.
        levels_device = device if isinstance(evaluations.schedule, FlowMatching) else None
        table = Timetable(
            found.told, found.levels, evaluations.nodes, device, levels_device, found.values
        )
        self._asked = asked
        self._follow(evaluations, table)

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
        *,
        log_prob: bool = False,
        prev_sample: Tensor | None = None,
        **others: Any,
    ) -> StepOutput | tuple[Tensor, ...]:
        """The state at the next evaluation, or the sample after the last one.

        Parameters
        ----------
        model_output : the network's output at ``sample`` (B, *event), which may have been edited
            since it was handed out.
        timestep : an entry of ``timesteps``, which says where in the run the step is. Where that
            is not the next one, or the sample not the one handed out, see `Runs`.
        eta : for solvers that have it.
        variance_noise : the noise of this step itself; a list where the step draws several.
        generator : what noise is drawn from, one or a list of one a sample, where there is neither
            ``variance_noise`` nor `noise`.
        log_prob : add the log density of what the step draws to the output (`StepOutput`); the
            tuple is (prev_sample, log_prob). The state is a given value in it: its gradient is that
            of the mean, and ``prev_sample`` has none.
        prev_sample : the state that the step led to in a run before: it is taken, and not drawn.
        others : what other classes of diffusers have, see `check_others`.

        Without ``set_timesteps`` the run goes through all timesteps of training. (As in diffusers
        the multistep solvers in lambda then refuse a plain number, which tells them no steps.)

        Raises ValueError for a timestep that is none of the run's, for a model_output that does not
        fit the sample, and for what was written on the scheduler since ``set_timesteps`` and cannot
        be followed.
        """
        if model_output.shape != sample.shape:
            model_output = without_variance(
                self._description.model.learned_variance, model_output, sample
            )
        eta = check_eta(eta)
        place = self._place(timestep, sample)
        if others:
            self._check_others(others, place)
        last = self._runs.current
        run = self._runs.find(place, sample)
        if run is None or (run.eta != eta and run.takes_eta):
            run = self._begin(place, model_output, sample, eta)
        elif run is not last:
            self._tell(run.place, run.nodes[run.place - run.begin :])
        run.prepare(
            sample,
            noise=self.noise,
            generator=generator,
            variance_noise=variance_noise,
            log_prob=log_prob,
            prev_sample=prev_sample,
        )
        node = run.node
        previous = run.step(model_output, sample)
        if self._index is not None or self._wanted is not None:
            self._index = self._wanted = None
        assert self._evaluations is not None
        model = self._evaluations.description.model
        density = run.density() if log_prob else None
        if return_dict:
            predict = DataPrediction(model, node, model_output, sample)
            return StepOutput(previous, predict, density)
        if density is not None:
            return previous, density.log_prob
        return StateOnly((previous,)) if model.edm else (previous,)

    @property
    def plan(self) -> Plan | None:
        """The solver's table for the run under way, or for the one to come; None if none is laid
        out or given. ``print(scheduler.plan)`` shows its nodes and coefficients. One that is set is
        that of every run from the next ``set_timesteps`` on.
        """
        if self._evaluations is None or self._table is None:
            return self._description.plan
        run, begin = self._runs.current, self._first + (self._begin_index or 0)
        if run is not None:
            return self._evaluations.plan(run.begin, self._table.nodes, run.eta)
        return self._evaluations.plan(begin, self._table.nodes, 0.0)

    @plan.setter
    def plan(self, plan: Plan | Card | Cards | str | Path | None) -> None:
        self.config["plan"] = plan

    def __repr__(self) -> str:
        told = [] if self._table is None else self._table.told
        listed = self._evaluations is not None and self._evaluations.layout.listed is not None
        return summary(self._description, told, listed)

    @property
    def init_noise_sigma(self) -> float:
        """1, and as near to 1 as diffusers starts models that a range of sigma describes."""
        schedule = self._description.model.schedule
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

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _check_others(self, others: Mapping[str, Any], place: int) -> None:
        assert self._table is not None
        told = self._table.told
        following = told[place + 1] if place + 1 < len(told) else None
        check_others(others, following, self._description.solver.order)

    def _get_conditioning_c_in(self, sigma: Any) -> Any:
        raise ValueError(COSMOS)
