"""What a plan was fitted to: a note that goes with it, and is compared with what it is run on.

The note is an entry of ``plan.options``, so it is in every file of the plan. A fitted plan on
another model is no error, it may be good there too; but it is never silent.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .denoiser import Denoiser
from .plan import Plan

KEY = "fitted_to"


@dataclass(frozen=True)
class FittedTo:
    """The model that a plan was fitted to, as far as a plan depends on it.

    Parameters
    ----------
    name : what the model is called.
    weights : a hash of its weights, "" where nobody knows.
    schedule : its noise schedule in words. (The nodes of the plan say it in numbers.)
    prediction : what the network predicts.
    event : the shape of a sample, without the batch; () where nobody knows.
    guidance : the lowest and the highest scale of guidance it was fitted at; None where nobody
        knows, (1, 1) without guidance.
    shift : of flow models, the resolution shift of their scheduler; None for others.
    training_steps : N, in which the network's times are counted.

    Raises ValueError naming the argument.
    """

    name: str = ""
    weights: str = ""
    schedule: str = ""
    prediction: str = ""
    event: tuple[int, ...] = ()
    guidance: tuple[float, float] | None = None
    shift: float | None = None
    training_steps: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", tuple(self.event))
        if not all(isinstance(n, int) and n > 0 for n in self.event):
            raise ValueError(f"event={self.event!r}: need the shape of a sample, whole numbers")
        if self.guidance is not None:
            low, high = pair = tuple(map(float, self.guidance))
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"guidance={self.guidance!r}: need two numbers, low <= high")
            object.__setattr__(self, "guidance", pair)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FittedTo:
        """What `to_json` gave, of this release or a later one."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def at_guidance(self) -> str:
        """The scale of guidance, or their range, in words."""
        low, high = self.guidance or (1.0, 1.0)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"

    def differences(
        self,
        *,
        guidance: Sequence[float] = (),
        event: Sequence[int] | None = None,
        prediction: str | None = None,
        shift: float | None = None,
        weights: str | None = None,
    ) -> Iterator[str]:
        """In what a run on another model differs, in words; what is not given is not compared."""
        if self.guidance is not None:
            low, high = self.guidance
            beyond = [scale for scale in guidance if not low - 1e-6 <= scale <= high + 1e-6]
            if beyond:
                yield f"guidance {beyond[0]:g}, fitted at {self.at_guidance}"
        if event and self.event and tuple(event) != self.event:
            yield f"samples of shape {tuple(event)}, fitted at {self.event}"
        if prediction and self.prediction and prediction != self.prediction:
            yield f"a network that predicts {prediction}, fitted to {self.prediction}"
        if shift is not None and self.shift is not None and not math.isclose(shift, self.shift):
            yield f"shift {shift:g}, fitted at {self.shift:g}"
        if weights and self.weights and weights != self.weights:
            yield f"weights {weights}, fitted to {self.weights}"


def noted(plan: Plan, model: FittedTo) -> Plan:
    """The plan with the note of what it was fitted to."""
    return plan.labelled(plan.solver, {**plan.options, KEY: model.to_json()})


def fitted_to(plan: Plan) -> FittedTo | None:
    """The note of a plan; None for one that was fitted to nothing."""
    note = plan.options.get(KEY)
    return FittedTo.from_json(note) if isinstance(note, Mapping) else None


def warn_if_other(plan: Plan, denoise: Any, x: Tensor) -> None:
    """Warn where states or guidance are others than those that the plan was fitted to."""
    if KEY not in plan.options or (model := fitted_to(plan)) is None:
        return
    said: dict[str, Any] = {"event": x.shape[1:]}
    if isinstance(denoise, Denoiser):
        said["prediction"] = denoise.native
        said["guidance"] = [1.0] if denoise.guidance is None else denoise.guidance.scales
    warn(plan, model.differences(**said), stacklevel=4)


def warn(plan: Plan, found: Iterator[str], stacklevel: int = 3) -> None:
    """One warning for all differences; none if there are none."""
    if text := "; ".join(found):
        warnings.warn(
            f"{plan!r} was fitted to something else: {text}. It may be worse than an untuned plan; "
            "fit one for this",
            UserWarning,
            stacklevel=stacklevel,
        )
