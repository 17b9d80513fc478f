"""What ``step`` returns: the next state, and the data prediction for those who ask for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from logsnr.solvers import Node
from logsnr.solvers.prediction import to_data
from logsnr.solvers.running import version

from ..config.model import Model
from .step_density import StepDensity


class StepOutput(SchedulerOutput):
    """``prev_sample``, and ``pred_original_sample`` as DDIM's and Euler's outputs have it.

    The data prediction is made when it is read, so that it costs nothing in the loop of a pipeline.
    With ``log_prob=True`` there are also ``log_prob`` (B,), and the mean and the deviation of
    ``prev_sample``, ``prev_sample_mean`` and ``std_dev``; see `StepDensity`. Else they are None.
    """

    def __init__(
        self,
        prev_sample: Tensor,
        predict: Callable[[], Tensor] | None = None,
        density: StepDensity | None = None,
    ):
        super().__init__(prev_sample)
        self.__dict__["_predict"] = predict
        found = (None, None, None) if density is None else density
        for name, value in zip(("log_prob", "prev_sample_mean", "std_dev"), found, strict=True):
            self.__dict__[name] = value

    @property
    def pred_original_sample(self) -> Tensor | None:
        """The data prediction of this step; ValueError once its tensors were changed in place."""
        predict = self.__dict__["_predict"]
        return None if predict is None else predict()


class DataPrediction:
    """The data prediction of ``output`` at ``sample`` and ``node``, in the units of the data."""

    __slots__ = ("model", "node", "output", "sample", "versions")

    def __init__(self, model: Model, node: Node, output: Tensor, sample: Tensor):
        self.model, self.node = model, node
        self.output, self.sample = output, sample
        self.versions = version(output), version(sample)

    def __call__(self) -> Tensor:
        output, sample, model = self.output, self.sample, self.model
        if self.versions != (version(output), version(sample)):
            raise ValueError(
                "pred_original_sample was read after model_output or sample had been changed in "
                "place: read it right after the step"
            )
        precise = torch.promote_types(sample.dtype, torch.float32)
        x0 = to_data(model.prediction, self.node)(model.sign * output.to(precise), sample)
        if model.threshold is not None:
            x0 = model.threshold(x0)
        return (x0 * model.unit).to(sample.dtype)
