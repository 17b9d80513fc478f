r"""Denoiser: any pretrained network as one uniform data prediction (x, t) -> x0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import scalar
from .cfg_pp import ClassifierFreePP
from .condition_rows import repeated, selected
from .grids import as_number, node_at
from .guidance import ClassifierFree, unwrap
from .plan import Node
from .prediction import Linear, check_prediction, to_data
from .schedules import NoiseSchedule
from .state_edits import version

Time = float | Tensor


class Denoiser:
    """A network, what it predicts, and what is done to its prediction.

    ``denoise(x, t)`` is the data prediction x0 (B, *event) of states x (B, *event) at the
    schedule's time t (a float, or a tensor of one or B entries). Solvers use ``evaluate``, which
    gives the network's own output (``prediction``) so that no accuracy is lost in conversions.

    Parameters
    ----------
    network : ``network(x, t)`` or ``network(x, t, **condition)`` with x (B, *event) and t (B,)
        in the network's own time; may return a tensor, an object with ``.sample``, or a tuple.
    schedule : the noise schedule that the network was trained on.
    prediction : "epsilon", "sample", "v_prediction", "flow_prediction" or "score".
    condition : keyword arguments of the network (class labels, embeddings, ...).
    guidance : `ClassifierFree` or `ClassifierFreePP`, which brings its own condition.
    threshold : a function x0 -> x0 applied to every data prediction (`DynamicThreshold`, a clamp).
    network_time : function from the schedule's time to the network's; default
        ``schedule.network_time``. Flow models of diffusers take ``lambda t: 1000 * t``.
    dtype : run the network in this dtype and return the state's (half-precision networks with
        float32 states). Default: the network must take the state's dtype.

    Raises ValueError for an unknown prediction, for both ``condition`` and ``guidance``, and at a
    call for an output of the wrong type or shape, and for a network that writes to its condition.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: NoiseSchedule,
        prediction: str = "epsilon",
        *,
        condition: Mapping[str, Any] | None = None,
        guidance: ClassifierFree | None = None,
        threshold: Callable[[Tensor], Tensor] | None = None,
        network_time: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not callable(network):
            raise ValueError(f"network={network!r}: need a callable network(x, t)")
        if not isinstance(schedule, NoiseSchedule):
            raise ValueError(f"schedule={schedule!r}: need a NoiseSchedule")
        if guidance is not None and condition is not None:
            raise ValueError("condition was given beside guidance: put it into the guidance")
        if threshold is not None and isinstance(guidance, ClassifierFreePP):
            raise ValueError(
                "threshold was given beside ClassifierFreePP, whose combination of its branches is "
                "no data prediction"
            )
        self.network = network
        self.schedule = schedule
        self.native = check_prediction(prediction)
        self.condition = dict(condition or {})
        self.guidance = guidance
        self.threshold = threshold
        self.network_time = network_time or schedule.network_time
        self.dtype = dtype

    @property
    def prediction(self) -> str:
        """What ``evaluate`` returns: the native prediction, or "sample" once x0 is thresholded."""
        return self.native if self.threshold is None else "sample"

    def evaluate(
        self, x: Tensor, t: Time, told: Time | None = None, second: Time | None = None
    ) -> Tensor:
        """One network evaluation at states x (B, *event): a prediction of type ``prediction``.

        ``told`` and ``second`` are those of a `Node`: the time that the network is told, t if None,
        and a second one, with which it is called as ``network(x, t, second, **condition)``.

        A network that writes to its input writes to x: who needs x afterwards looks for that.
        """
        if self.threshold is None:
            return self._call_network(x, t, told, second)
        return self.threshold(self._data(x, t, told, second))

    def evaluate_groups(
        self,
        x: Tensor,
        times: Sequence[float] | Tensor,
        told: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """``evaluate`` at P times in one network call: x (P, B, *event), group i at times[i].

        Each group is a whole batch: conditions with one entry a sample hold for every group. The
        network is told the times ``told``, where they are given.
        """
        groups, batch = x.shape[:2]
        t, shown = (
            None
            if values is None
            else torch.as_tensor(values, dtype=torch.float64).repeat_interleave(batch)
            for values in (times, told)
        )
        assert t is not None
        return self._repeated(groups, batch).evaluate(x.flatten(0, 1), t, shown).view_as(x)

    def for_samples(self, rows: Tensor, batch: int) -> Denoiser:
        """The same denoiser for the samples with the numbers ``rows`` out of a batch.

        Conditions with one entry a sample of the batch are divided, all others stay.
        """
        return self._with_conditions(lambda value: selected(value, rows, batch))

    def _repeated(self, groups: int, batch: int) -> Denoiser:
        """The same denoiser for ``groups`` batches one after the other."""
        if groups == 1:
            return self
        return self._with_conditions(lambda value: repeated(value, groups, batch))

    def with_guidance(self, guidance: ClassifierFree) -> Denoiser:
        """The same denoiser with another guidance, its conditions included."""
        result = copy(self)
        result.guidance = guidance
        return result

    def _with_conditions(self, change: Callable[[Any], Any]) -> Denoiser:
        result = copy(self)
        result.condition = change(self.condition)
        if self.guidance is not None:
            names = ("scale", "condition", "null")
            parts = {name: change(getattr(self.guidance, name)) for name in names}
            result.guidance = replace(self.guidance, **parts)
        return result

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Data prediction x0 (B, *event) at the schedule's time t."""
        x0 = self._data(x, t)
        return x0 if self.threshold is None else self.threshold(x0)

    def check_input(self, x: Tensor, name: str = "x") -> None:
        """Raise ValueError if a network that is a module cannot take x (device, dtype)."""
        if not isinstance(self.network, torch.nn.Module):
            return
        for parameter in self.network.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.device != x.device:
                raise ValueError(
                    f"{name} is on device {x.device}, the network on {parameter.device}: "
                    f"move one of them"
                )
            if self.dtype is None and parameter.dtype != x.dtype:
                raise ValueError(
                    f"{name} has dtype {x.dtype}, the network {parameter.dtype}: cast {name}, or "
                    f"pass Denoiser(..., dtype={parameter.dtype}) to cast at every call"
                )
            return

    def _call_network(
        self, x: Tensor, t: Time, told: Time | None = None, second: Time | None = None
    ) -> Tensor:
        network_time = self.network_time(t if told is None else told)
        # float16 cannot hold a timestep of 999.5; times are never rounded below float32.
        time_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        times = _on_device(network_time, x.shape[0], time_dtype, x.device)
        state = x if self.dtype is None else x.to(self.dtype)
        conditions = [(key, v) for key, v in self._conditions() if isinstance(v, Tensor)]
        versions = [version(value) for _, value in conditions]
        if self.guidance is not None:
            output = self.guidance(self._with(second), state, times, t)
        else:
            output = self._with(second)(state, times, **self.condition)
        for (key, value), before in zip(conditions, versions, strict=True):
            if version(value) != before:
                raise ValueError(
                    f"network wrote to its condition {key!r}, which the next calls need as it was: "
                    "let it work on a copy"
                )
        output = unwrap(output)
        if not isinstance(output, Tensor):
            raise ValueError(f"network returned {type(output).__name__}: need a tensor")
        if output.shape != x.shape:
            raise ValueError(
                f"network returned shape {tuple(output.shape)}: need that of x, {tuple(x.shape)}"
            )
        if not output.is_floating_point():
            raise ValueError(f"network returned dtype {output.dtype}: need a floating-point type")
        return output if self.dtype is None else output.to(x.dtype)

    def _with(self, second: Time | None) -> Callable[..., Any]:
        """The network, which is called with a second time where there is one."""
        if second is None:
            return self.network
        time = self.network_time(second)

        def network(x: Tensor, t: Tensor, **condition: Any) -> Any:
            return self.network(x, t, _on_device(time, len(x), t.dtype, x.device), **condition)

        return network

    def _conditions(self) -> list[tuple[str, Any]]:
        if self.guidance is None:
            return list(self.condition.items())
        return [*self.guidance.condition.items(), *self.guidance.null.items()]

    def _data(
        self, x: Tensor, t: Time, told: Time | None = None, second: Time | None = None
    ) -> Tensor:
        output = self._call_network(x.clone(), t, told, second)  # which may write to its input
        return output if self.native == "sample" else self._to_data(x, t)(output, x)

    def _to_data(self, x: Tensor, t: float | Tensor) -> Linear:
        """x0 as a linear function of the network's output and x."""
        if not isinstance(t, Tensor) or t.numel() == 1:
            single = as_number("t", t.reshape(()) if isinstance(t, Tensor) else t)
            return to_data(self.native, node_at(self.schedule, single))
        times = t.to("cpu", torch.float64)
        scales = self.schedule.alpha(times), self.schedule.sigma(times)
        columns = map(scalar.numbers, (times, *scales))
        linear = [to_data(self.native, Node(*entry)) for entry in zip(*columns, strict=True)]
        maps = torch.stack([scalar.vector(entry) for entry in linear])
        out, state = maps.to(x.device, x.dtype).reshape(-1, 2, *[1] * (x.ndim - 1)).unbind(1)
        return Linear(out, state)


def _on_device(time: Any, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The time of every sample, for which the host does not wait."""
    if isinstance(time, int | float):
        return torch.full((batch,), time, dtype=dtype, device=device)
    return torch.as_tensor(time, dtype=dtype).to(device, non_blocking=True).expand(batch)


def check_start(x_T: Tensor, denoise: Any) -> None:
    """Raise ValueError unless ``denoise`` can be called on start states x_T (B, *event)."""
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point():
        kind = x_T.dtype if isinstance(x_T, Tensor) else type(x_T).__name__
        raise ValueError(f"x_T is {kind}: need a tensor of a floating-point dtype")
    if x_T.ndim < 2:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}: need (B, *event)")
    if not callable(denoise):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser or a function (x, t) -> x0")
    if isinstance(denoise, Denoiser):
        denoise.check_input(x_T, "x_T")
    if x_T.is_meta:
        raise ValueError("x_T is on device meta: need a device that holds values")
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T has values that are not finite: need finite start states")


def checked(denoise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A plain data prediction (x, t) -> x0 that raises ValueError for an x0 of another shape."""

    def evaluate(x: Tensor, *times: float) -> Tensor:
        x0 = denoise(x, *times)
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            shape = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(
                f"denoise returned {shape}: need a tensor of x's shape, {tuple(x.shape)}"
            )
        return x0

    return evaluate
