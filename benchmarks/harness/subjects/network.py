"""A network, or a formula, whose noise schedule is known, as a subject."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.benchmarks.harness.contenders import Contender
from logsnr.benchmarks.harness.counting import Calls, counted
from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.sampling import PlanSampling, Sampling, sampling
from logsnr.benchmarks.harness.subjects.subject import (
    NOT_FINITE,
    Diverged,
    Outcome,
    Tick,
    generators,
    noise_seed,
)
from logsnr.solvers import EMS, ClassifierFree, Denoiser, NoiseSchedule, Plan, make_plan

V3 = "dpm-solver-v3"
PLAN_WORDS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "logsnr",
    "timestep_spacing": None,
}
"""Words of schedulers' configs that name a spacing of a plan; None: by their value."""

Conditions = Callable[[Sequence[int]], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Indices of samples -> arguments of the network for them, and for the same without a condition."""


@dataclass(frozen=True)
class NetworkSubject:
    """A network that contenders call themselves.

    Parameters
    ----------
    name : what the model is called.
    network : as `Denoiser` takes it, with what it predicts in ``prediction``. A module's forward
        calls are counted, of anything else the calls of the denoiser.
    schedule, network_time : as `Denoiser` takes them.
    shape : of a sample.
    weights : a hash of the weights and of the noise schedule.
    conditions : arguments of the network for some samples, with their nulls; None without.
    guidance : scale of classifier-free guidance; 1 is the conditional network alone.
    config : what diffusers' schedulers are made from.
    ends : options that end a scheduler where plans end, as far as it has them.
    grid : arguments of ``make_plan`` where a contender says nothing (spacing, t_start, t_end).
    reference : solver and options of the converged solution.
    statistics : of DPM-Solver-v3, with their hash.
    data_range : largest difference of two values of the data, for the PSNR; None takes that of
        the reference.
    stream : draw the starts of a seed one after the other from one generator, in place of one
        generator a sample. The samples of a shape whose size is a multiple of 16 are the same
        then, however many are drawn.
    """

    name: str
    network: Any
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    weights: str
    prediction: str = "epsilon"
    conditions: Conditions | None = None
    guidance: float = 1.0
    network_time: Callable[[Any], Any] | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    ends: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(
        default_factory=lambda: {"solver": "unipc", "order": 3, "spacing": "auto"}
    )
    statistics: tuple[EMS, str] | None = field(default=None, repr=False)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    data_range: float | None = None
    stream: bool = False

    @property
    def about(self) -> Mapping[str, Any]:
        """What is sampled."""
        return {
            "weights": self.weights,
            "schedule": repr(self.schedule),
            "prediction": self.prediction,
            "guidance": self.guidance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.device(self.device).type,
            "ends": dict(self.ends),
            "grid": dict(self.grid),
            "config": None if self.config is None else digest(_public(self.config)),
        }

    def starts(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Standard normal (B, *event) for samples ``indices`` of ``seed``."""
        if self.stream:
            rng = torch.Generator().manual_seed(seed)
            drawn = torch.randn(max(indices) + 1, *self.shape, generator=rng)[list(indices)]
        else:
            each = generators(seed, indices)
            drawn = torch.stack([torch.randn(self.shape, generator=rng) for rng in each])
        return drawn.to(self.device, self.dtype)

    def denoiser(self, indices: Sequence[int], **options: Any) -> Denoiser:
        """The (guided) network for these samples."""
        more = {"network_time": self.network_time, **options}
        if self.conditions is None:
            return Denoiser(self.network, self.schedule, self.prediction, **more)
        condition, null = self.conditions(indices)
        guidance = ClassifierFree(self.guidance, condition, null)
        return Denoiser(self.network, self.schedule, self.prediction, guidance=guidance, **more)

    def plan(self, contender: Contender, nfe: int) -> Plan:
        """The plan of a solver; ValueError if there is none of so many evaluations."""
        options = dict(self.grid)
        for key, value in contender.options.items():
            if key in PLAN_WORDS and value is not False:
                options["spacing"] = PLAN_WORDS[key] or value
            else:
                options[key] = value
        if contender.name == V3 and "ems" not in options:
            if self.statistics is None:
                raise ValueError(f"{self.name} has no statistics for {V3}")
            options["ems"] = self.statistics[0]
        # which ends with an evaluation beyond those that it is asked for
        budget = nfe - bool(options.get("denoise_to_zero"))
        return make_plan(contender.name, self.schedule, nfe=budget, **options)

    def sampling(self, contender: Contender, nfe: int) -> Sampling:
        """The contender, ready to run."""
        return sampling(
            contender,
            nfe,
            plan=self.plan,
            schedule=self.schedule,
            config=self.config,
            ends=self.ends,
        )

    def check(self, contender: Contender, nfe: int) -> None:
        """Raise ValueError for what cannot be run."""
        try:
            self.sampling(contender, nfe)
        except Exception as error:  # a sampler function of other people may raise anything
            raise ValueError(f"nfe={nfe}: not possible for {contender.text} ({error})") from error

    def check_converged(self, nfe: int) -> None:
        """Raise ValueError where the solution of so many evaluations has no plan."""
        self.solution(nfe)

    def described(self, contender: Contender) -> dict[str, Any]:
        """The options with the hash of the statistics, where they are used."""
        options = contender.described
        if contender.name == V3 and self.statistics is not None and "ems" not in options:
            options["ems"] = self.statistics[1]
        return options

    def run(
        self, contender: Contender, nfe: int, seed: int, indices: Sequence[int], tick: Tick
    ) -> Outcome:
        """Samples ``indices`` of ``seed``; raises `Diverged` for states that are not finite."""
        return self._measured(self.sampling(contender, nfe), seed, indices, tick)

    def converged(self, nfe: int, seed: int, indices: Sequence[int], tick: Tick) -> Outcome:
        """The solution of the probability-flow ODE for the same samples."""
        return self._measured(PlanSampling(self.solution(nfe)), seed, indices, tick)

    def solution(self, nfe: int) -> Plan:
        """The plan of the converged solution."""
        ends = {key: self.grid[key] for key in ("t_start", "t_end") if key in self.grid}
        options = {**ends, **self.reference}
        return make_plan(options.pop("solver"), self.schedule, nfe=nfe, **options)

    def _measured(
        self, sampling: Sampling, seed: int, indices: Sequence[int], tick: Tick
    ) -> Outcome:
        denoise = self.denoiser(indices)
        z = self.starts(seed, indices)
        noise = [noise_seed(seed, index) for index in indices]
        with self._counted(denoise, tick) as seen:
            began = time.perf_counter()
            try:
                x, stochastic = sampling(denoise, z, noise)
            except ValueError as error:
                if NOT_FINITE not in str(error):
                    raise
                raise Diverged(str(error)) from error
            if z.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        if not x.isfinite().all():
            raise Diverged("the samples have values that are not finite")
        rows = seen.rows / len(indices)
        return Outcome(
            x=x.detach().cpu() if x.dtype == torch.float64 else x.detach().float().cpu(),
            nfe_counted=rows / (2 if self.conditions is not None and self.guidance != 1 else 1),
            network_calls=seen.calls,
            network_rows=rows,
            seconds=seconds,
            stochastic=stochastic,
            grid=sampling.grid,
            steps=sampling.steps,
        )

    @contextmanager
    def _counted(self, denoise: Denoiser, tick: Tick) -> Iterator[Calls]:
        if isinstance(self.network, nn.Module):
            with counted([self.network], tick) as seen:
                yield seen
            return
        seen = Calls()
        network = denoise.network

        def noted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.calls, seen.rows = seen.calls + 1, seen.rows + len(x)
            tick()
            return network(x, *args, **kwargs)

        denoise.network = noted
        yield seen


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) for key, value in config.items() if not key.startswith("_")}
