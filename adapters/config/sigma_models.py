r"""Models that diffusers describes by a range of sigma: EDM, Stable Audio, Stable Video Diffusion.

Their noisy image is z = x0 + s eps with s between ``sigma_min`` and ``sigma_max``, and the
network is shown z / sqrt(s^2 + d^2), where d (``sigma_data``) is the standard deviation of the
data (Karras et al. 2022, table 1). That scaled image is the state here:

    x = alpha (x0 / d) + sigma eps,   alpha = 1 / sqrt(1 + t^2),   sigma = t alpha,   t = s / d

so it is variance-preserving in the normalised data x0 / d, needs no scaling on its way into the
network, and starts from unit noise. In these terms the preconditioned network F of EDM,

    x0 = d^2 / (s^2 + d^2) z + s d / sqrt(s^2 + d^2) F,

is a v-prediction of the normalised data with the sign turned: x0 / d = alpha x - sigma v, v = -F.
The last node of a run is in the units of z, (alpha, sigma) = (d, s), so that what the pipeline
decodes is x0 itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Node, NoiseSchedule
from logsnr.solvers.schedules import Time

ATAN_CLASS = "CosineDPMSolverMultistepScheduler"
CLOCKS = ("log", "atan")


@dataclass(frozen=True)
class SigmaModel(NoiseSchedule):
    """The schedule of the module's text over t = s / sigma_data.

    Parameters
    ----------
    sigma_min, sigma_max : the range of s.
    sigma_data : d, the standard deviation of the data.
    clock : what the network is told: "log" is log(s) / 4 (EDM), "atan" is 2 / pi atan(s) (Stable
        Audio).

    Raises ValueError unless 0 < sigma_min < sigma_max < inf and sigma_data > 0.
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float = 1.0
    clock: str = "log"
    t_max: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}: "
                "need 0 < sigma_min < sigma_max < inf"
            )
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data={self.sigma_data!r}: need a positive number")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock={self.clock!r}: choose one of {', '.join(CLOCKS)}")
        object.__setattr__(self, "t_start", self.sigma_max / self.sigma_data)
        object.__setattr__(self, "t_end", self.sigma_min / self.sigma_data)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log1p(t**2)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t) - 0.5 * torch.log1p(t**2)

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -t / (1 + t**2)

    def _dlam(self, t: Tensor) -> Tensor:
        return -1 / t

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    def network_time(self, t: Time) -> Time:
        """log(s) / 4 or 2 / pi atan(s), by ``clock``."""
        s = t * self.sigma_data
        if isinstance(s, Tensor):
            return 0.25 * torch.log(s) if self.clock == "log" else torch.atan(s) * (2 / math.pi)
        return 0.25 * math.log(s) if self.clock == "log" else math.atan(s) * (2 / math.pi)

    def time_told(self, told: Time) -> Time:
        """The inverse of ``network_time``."""
        if isinstance(told, Tensor):
            s = torch.exp(4 * told) if self.clock == "log" else torch.tan(told * (math.pi / 2))
            return s / self.sigma_data
        s = math.exp(4 * told) if self.clock == "log" else math.tan(told * math.pi / 2)
        return s / self.sigma_data

    def at(self, s: float) -> Node:
        """The node at which the noisy image is x0 + s eps, scaled as the network sees it."""
        t = s / self.sigma_data
        alpha = 1 / math.hypot(1, t)
        return Node(t, alpha, t * alpha)

    def last(self, s: float) -> Node:
        """The node of the result x0 + s eps, not scaled."""
        return Node(s / self.sigma_data, self.sigma_data, s)

    def start_scale(self, s: float, deviation: float) -> float:
        """Deviation of the state where diffusers starts z at s with ``deviation``; about 1."""
        return deviation / math.hypot(s, self.sigma_data)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether the config describes an EDM-preconditioned network."""
    return config.get("sigma_data") is not None


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether the network is told log(s) / 4, as Stable Video Diffusion.

    As in diffusers, ``timestep_type="continuous"`` counts for v-prediction only.
    """
    wanted = config.get("timestep_type") == "continuous"
    return wanted and config.get("prediction_type") == "v_prediction"


def edm_model(config: Mapping[str, Any]) -> SigmaModel:
    """The schedule of an EDM config, which names its range. ValueError where it does not."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None or high is None:
        raise ValueError(
            f"sigma_min={low!r}, sigma_max={high!r}: a model with sigma_data="
            f"{config['sigma_data']!r} needs both"
        )
    clock = "atan" if config.get("stock_class") == ATAN_CLASS else "log"
    return SigmaModel(float(low), float(high), float(config["sigma_data"]), clock)


def start_deviation(config: Mapping[str, Any], highest: float) -> float:
    """The standard deviation with which diffusers draws z at the first sigma, ``highest``."""
    if is_edm(config):
        return math.hypot(float(config["sigma_max"]), 1)
    leading = (config.get("timestep_spacing") or "linspace") not in ("linspace", "trailing")
    return math.hypot(highest, 1) if leading else highest


class StateOnly(tuple[Tensor]):
    """What a step returns for EDM models: the next state, and no data prediction beside it."""

    def __getitem__(self, index: Any) -> Any:
        if index == 1:
            raise ValueError(COSMOS)
        return super().__getitem__(index)


COSMOS = (
    "the pipelines of Cosmos 1 use the inside of EDMEulerScheduler (its data prediction, its "
    "c_in, its step count): PlanScheduler cannot take its place there"
)
