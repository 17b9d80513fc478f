"""A subject as what plans are fitted to: denoisers, starts, converged solutions.

A comparison asks a subject for samples; a fit calls its network itself, and differentiates it.
Sample ``index`` of ``seed`` is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.adapters.config.resolution_shift import resolution_shift
from logsnr.adapters.config.sigma_models import SigmaModel
from logsnr.adapters.pipelines.pipeline_network import PipelineNetwork
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.benchmarks.harness.subjects.pipeline import PipelineSubject
from logsnr.benchmarks.harness.subjects.subject import Subject, generators
from logsnr.solvers import ClassifierFree, Denoiser, NoiseSchedule, Plan
from logsnr.solvers.fitted_to import FittedTo
from logsnr.solvers.grids import node_at
from logsnr.solvers.location_fit import reference_plan

GOLDEN = (math.sqrt(5) - 1) / 2
"""Whose multiples modulo 1 fill an interval evenly, whatever their number."""


class Fitting(Protocol):
    """What a fit asks of a model."""

    @property
    def model(self) -> FittedTo:
        """What a card says of it."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values that say what is sampled."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """Its noise schedule."""
        ...

    @property
    def ends(self) -> Mapping[str, Any]:
        """t_start and t_end of a run."""
        ...

    def starts(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Start states (B, *event) of samples ``indices`` of ``seed``."""
        ...

    def denoiser(self, indices: Sequence[int]) -> Denoiser:
        """The network for these samples, with their conditions and their guidance."""
        ...

    def solution(self, nfe: int) -> Plan:
        """The plan of the converged solution."""
        ...


@dataclass(frozen=True)
class NetworkFitting:
    """A network whose noise schedule is known; see `Fitting`.

    guidance : the lowest and the highest scale; samples have scales all over the range.
    """

    subject: NetworkSubject
    guidance: tuple[float, float]

    @property
    def model(self) -> FittedTo:
        subject = self.subject
        shift = (subject.config or {}).get("shift")
        return FittedTo(
            name=subject.name,
            weights=subject.weights,
            schedule=repr(subject.schedule),
            prediction=subject.prediction,
            event=tuple(subject.shape),
            guidance=self.guidance,
            shift=None if shift is None else float(shift),
        )

    @property
    def about(self) -> Mapping[str, Any]:
        return {**self.subject.about, "guidance": list(self.guidance)}

    @property
    def schedule(self) -> NoiseSchedule:
        return self.subject.schedule

    @property
    def ends(self) -> Mapping[str, Any]:
        first, last = self.schedule.t_start, self.schedule.t_end
        grid = self.subject.grid
        return {"t_start": grid.get("t_start", first), "t_end": grid.get("t_end", last)}

    def starts(self, seed: int, indices: Sequence[int]) -> Tensor:
        return _scaled(self, self.subject.starts(seed, indices))

    def denoiser(self, indices: Sequence[int]) -> Denoiser:
        low, high = self.guidance
        denoise = replace(self.subject, guidance=low).denoiser(indices)
        if low < high and denoise.guidance is not None:
            condition, null = denoise.guidance.condition, denoise.guidance.null
            denoise.guidance = ClassifierFree(scales(self.guidance, indices), condition, null)
        return denoise

    def solution(self, nfe: int) -> Plan:
        return self.subject.solution(nfe)


@dataclass(frozen=True)
class PipelineFitting:
    """A pipeline that is called as a network; see `Fitting`."""

    subject: PipelineSubject
    network: PipelineNetwork
    guidance: tuple[float, float] | None

    @property
    def model(self) -> FittedTo:
        subject = self.subject
        shift = resolution_shift(subject.pipe.scheduler.config)
        return FittedTo(
            name=subject.name,
            weights=str(subject.about["weights"]),
            schedule=repr(self.schedule),
            prediction=self.network.prediction,
            event=tuple(self.network.event),
            guidance=self.guidance,
            shift=None if shift is None or shift.dynamic else float(shift.value),
            training_steps=self.network.loop.training_steps,
        )

    @property
    def about(self) -> Mapping[str, Any]:
        return self.subject.about

    @property
    def schedule(self) -> NoiseSchedule:
        return self.network.schedule

    @property
    def ends(self) -> Mapping[str, Any]:
        nodes = self.network.loop.nodes
        return {"t_start": nodes[0].t, "t_end": nodes[-1].t}

    def starts(self, seed: int, indices: Sequence[int]) -> Tensor:
        drawn = [torch.randn(self.network.event, generator=g) for g in generators(seed, indices)]
        return _scaled(self, torch.stack(drawn).to(self.network.device))

    def denoiser(self, indices: Sequence[int]) -> Denoiser:
        return self.network.denoiser(indices)

    def solution(self, nfe: int) -> Plan:
        return reference_plan(self.schedule, nfe, **self.ends)


@contextmanager
def fitting(subject: Subject, guidance: tuple[float, float] | None = None) -> Iterator[Fitting]:
    """The subject as a `Fitting`, while inside.

    guidance : of networks; a pipeline has the scale of its call.

    Raises ValueError for a subject that plans cannot be fitted to.
    """
    if isinstance(subject, NetworkSubject):
        scale = subject.guidance if subject.conditions is not None else 1.0
        if guidance is not None and subject.conditions is None:
            raise ValueError(
                f"guidance_scale={guidance[0]:g}: {subject.name} has no conditions to guide by"
            )
        yield NetworkFitting(subject, guidance or (scale, scale))
        return
    if not isinstance(subject, PipelineSubject):
        raise ValueError(f"model={subject.name!r}: plans are fitted to networks and pipelines")
    given = subject.arguments.get("guidance_scale")
    known = None if given is None else (float(given), float(given))
    with PipelineNetwork(subject.pipe, subject.arguments, subject.prompts) as network:
        if isinstance(network.schedule, SigmaModel):
            raise ValueError(
                f"pipeline={subject.name!r}: plans for pipelines of EDM models cannot be fitted "
                "yet; give the network itself, --model edm=module:function"
            )
        yield PipelineFitting(subject, network, known)


def scales(guidance: tuple[float, float], indices: Sequence[int]) -> Tensor:
    """A scale for each sample, by its number alone, all over the range."""
    low, high = guidance
    shares = torch.tensor([(index * GOLDEN) % 1 for index in indices], dtype=torch.float64)
    return low + (high - low) * shares


def _scaled(fitted: Fitting, z: Tensor) -> Tensor:
    """Standard normal z at the scale of the first node."""
    node = node_at(fitted.schedule, fitted.ends["t_start"])
    scale = math.hypot(node.alpha, node.sigma)
    return z if abs(scale - 1) < 1e-12 else (scale * z.double()).to(z.dtype)
