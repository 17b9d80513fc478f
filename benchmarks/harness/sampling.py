r"""Contenders on a network whose noise schedule is known, driven as their own world drives them.

* A plan (a solver of the registry, or a saved one) by `sample`.
* A scheduler of diffusers, or `PlanScheduler`, as its pipelines drive it:

      for t in scheduler.timesteps:  x = scheduler.step(network(x, t), t, x).prev_sample

* A sampler function with k-diffusion's interface, on ``model(x, sigma) -> denoised``, from
  sigma_max to sigma_min of the model along Karras' grid.

A comparison needs one end point: plans end at their ``t_end``, and a subject says by which options
the schedulers end there (``ends``).

The start is the other half of a fair comparison. diffusers places n timesteps by one of three
rules; from x_T ~ N(0, 1), which is the state at training step N - 1,

    leading     (n-1) N/n, .., N/n, 0     begins at a state that x_T is not, and DDIM ends twice
    trailing    N - 1, .., N/n - 1        begins at x_T
    linspace    N - 1, .., 0              begins at x_T; DDIM still steps by N // n, past its nodes

A model's config usually says "leading", so that is what replacing a pipeline's scheduler gives.
With ``use_karras_sigmas`` the n-th node is the end itself, so the step from it is empty.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.noise_schedules import is_flow
from logsnr.adapters.k_diffusion import to_k_diffusion
from logsnr.benchmarks.harness.contenders import PASTED, STOCK, Contender, steps_for
from logsnr.benchmarks.harness.own_draws import OwnDraws
from logsnr.solvers import Denoiser, NoiseSchedule, Plan, sample

RHO = 7.0


class Sampling(Protocol):
    """One contender with one number of evaluations, ready to run."""

    @property
    def grid(self) -> Sequence[float]:
        """Where the network is called."""
        ...

    @property
    def steps(self) -> int | None:
        """Of the contender's own counting; None where there is none."""
        ...

    def __call__(self, denoise: Denoiser, z: Tensor, noise: Sequence[int]) -> tuple[Tensor, bool]:
        """(samples, whether noise was drawn) from standard normal z (B, *event).

        noise : a seed for each sample, of what is drawn on the way.
        """
        ...


@dataclass(frozen=True)
class PlanSampling:
    """A plan by the plain loop."""

    plan: Plan
    steps: int | None = None

    @property
    def grid(self) -> Sequence[float]:
        return [float(t) for t in self.plan.times]

    def __call__(self, denoise: Denoiser, z: Tensor, noise: Sequence[int]) -> tuple[Tensor, bool]:
        drawn = any(row.noise for row in self.plan.rows)
        start = self.plan.rows[0].node
        scale = math.hypot(float(start.alpha), float(start.sigma))
        x_T = z if abs(scale - 1) < 1e-12 else (scale * z.double()).to(z.dtype)
        return sample(denoise, x_T, self.plan, noise=list(noise) if drawn else None), drawn


@dataclass(frozen=True)
class SchedulerSampling:
    """A scheduler by the loop of diffusers' pipelines.

    The scheduler counts training steps itself, so the network's time is taken as it is.
    """

    contender: Contender
    config: Mapping[str, Any]
    ends: Mapping[str, Any]
    nfe: int

    @cached_property
    def scheduler(self) -> Any:
        """Made from the model's config, and ended where plans end."""
        name = self.contender.name
        if name == STOCK:
            name = str(self.config.get("_class_name", STOCK))
            if getattr(diffusers, name, None) is None:
                raise ValueError("this network's config names no scheduler of its own")
        kind = Contender(name, {}).kind
        has = inspect.signature(kind).parameters
        ends = {key: value for key, value in self.ends.items() if key in has}
        flow = {} if kind is PlanScheduler else _flow_options(self.config, kind)
        options = {**ends, **flow, **self.contender.options}
        own = SimpleNamespace(config=dict(self.config))
        return Contender(name, options).scheduler(own)

    @cached_property
    def steps(self) -> int:
        return steps_for(self.scheduler, self.nfe)

    @property
    def grid(self) -> Sequence[float]:
        self.scheduler.set_timesteps(self.steps)
        return [float(t) for t in self.scheduler.timesteps]

    @torch.no_grad()
    def __call__(self, denoise: Denoiser, z: Tensor, noise: Sequence[int]) -> tuple[Tensor, bool]:
        scheduler = self.scheduler
        draw = [torch.Generator().manual_seed(seed) for seed in noise]
        before = [generator.get_state() for generator in draw]
        takes = "generator" in inspect.signature(scheduler.step).parameters
        more = {"generator": draw} if takes else {}
        network = Denoiser(
            denoise.network,
            denoise.schedule,
            denoise.native,
            guidance=denoise.guidance,
            condition=None if denoise.guidance is not None else denoise.condition,
            network_time=lambda index: index,
        )
        scheduler.set_timesteps(self.steps)
        x = z * getattr(scheduler, "init_noise_sigma", 1.0)  # those of flows have none,
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)  # nor do they scale
        for t in scheduler.timesteps:
            out = network.evaluate(scaled(x, t), float(t))
            x = scheduler.step(out, t, x, **more).prev_sample
        after = [generator.get_state() for generator in draw]
        return x, not all(map(torch.equal, before, after))


def _flow_options(config: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """What a scheduler must be told of a model of flow matching, whose config does not say it.

    Raises ValueError for schedulers that do not know such models.
    """
    name = kind.__name__
    if not is_flow(config) or name.startswith("FlowMatch"):
        return {}
    if "use_flow_sigmas" not in inspect.signature(kind).parameters:
        raise ValueError(f"{name} does not know models of flow matching")
    shift = config.get("shift", config.get("flow_shift", 1.0))
    return {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": 1.0 if shift is None else shift,
    }


@dataclass(frozen=True)
class FunctionSampling:
    """A sampler function on the model k-diffusion makes of the denoiser."""

    contender: Contender
    schedule: NoiseSchedule
    nfe: int

    @cached_property
    def steps(self) -> int:
        """The most that cost no more than ``nfe``, counted on a model that costs nothing."""
        for steps in range(self.nfe, 0, -1):
            calls = 0

            def nothing(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
                nonlocal calls
                calls += 1
                return x * 0.5

            self._call(nothing, torch.ones(1, 1, dtype=torch.float64), self._sigmas(steps), [0])
            if calls <= self.nfe:
                return steps
        raise ValueError(f"nfe={self.nfe}: {self.contender.text} needs more evaluations")

    @property
    def grid(self) -> Sequence[float]:
        return [float(sigma) for sigma in self._sigmas(self.steps)[:-1]]

    def __call__(self, denoise: Denoiser, z: Tensor, noise: Sequence[int]) -> tuple[Tensor, bool]:
        sigmas = self._sigmas(self.steps).to(z)
        x, drawn = self._call(to_k_diffusion(denoise), z * sigmas[0], sigmas, noise)
        return x * float(self.schedule.alpha(self.schedule.t_end)), drawn

    def _call(
        self, model: Any, x: Tensor, sigmas: Tensor, noise: Sequence[int]
    ) -> tuple[Tensor, bool]:
        draw = [torch.Generator().manual_seed(seed) for seed in noise]
        drawn = False

        def noise_sampler(sigma: Any, sigma_next: Any) -> Tensor:
            nonlocal drawn
            drawn = True
            return torch.stack([torch.randn(x.shape[1:], generator=g) for g in draw]).to(x)

        has = inspect.signature(self.contender.function).parameters
        more: dict[str, Any] = dict(self.contender.options)
        if "noise_sampler" in has:
            more["noise_sampler"] = noise_sampler
        if "disable" in has:
            more["disable"] = True
        own = OwnDraws(draw)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), own:
            torch.manual_seed(noise[0])
            before = torch.get_rng_state()
            found = self.contender.function(model, x, sigmas, **more)
            drawn = drawn or own.drawn or not torch.equal(before, torch.get_rng_state())
        return found, drawn

    def _sigmas(self, steps: int) -> Tensor:
        """Karras' grid of ``steps`` steps between the ends of the schedule, float64."""
        ends = torch.tensor([self.schedule.t_start, self.schedule.t_end], dtype=torch.float64)
        high, low = torch.exp(-self.schedule.lam(ends) / RHO)
        if not high.isfinite():
            raise ValueError(
                f"{self.contender.text} begins at the largest sigma, and {self.schedule!r} has none"
            )
        return torch.linspace(float(high), float(low), steps + 1, dtype=torch.float64) ** RHO


def _check_schedule(contender: Contender, plan: Plan, schedule: NoiseSchedule) -> None:
    """ValueError for a saved plan whose nodes are no points of this noise schedule."""
    for row in plan.rows:
        t, alpha, sigma = (float(value) for value in row.node[:3])
        here = torch.tensor(t, dtype=torch.float64)
        far = abs(float(schedule.alpha(here)) - alpha) + abs(float(schedule.sigma(here)) - sigma)
        if sigma > 0 and not far <= 1e-6 * (alpha + sigma):
            raise ValueError(
                f"{contender.text} was made for another noise schedule: at t={t:.6g} it has "
                f"alpha={alpha:.6g}, sigma={sigma:.6g}, this one {float(schedule.alpha(here)):.6g} "
                f"and {float(schedule.sigma(here)):.6g}"
            )


def sampling(
    contender: Contender,
    nfe: int,
    *,
    plan: Any,
    schedule: NoiseSchedule,
    config: Mapping[str, Any] | None,
    ends: Mapping[str, Any],
) -> Sampling:
    """The contender with ``nfe`` evaluations on a network.

    plan : (contender, nfe) -> the plan of a solver.
    schedule : of the network.  config : what diffusers' schedulers are made from, None where the
    model has none.

    Raises ValueError for what cannot be run, before the network is called.
    """
    made: Sampling
    if contender.saved:
        if nfe not in contender.plans:
            raise ValueError(f"nfe={nfe}: {contender.name} has {contender.counts} evaluations")
        chosen = contender.plans[nfe]
        _check_schedule(contender, chosen, schedule)
        return PlanSampling(chosen)
    if contender.stock or contender.name == PASTED:
        if config is None:
            raise ValueError("this network has no config for a scheduler of diffusers")
        made = SchedulerSampling(contender, config, ends, nfe)
    elif contender.sampler:
        made = FunctionSampling(contender, schedule, nfe)
    else:
        return PlanSampling(plan(contender, nfe))
    if made.steps is None or made.steps < 1:  # which lays the grid out
        raise ValueError(f"nfe={nfe}: {contender.text} needs more evaluations")
    return made
