"""Driving a run one network evaluation at a time, for callers that own the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.solvers import Evaluation, Noise, Plan
from logsnr.solvers.prediction import to_data
from logsnr.solvers.run import executor_for, proceed


class Drive:
    """One run of ``plan`` from ``sample`` (B, *event): each `step` sends a network output.

    Parameters
    ----------
    prediction : what the network predicts, once its output is multiplied by ``sign`` (1 or -1).
    threshold : applied to every data prediction.
    differentiable : keep the graph of the steps.

    Attributes
    ----------
    generator, variance_noise : where the noise of the next step comes from: a torch.Generator, a
        list of one for each sample, or the noise itself.
    """

    def __init__(
        self,
        plan: Plan,
        prediction: str,
        sample: Tensor,
        *,
        sign: float = 1.0,
        threshold: Callable[[Tensor], Tensor] | None = None,
        differentiable: bool = False,
    ):
        self.prediction = prediction
        self.sign = sign
        self.threshold = threshold
        self.dtype = sample.dtype
        self.generator: torch.Generator | list[torch.Generator] | None = None
        self.variance_noise: Tensor | None = None
        self.differentiable = differentiable
        handed_on = prediction if threshold is None else "sample"
        self.executor = executor_for(plan, sample, handed_on, differentiable=differentiable)
        self._proceed(sample, 0)

    def _proceed(self, handed: Tensor, begin: int) -> None:
        self.process = proceed(self.executor, handed, self._draw, begin)
        self.evaluation: Evaluation | None = next(self.process)

    def __getstate__(self) -> dict[str, Any]:
        # A live generator cannot be copied, but what it works with can.
        state = {**self.__dict__, "generator": None, "variance_noise": None}
        state.pop("process", None)  # the copy of a run that had ended has none
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.evaluation is not None:
            self._proceed(self.evaluation.x, self.evaluation.index)

    def step(self, output: Tensor, sample: Tensor) -> Tensor:
        """Send the network's output at ``sample``; the next state (the result in the end).

        A ``sample`` that is not the tensor handed out before, or was changed in place, is taken
        as an edit and carried on. Raises ValueError after the last step.
        """
        evaluation, self.evaluation = self.evaluation, None
        if evaluation is None:
            raise ValueError("step was called after the run ended: call set_timesteps first")
        if output.requires_grad and not self.differentiable and torch.is_grad_enabled():
            raise ValueError(
                "model_output requires grad, but that of the first step did not: run the whole "
                "loop with gradients, or detach it"
            )
        evaluation.x = sample
        if self.sign != 1:
            output = -output
        if self.threshold is not None:
            out, state = to_data(self.prediction, evaluation.node)
            precise = torch.promote_types(sample.dtype, torch.float32)
            output = self.threshold(out * output.to(precise) + state * sample)
        try:
            evaluation = self.process.send(output)
        except StopIteration as stop:
            return stop.value
        self.evaluation = evaluation
        return evaluation.x

    def _draw(self, term: Noise, like: Tensor) -> Tensor:
        if self.variance_noise is not None:
            try:
                return self.variance_noise.to(like).expand_as(like)
            except RuntimeError as error:
                raise ValueError(
                    f"variance_noise has shape {tuple(self.variance_noise.shape)}: need that of "
                    f"sample, {tuple(like.shape)}"
                ) from error
        noise = randn_tensor(
            like.shape, generator=self.generator, device=like.device, dtype=self.dtype
        )
        return noise.to(like.dtype)
