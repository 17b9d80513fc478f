"""Arguments of ``step``: they are followed, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Without churn these do nothing in diffusers either.
OF_CHURN = ("s_tmin", "s_tmax", "s_noise")
CHURN = "give it with the solver, as solver={'name': 'heun', 's_churn': ...}"


def check_eta(eta: Any) -> float:
    """``eta`` as a number, which is the fourth argument of DDIM's step, and not that of others."""
    if isinstance(eta, Tensor) and eta.ndim == 0:
        eta = eta.item()
    if isinstance(eta, bool) or not isinstance(eta, Real):
        raise ValueError(
            f"eta={eta!r}: need a number (the fourth argument of step is that of DDIMScheduler; "
            "give generator, return_dict and others by name)"
        )
    return float(eta)


def check_others(others: Mapping[str, Any], following: float | None, order: int) -> None:
    """ValueError for a keyword of ``step`` that asks for something that is not done.

    Parameters
    ----------
    following : the next timestep of the run, None at its end.
    order : the solver's.
    """
    for name, value in others.items():
        if name in OF_CHURN or value is None:
            continue
        if name == "s_churn":
            if value != 0:
                raise ValueError(f"s_churn={value!r} of a step is not followed: {CHURN}")
        elif name == "order":
            if value != order:
                raise ValueError(f"order={value!r} of a step is not followed: set solver_order")
        elif name == "prev_timestep":
            told = float(value) if isinstance(value, Tensor) else value
            if told != following:
                there = "ends" if following is None else f"goes on to {following:g}"
                raise ValueError(
                    f"prev_timestep={told!r}: the run {there}; lay out other timesteps with "
                    "set_timesteps"
                )
        else:
            raise ValueError(f"{name}={_brief(value)} is not an argument of step that is followed")


def _brief(value: Any) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def without_variance(learned: bool, output: Tensor, sample: Tensor) -> Tensor:
    """The mean in the output of a network that has ``learned`` its variance; else ValueError."""
    if learned:
        mean = output[:, : sample.shape[1]]
        if mean.shape == sample.shape:
            return mean
    raise ValueError(
        f"model_output has shape {tuple(output.shape)}: need that of sample, {tuple(sample.shape)}"
    )
