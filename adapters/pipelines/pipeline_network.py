"""A pipeline as a network: its output, guidance and all, at any state and time, with gradients.

`run_pipeline` gives the loop to an algorithm that is a generator. Code that wants to *call* a
network, such as a fit, is none. So the pipeline is called in a thread of its own, and waits in its
loop for states; one call of it serves as many evaluations as it has iterations, and is made again
for other prompts.

    with PipelineNetwork(pipe, prompts=prompts) as network:
        denoise = network.denoiser(range(8))
        plan = tune(denoise, network.starts(seed=0, count=8), nfe=8)
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Denoiser, DiscreteVP, Evaluation, NoiseSchedule
from logsnr.solvers.grids import node_at

from ..config.sigma_models import SigmaModel
from .algorithm import Algorithm, Loop
from .call_arguments import for_samples
from .networks import Networks
from .pipeline_run import BEGIN_LATER, run_pipeline

ITERATIONS = 1000
"""Of one call of the pipeline; then it is called again."""


class PipelineNetwork:
    """``network(x, t, sample)`` through a diffusers pipeline; a context manager.

    Parameters
    ----------
    pipe : a diffusers pipeline. Nothing of it is changed afterwards.
    call_kwargs : arguments of its call (prompt, guidance_scale, height, ...).
    prompts : in place of one prompt, those of the samples in turn.

    Attributes
    ----------
    schedule, prediction : of its model, as a `Denoiser` takes them.
    event, dtype, device : of its states, without the batch.
    loop : the loop as an algorithm sees it, with the nodes of the pipeline's own run.

    States x are (B, *event), t is the schedule's time (B,), ``sample`` (B,) says whose prompt each
    row has. Gradients with respect to x and t cost a second evaluation, and the memory of one.

    Raises ValueError for a pipeline that may begin in the middle (a strength), and what
    `run_pipeline` raises.
    """

    def __init__(
        self,
        pipe: Any,
        call_kwargs: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
    ):
        given = inspect.signature(type(pipe).__call__).parameters
        if late := [name for name in BEGIN_LATER if name in given]:
            raise ValueError(
                f"{type(pipe).__name__} may begin in the middle of a run ({late[0]}), where no "
                "fitted plan begins: need a pipeline that begins with noise"
            )
        self.pipe, self.prompts = pipe, tuple(prompts)
        self.call_kwargs = dict(call_kwargs or {})
        self._call: _Call | None = None
        self._frozen: list[Tensor] = []

    def __enter__(self) -> PipelineNetwork:
        modules = [p for p in vars(self.pipe).values() if isinstance(p, torch.nn.Module)]
        self._frozen = [p for module in modules for p in module.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        try:
            call = self._calling((0,))
        except BaseException:
            self.__exit__()
            raise
        self.loop, self.schedule = call.loop, call.loop.schedule
        self.prediction = call.loop.prediction
        self.event, self.dtype, self.device = call.x.shape[1:], call.x.dtype, call.x.device
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def denoiser(self, samples: Sequence[int]) -> Denoiser:
        """The denoiser of these samples, for as many states; parts of them take their own rows."""
        rows = torch.tensor(list(samples), device=self.device)
        return Denoiser(
            self,
            self.schedule,
            self.prediction,
            condition={"sample": rows},
            network_time=lambda t: t,
            dtype=self.dtype if self.dtype not in (torch.float32, torch.float64) else None,
        )

    def __call__(self, x: Tensor, t: Tensor, sample: Tensor) -> Tensor:
        """The output of type ``prediction`` at states x (B, *event)."""
        if t.numel() > 1 and (t != t.flatten()[0]).any():  # a batch of several times
            cuts = torch.unique_consecutive(t.detach(), return_counts=True)[1].tolist()
            parts = zip(x.split(cuts), t.split(cuts), sample.split(cuts), strict=True)
            return torch.cat([self(*part) for part in parts])
        rows = tuple(sample.tolist())
        if torch.is_grad_enabled() and (x.requires_grad or t.requires_grad):
            return _Checkpointed.apply(self, rows, x, t)
        return self.evaluate(rows, x, t)

    def evaluate(self, rows: tuple[int, ...], x: Tensor, t: Tensor) -> Tensor:
        """The output for the samples ``rows``; with its graph where gradients are enabled."""
        return self._calling(rows).send(x, t)

    def _calling(self, rows: tuple[int, ...]) -> _Call:
        """The call of the pipeline that waits for states of these samples."""
        texts = [self.prompts[row % len(self.prompts)] for row in rows] if self.prompts else []
        key = (len(rows), *texts)
        if self._call is not None and (self._call.key != key or not self._call.left):
            self._end()
        if self._call is None:
            arguments = for_samples(self.pipe, self.call_kwargs, len(rows), texts)
            self._call = _Call(self.pipe, arguments, key)
        return self._call

    def _end(self) -> None:
        if self._call is not None:
            self._call.end()
            self._call = None


class _Ended(Exception):
    """Raised inside of the loop to leave it: nothing is decoded."""


class _Call:
    """A call of the pipeline in its thread, which waits for states.

    key : for which samples.  left : evaluations that it has left.
    loop, x : what its loop began with.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], key: Any):
        self.pipe, self.arguments, self.key = pipe, arguments, key
        self.left = ITERATIONS - 1  # the pipeline makes the first by itself
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._answered: SimpleQueue[Any] = SimpleQueue()
        self._time: Tensor | None = None
        self._told = 0.0
        # Daemons do not keep a program from ending that forgot to end them.
        self._thread = Thread(target=self._work, name="logsnr-pipeline", daemon=True)
        self._thread.start()
        self.x: Tensor
        self.loop: Loop
        self.x, self.loop = self._heard()

    def send(self, x: Tensor, t: Tensor) -> Tensor:
        """The output at states x and the time t, all the same."""
        self.left -= 1
        self._asked.put((x, t.flatten()[:1], torch.is_grad_enabled()))
        output: Tensor = self._heard()
        return output

    def end(self) -> None:
        """Leave the loop, and give the pipeline back as it was."""
        self._asked.put(None)
        self._thread.join()

    def _heard(self) -> Any:
        found = self._answered.get()
        if isinstance(found, BaseException):
            self.left = 0
            raise found
        return found

    def _work(self) -> None:
        algorithm = Algorithm(self._process, iterations=ITERATIONS, edits=False)
        try:
            with Networks(self.pipe) as networks:
                networks.tell(self._times, len(self.pipe.scheduler), self._has_time)
                run_pipeline(self.pipe, algorithm, **self.arguments)
        except _Ended:
            return
        except BaseException as error:  # for the thread that waits for an answer
            self._answered.put(error)

    def _process(self, x: Tensor, loop: Loop) -> Generator[Evaluation, Tensor | None, Tensor]:
        self._answered.put((x, loop))
        index = 0
        while (asked := self._asked.get()) is not None:
            states, t, graph = asked
            torch.set_grad_enabled(graph)  # of this thread, whose pipeline has switched it off
            self._time, self._told = _told(loop, t), float(_told(loop, t.detach()))
            node = node_at(loop.schedule, float(t.detach()))
            output = yield Evaluation(states, node, index)
            index += 1
            self._answered.put(output)
        raise _Ended

    def _has_time(self) -> bool:
        return self._time is not None and self._time.requires_grad

    def _times(self) -> tuple[Tensor, float]:
        assert self._time is not None
        return self._time.float(), self._told


def _told(loop: Loop, t: Tensor) -> Tensor:
    """What the scheduler's ``timesteps`` have at the schedule's time t (1,), with its gradient."""
    schedule: NoiseSchedule = loop.schedule
    if isinstance(schedule, DiscreteVP | SigmaModel):
        return torch.as_tensor(schedule.network_time(t))
    return loop.training_steps * (1 - t if loop.inverted else t)


class _Checkpointed(torch.autograd.Function):
    """An evaluation whose graph is made in the backward pass, by evaluating again."""

    @staticmethod
    def forward(
        ctx: Any, network: PipelineNetwork, rows: tuple[int, ...], x: Tensor, t: Tensor
    ) -> Tensor:
        ctx.network, ctx.rows = network, rows
        ctx.save_for_backward(x, t)
        return network.evaluate(rows, x, t)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        inputs = [v.detach().requires_grad_(n) for v, n in zip(saved, needed, strict=True)]
        with torch.enable_grad():
            output = ctx.network.evaluate(ctx.rows, *inputs)
        wanted = [value for value in inputs if value.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradients, allow_unused=True))
        return None, None, *(next(found) if n else None for n in needed)
