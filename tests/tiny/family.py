"""What a pipeline family is to the tests: how to build one, call it and count its network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """A tiny pipeline.

    ``build()`` makes it once, with its stock scheduler. ``arguments`` are its call's, beside the
    number of steps and the generator. ``network`` is the attribute that holds the denoiser, which
    is called ``calls`` times a step. ``stock`` maps solvers to the class of diffusers that does the
    same where it is right, and its config. ``note`` is for the support table.
    """

    name: str
    pipeline: str
    build: Callable[[], Any]
    kind: str
    arguments: Callable[[], dict[str, Any]]
    network: str = "unet"
    calls: int = 1
    latent: bool = True
    stock: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    note: str = ""

    def call(self, pipe: Any, *, steps: int = 4, seed: int = 0, **changed: Any) -> Tensor:
        """The latents (or for a pipeline that only decodes: the last state) of a run."""
        arguments = {
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(seed),
            **self.arguments(),
            **({"output_type": "latent"} if self.latent else {}),
            **changed,
        }
        if self.latent:
            return as_tensor(pipe(**arguments))
        with last_state(pipe.scheduler) as states:
            pipe(**arguments)
        return states[-1]

    def run(self, scheduler: Any = None, **options: Any) -> tuple[Tensor, list[float]]:
        """``call`` with another scheduler, and the times that the network was told."""
        pipe = self.build()
        with using(pipe, scheduler), told(getattr(pipe, self.network)) as times:
            return self.call(pipe, **options), times


FAMILIES: dict[str, Family] = {}


def family(name: str, pipeline: str, kind: str, **options: Any) -> Callable[..., Any]:
    """Register the decorated builder: build() -> (pipeline, arguments() of a call)."""

    def register(build: Callable[[], tuple[Any, Callable[[], dict[str, Any]]]]) -> Any:
        @cache
        def made() -> tuple[Any, Callable[[], dict[str, Any]]]:
            pipe, arguments = seeded(build)()
            pipe.set_progress_bar_config(disable=True)
            for part in pipe.components.values():  # from_pretrained does; a constructor does not
                if isinstance(part, torch.nn.Module):
                    part.eval()
            return pipe, arguments

        FAMILIES[name] = Family(
            name,
            pipeline,
            lambda: made()[0],
            kind,
            lambda: made()[1](),
            **options,
        )
        return build

    return register


@contextmanager
def using(pipe: Any, scheduler: Any) -> Iterator[Any]:
    """The pipeline with another scheduler for a while."""
    own = pipe.scheduler
    pipe.scheduler = scheduler or own
    try:
        yield pipe
    finally:
        pipe.scheduler = own


@contextmanager
def told(network: torch.nn.Module) -> Iterator[list[float]]:
    """The times that the network is told, one a call."""
    times: list[float] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        names = ("timestep", "t")
        t = next((kwargs[name] for name in names if name in kwargs), args[1] if args[1:] else None)
        times.append(float(torch.as_tensor(t).flatten()[0]))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield times
    finally:
        handle.remove()


@contextmanager
def last_state(scheduler: Any) -> Iterator[list[Tensor]]:
    """What the scheduler's steps return, for pipelines that hand out decoded, clipped images."""
    states: list[Tensor] = []
    step = scheduler.step

    @wraps(step)
    def noted(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        states.append(result[0])
        return result

    scheduler.step = noted
    try:
        yield states
    finally:
        del scheduler.step


def as_tensor(output: Any) -> Tensor:
    """The first field of a pipeline's output."""
    value = output[0]
    while isinstance(value, (list, tuple)):
        value = value[0]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    """The decorated function draws the same weights whoever calls it first."""

    @wraps(build)
    def built(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return built


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Seeded standard normals, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*shape: int, seed: int = 1) -> Tensor:
    """A seeded image (1, 3, 8, 8) with values in [0, 1]."""
    return torch.rand(*(shape or (1, 3, 8, 8)), generator=torch.Generator().manual_seed(seed))
