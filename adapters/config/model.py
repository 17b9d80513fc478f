"""What a config says of the model: its noise, its times, its network's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logsnr.solvers import DiscreteVP, NoiseSchedule

from .network_output import data_scale, output_sign, prediction_type, threshold
from .noise_schedules import discrete_schedule, noise_schedule
from .sigma_models import is_continuous, is_edm

LEARNED = ("learned", "learned_range")


@dataclass(frozen=True)
class Model:
    """A network and the noise that it was trained on.

    Attributes
    ----------
    schedule : its noise schedule.
    steps : the training steps of a model that has a table of them.
    training_steps : N, in which times are counted.
    edm : whether the network is EDM-preconditioned.
    inverted : whether a flow model is told N (1 - t).
    prediction : what the network predicts, once its output is multiplied by ``sign``.
    unit : the unit of the data in which states are variance-preserving.
    threshold : the hook on the data prediction.
    learned_variance : whether the output holds a variance beside the prediction.
    sample_size : the side of the images that it makes, or both, None where nobody said.
    """

    schedule: NoiseSchedule
    steps: DiscreteVP | None
    training_steps: int
    edm: bool
    inverted: bool
    prediction: str
    sign: float
    unit: float
    threshold: Callable[[Tensor], Tensor] | None
    learned_variance: bool
    sample_size: Any


def model_of(config: Mapping[str, Any]) -> Model:
    """The model of ``config``; ValueError naming a key with a bad value."""
    schedule = noise_schedule(config)
    steps = discrete_schedule(config) if is_continuous(config) else schedule
    return Model(
        schedule=schedule,
        steps=steps if isinstance(steps, DiscreteVP) else None,
        training_steps=int(config["num_train_timesteps"]),
        edm=is_edm(config),
        inverted=bool(config.get("invert_sigmas")),
        prediction=prediction_type(config),
        sign=output_sign(config),
        unit=data_scale(config),
        threshold=threshold(config),
        learned_variance=config.get("variance_type") in LEARNED,
        sample_size=config.get("sample_size"),
    )
