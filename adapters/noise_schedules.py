r"""The noise schedule that a diffusers config describes.

Two kinds are told apart. Variance-preserving configs give N betas, by a formula or as a table;
flow-matching configs either carry ``shift`` (the key of FlowMatchEulerDiscreteScheduler) or set
``use_flow_sigmas`` (the key of the multistep schedulers). Tables are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, FlowMatching, NoiseSchedule

MAX_BETA = 0.999


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the config describes flow matching."""
    return bool(config.get("use_flow_sigmas")) or config.get("shift") is not None


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The config's noise schedule; equal configs give the same object.

    Raises ValueError for an unknown ``beta_schedule`` and for schedules that are not supported.
    """
    for key, value in (("timestep_type", "continuous"), ("invert_sigmas", True)):
        if config.get(key) == value:
            raise ValueError(f"{key}={value!r} in the scheduler's config is not supported")
    if config.get("sigma_data") is not None:
        raise ValueError(
            f"sigma_data={config['sigma_data']!r}: EDM preconditioned models are not supported"
        )
    if is_flow(config):
        return FlowMatching()
    trained = config.get("trained_betas")
    return _discrete(
        int(config["num_train_timesteps"]),
        config["beta_schedule"],
        float(config["beta_start"]),
        float(config["beta_end"]),
        None if trained is None else tuple(float(beta) for beta in trained),
        bool(config.get("rescale_betas_zero_snr")),
        float(config.get("snr_shift_scale") or 1.0),
    )


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
        betas = BETAS[name](steps, start, end)
    else:
        raise ValueError(f"beta_schedule={name!r}: choose one of {', '.join(BETAS)}")
    schedule = DiscreteVP.from_betas(betas)
    if snr_shift == 1 and not zero_terminal:
        return schedule
    table = schedule.alphas_cumprod
    table = table / (snr_shift + (1 - snr_shift) * table)
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


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: _line(steps, start, end),
    "scaled_linear": lambda steps, start, end: _line(steps, math.sqrt(start), math.sqrt(end)) ** 2,
    "squaredcos_cap_v2": _of_alpha_bar(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2),
    "sigmoid": lambda steps, start, end: (
        torch.sigmoid(_line(steps, -6.0, 6.0)) * (end - start) + start
    ),
}
