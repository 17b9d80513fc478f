r"""The noise schedule that a diffusers config describes.

Three kinds are told apart. Variance-preserving configs give N betas, by a formula or as a table;
flow-matching configs either carry ``shift`` (the key of FlowMatchEulerDiscreteScheduler) or set
``use_flow_sigmas`` (the key of the multistep schedulers); and some give a range of sigma (see
`sigma_models`). Tables are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, FlowMatching, NoiseSchedule
from logsnr.solvers.schedules import shift_time

from .sigma_models import SigmaModel, edm_model, is_continuous, is_edm
from .stock_classes import class_defaults
from .store import Config, as_one

MAX_BETA = 0.999


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the config describes flow matching."""
    return bool(config.get("use_flow_sigmas")) or config.get("shift") is not None


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The config's noise schedule; equal configs give the same object.

    Raises ValueError for an unknown ``beta_schedule`` and for schedules that are not supported.
    """
    if not isinstance(config, Config):
        config = as_one(config, class_defaults(config))
    if is_edm(config):
        return edm_model(config)
    if is_flow(config):
        return FlowMatching()
    discrete = discrete_schedule(config)
    if not is_continuous(config):
        return discrete
    low, high = sigma_range(config.get("sigma_min"), config.get("sigma_max"), discrete)
    return SigmaModel(low, high)


def discrete_schedule(config: Mapping[str, Any]) -> DiscreteVP:
    """The N training steps of a config with betas; ValueError for values that give none."""
    trained, steps = config.get("trained_betas"), config["num_train_timesteps"]
    if trained is None and (int(steps) != steps or steps < 2):
        raise ValueError(f"num_train_timesteps={steps!r}: need a whole number of at least 2")
    return _discrete(
        int(config["num_train_timesteps"]),
        config["beta_schedule"],
        float(config["beta_start"]),
        float(config["beta_end"]),
        None if trained is None else tuple(float(beta) for beta in trained),
        bool(config.get("rescale_betas_zero_snr")),
        float(config.get("snr_shift_scale") or 1.0),
    )


def betas_of(name: str, alphas_cumprod: Tensor, steps: int) -> list[float]:
    """The betas of a table that was given as ``name``.

    Raises ValueError for a table that is no noise schedule of ``steps`` steps.
    """
    if alphas_cumprod.shape != (steps,):
        raise ValueError(
            f"{name} has shape {tuple(alphas_cumprod.shape)}: need {steps} numbers, one for each "
            "of num_train_timesteps"
        )
    try:
        table = DiscreteVP(alphas_cumprod.detach().double()).alphas_cumprod
    except ValueError as error:
        raise ValueError(f"{name} was set: {error}") from error
    return (1 - table / torch.cat([torch.ones(1).to(table), table[:-1]])).tolist()


def sigma_range(low: Any, high: Any, schedule: DiscreteVP) -> tuple[float, float]:
    """sigma / alpha of the last and the first node of a spacing by sigma.

    The ends of training, or ``sigma_min`` and ``sigma_max`` of a config, which are not None.
    ValueError where they are no range.
    """
    low = math.exp(-schedule.lam(1 / schedule.steps)) if low is None else float(low)
    high = math.exp(-schedule.lam(1.0)) if high is None else float(high)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"sigma_min={low!r}, sigma_max={high!r}: spacing by sigma / alpha needs "
            "0 < sigma_min < sigma_max < inf (zero terminal SNR has no sigma_max)"
        )
    return low, high


@lru_cache(maxsize=32)
def _discrete(
    steps: int,
    name: str,
    start: float,
    end: float,
    trained: tuple[float, ...] | None,
    zero_terminal: bool,
    snr_shift: float,
) -> DiscreteVP:
    if trained is not None:
        betas = torch.tensor(trained, dtype=torch.float64)
    elif name in BETAS:
        if not 0 < start <= end < 1:
            raise ValueError(
                f"beta_start={start!r}, beta_end={end!r}: need 0 < beta_start <= beta_end < 1"
            )
        betas = BETAS[name](steps, start, end)
    else:
        also = " ('exp' is that of Shap-E, which is not supported)" if name == "exp" else ""
        raise ValueError(f"beta_schedule={name!r}: choose one of {', '.join(BETAS)}{also}")
    schedule = DiscreteVP.from_betas(betas)
    if snr_shift == 1 and not zero_terminal:
        return schedule
    table = schedule.alphas_cumprod
    table = shift_time(table, 1 / snr_shift)
    return DiscreteVP(with_zero_terminal_snr(table) if zero_terminal else table)


def with_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """alpha moved linearly so that the last is 0 and the first stays (Lin et al. 2023, alg. 1)."""
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def _line(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _of_alpha_bar(alpha_bar: Callable[[float], float]) -> Callable[[int, float, float], Tensor]:
    def betas(steps: int, start: float, end: float) -> Tensor:
        levels = [alpha_bar(i / steps) for i in range(steps + 1)]
        ratios = [b / a for a, b in zip(levels, levels[1:], strict=False)]
        return torch.tensor([min(1 - r, MAX_BETA) for r in ratios], dtype=torch.float64)

    return betas


def _laplace(t: float) -> float:
    # lambda is a Laplace quantile of t (Hang et al. 2024); diffusers takes alpha for alpha-bar.
    lam = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-lam)))


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: _line(steps, start, end),
    "scaled_linear": lambda steps, start, end: _line(steps, math.sqrt(start), math.sqrt(end)) ** 2,
    "squaredcos_cap_v2": _of_alpha_bar(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2),
    "laplace": _of_alpha_bar(_laplace),
    "sigmoid": lambda steps, start, end: (
        torch.sigmoid(_line(steps, -6.0, 6.0)) * (end - start) + start
    ),
}
