"""A pipeline of diffusers as a subject: it runs as it is, with another scheduler.

The state that the scheduler hands out last is the sample in the space of the solver: latents for
latent models, pixels for the others, before anything is decoded, clipped or rounded. It is taken
at ``scheduler.step``, which every pipeline calls once for each evaluation of its network.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.benchmarks.harness.contenders import Contender, reference_scheduler, steps_for
from logsnr.benchmarks.harness.counting import counted
from logsnr.benchmarks.harness.subjects.subject import Diverged, Outcome, Tick, sample_seed
from logsnr.solvers import DiscreteVP

NETWORKS = ("unet", "transformer", "transformer_2", "prior")


@dataclass(frozen=True)
class PipelineSubject:
    """A pipeline and the arguments of its call, but for the seed and the number of steps.

    about : says in JSON values what is sampled; equal ones give equal samples.
    prompts : of the samples of a seed, in turn; without any, all have the call's own.
    """

    name: str
    pipe: Any
    arguments: Mapping[str, Any]
    about: Mapping[str, Any]
    prompts: tuple[str, ...] = ()
    data_range: float | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The modules that are called for a prediction."""
        found = (getattr(self.pipe, name, None) for name in NETWORKS)
        return [module for module in found if isinstance(module, nn.Module)]

    def check(self, contender: Contender, nfe: int) -> None:
        """Raise ValueError for a scheduler that refuses the config or a number of steps."""
        try:
            self.steps(contender, nfe)
        except (ValueError, TypeError) as error:
            raise ValueError(f"solvers={contender.text!r}, nfe={nfe}: {error}") from error

    def check_converged(self, nfe: int) -> None:
        """Raise ValueError for a pipeline that takes no scheduler of ours."""
        try:
            steps_for(reference_scheduler(self.pipe.scheduler), nfe)
        except ValueError as error:
            raise ValueError(f"pipeline={self.name!r}: {error}") from error

    def described(self, contender: Contender) -> dict[str, Any]:
        """The contender's options."""
        return contender.described

    def steps(self, contender: Contender, nfe: int) -> int:
        """``num_inference_steps`` for so many evaluations."""
        return steps_for(contender.scheduler(self.pipe.scheduler), nfe)

    def run(
        self, contender: Contender, nfe: int, seed: int, indices: Sequence[int], tick: Tick
    ) -> Outcome:
        """Samples ``indices`` of ``seed``, each by a call of its own."""
        steps = self.steps(contender, nfe)
        return self._called(contender.scheduler(self.pipe.scheduler), steps, seed, indices, tick)

    def converged(self, nfe: int, seed: int, indices: Sequence[int], tick: Tick) -> Outcome:
        """The solution of the probability-flow ODE, by the pipeline itself."""
        scheduler = reference_scheduler(self.pipe.scheduler)
        return self._called(scheduler, nfe, seed, indices, tick)

    def _called(
        self, scheduler: Any, steps: int, seed: int, indices: Sequence[int], tick: Tick
    ) -> Outcome:
        found = []
        for index in indices:
            subject = self
            if self.prompts:
                prompt = self.prompts[index % len(self.prompts)]
                subject = replace(self, arguments={**self.arguments, "prompt": prompt})
            outcome = run_pipeline_once(subject, scheduler, steps, sample_seed(seed, index), tick)
            if not outcome.x.isfinite().all():
                raise Diverged("its state is not finite; try a wider --dtype")
            found.append(outcome)
        first = found[0]
        return replace(
            first,
            x=torch.cat([outcome.x for outcome in found]),
            network_calls=sum(outcome.network_calls for outcome in found),
            seconds=sum(outcome.seconds for outcome in found),
            stochastic=any(outcome.stochastic for outcome in found),
            pictures=[picture for outcome in found for picture in outcome.pictures],
            steps=steps,
            rounding=told_rounding(scheduler),
        )


def fingerprint(subject: PipelineSubject) -> str:
    """Twelve hexadecimal digits of the noise schedule's config and a share of the weights."""
    digest = hashlib.sha256()
    config = {k: v for k, v in subject.pipe.scheduler.config.items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for module in subject.networks:
        for name, value in module.state_dict().items():
            few = value.detach().flatten()[:8].to("cpu", torch.float64).tolist()
            digest.update(f"{name} {tuple(value.shape)} {few}".encode())
    return digest.hexdigest()[:12]


@torch.no_grad()
def run_pipeline_once(
    subject: PipelineSubject,
    scheduler: Any,
    steps: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Call the pipeline with ``scheduler`` for one sample; its own scheduler is put back.

    ``tick`` is called after each evaluation. Raises what the pipeline raises.
    """
    pipe = subject.pipe
    own, pipe.scheduler = pipe.scheduler, scheduler
    generator = torch.Generator().manual_seed(seed)
    arguments = {**subject.arguments, "num_inference_steps": steps, "generator": generator}
    if "vae" in pipe.components and pipe.vae is None:
        arguments.setdefault("output_type", "latent")  # nothing could decode it
    decoded = arguments.get("output_type") != "latent"
    try:
        watched, networks = _watched(scheduler, generator, tick), subject.networks
        with watched as steps_seen, counted(networks, lambda: None) as seen:
            began = time.perf_counter()
            output = pipe(**arguments)
            _wait(subject)
            seconds = time.perf_counter() - began
    finally:
        pipe.scheduler = own
    if steps_seen.state is None:
        raise ValueError(f"{type(pipe).__name__} never called scheduler.step")
    shown = picture(output) if decoded else None
    return Outcome(
        x=steps_seen.state[:1].float().cpu(),
        nfe_counted=steps_seen.count,
        network_calls=seen.calls,
        network_rows=seen.rows,
        seconds=seconds,
        stochastic=steps_seen.stochastic,
        grid=[float(t) for t in getattr(scheduler, "timesteps", ())],
        pictures=[] if shown is None else [shown],
    )


def picture(output: Any) -> Image.Image | None:
    """The first image of a pipeline's output, the middle frame of a video; None for sound."""
    value = getattr(output, "images", None)
    if value is None:
        value = getattr(output, "frames", None)
        if value is None or len(value) == 0:
            return None
        value = value[0]
        value = [value[len(value) // 2]]
    first = value[0]
    if isinstance(first, Image.Image):
        return first.convert("RGB")
    array = first.float().cpu().numpy() if isinstance(first, Tensor) else np.asarray(first)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


@dataclass
class _Seen:
    state: Tensor | None = None
    count: int = 0
    stochastic: bool = False


@contextmanager
def _watched(
    scheduler: Any, generator: torch.Generator, tick: Callable[[], None]
) -> Iterator[_Seen]:
    seen = _Seen()
    step = scheduler.step

    @wraps(step)
    def noted(*args: Any, **kwargs: Any) -> Any:
        before = _random_states(generator)
        result = step(*args, **kwargs)
        after = _random_states(generator)
        if not all(map(torch.equal, before, after)):
            seen.stochastic = True
        seen.state = result[0] if isinstance(result, tuple) else result.prev_sample
        seen.count += 1
        tick()
        return result

    scheduler.step = noted
    try:
        yield seen
    finally:
        del scheduler.step


def _random_states(generator: torch.Generator) -> list[Tensor]:
    # A step that draws from any of these is stochastic, whatever the scheduler is called.
    states = [generator.get_state(), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states


def _wait(subject: PipelineSubject) -> None:
    if next(subject.networks[0].parameters()).device.type == "cuda":
        torch.cuda.synchronize()


def told_rounding(scheduler: Any) -> float | None:
    """How far the times that the network is told are from the nodes, in training steps, at most.

    None where it cannot be said: for other models than those of whole training steps, and for
    schedulers that do not list their noise levels sigma / alpha.
    """
    ratios, told = getattr(scheduler, "sigmas", None), scheduler.timesteps
    try:
        schedule = noise_schedule(scheduler.config)
    except (ValueError, KeyError):
        return None
    if not isinstance(schedule, DiscreteVP) or ratios is None or len(ratios) != len(told) + 1:
        return None
    levels = ratios[: len(told)].detach().to("cpu", torch.float64)
    inside = (levels > 0) & levels.isfinite()
    if not inside.any():
        return None
    index = schedule.network_time(schedule.time(-torch.log(levels[inside])))
    # Noise levels are listed in float32, whose rounding is far below a hundredth of a step.
    return float((index - told.detach().to("cpu", torch.float64)[inside]).abs().max())
