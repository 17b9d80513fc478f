r"""Nodes of flow-matching models, which are told N t in float32.

Grids run from pure noise at t = 1 in n equal steps of t; the resolution shift moves them:

    t -> s t / (1 + (s - 1) t),    s = shift, or e^mu if the shift is dynamic

and ``shift_terminal`` stretches 1 - t so that the last evaluation is at that t. The flags for
karras, exponential and beta spacing act on t between the first and the last evaluation, as in
diffusers; ``timestep_spacing="logsnr"`` spaces them uniformly in lambda there.

``invert_sigmas`` (Mochi, LongCat audio) only renames: such a network is told N (1 - t) and returns
x0 - eps, the velocity with the sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logsnr.solvers import Node, NoiseSchedule
from logsnr.solvers.schedules import shift_time

from .spacing import final_sigma, flagged_spacing, named_spacing, sigma_spacing

FLOW_SPACINGS = ("time", "logsnr", "karras", "exponential", "beta")


def flow_layout(
    config: Mapping[str, Any],
    schedule: NoiseSchedule,
    solver: str,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    steps = int(config["num_train_timesteps"])
    inverted = bool(config.get("invert_sigmas"))
    if sigmas is None and timesteps is not None:
        t = np.asarray(timesteps, dtype=np.float64) / steps
        t = 1 - t if inverted else t
    elif sigmas is not None and config.get("exact_sigmas"):
        t = _without_end(sigmas)
    else:
        t = _unshifted(config, steps, n, mu) if sigmas is None else _without_end(sigmas)
        t = _respaced(config, shifted(config, t, mu), mu)
    if not ((t >= 0) & (t <= 1 + 1e-12)).all():
        name = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(f"{name} give t={t.tolist()}: need values in [0, 1]")
    t = t.clip(max=1.0)
    told = steps * (1 - t if inverted else t)
    if timesteps is not None:
        told = np.asarray(timesteps, dtype=np.float64)
    if len(told) != len(t):
        raise ValueError(f"timesteps has {len(told)} entries, sigmas {len(t)}: need equal lengths")
    last = 0.0 if final_sigma(config, solver) == "zero" else float(t[-1])
    return [Node(s, 1 - s, s) for s in [*t.tolist(), last]], told.tolist()


def _respaced(config: Mapping[str, Any], t: np.ndarray, mu: float | None) -> np.ndarray:
    # The rules for training steps, which multistep configs carry, do not apply to flow models.
    name = flagged_spacing(config) or named_spacing(config)
    if name is None or name == "time" or len(t) == 1:
        return t
    if name not in FLOW_SPACINGS:
        raise ValueError(
            f"timestep_spacing={name!r} is not for flow models: choose one of "
            f"{', '.join(FLOW_SPACINGS)}"
        )
    high, low = float(t[0]), float(t[-1])
    if name != "logsnr":
        return sigma_spacing(name, low, high, len(t))
    if high >= 1:  # lambda(1) = -inf: spaced from the first training step below, started at 1
        below = 1 - 1 / int(config["num_train_timesteps"])
        high = float(shifted(config, np.array([below]), mu, stretch=False)[0])
    lams = np.linspace(math.log((1 - high) / high), math.log((1 - low) / low), len(t))
    return np.array([t[0], *(1 / (1 + np.exp(lams[1:-1]))), low])


def _unshifted(
    config: Mapping[str, Any], steps: int, n: int | None, mu: float | None
) -> np.ndarray:
    assert n is not None
    if config.get("shift") is None:
        return np.linspace(1, 1 / steps, n + 1)[:-1]
    # diffusers' flow schedulers take the last t from the training grid, which is shifted already.
    low = np.array([1 / steps])
    if not config.get("use_dynamic_shifting"):
        low = shifted(config, low, mu, stretch=False)
    return np.linspace(1, low[0], n)


def _without_end(sigmas: Sequence[float]) -> np.ndarray:
    t = np.asarray(sigmas, dtype=np.float64)
    return t[:-1] if len(t) > 1 and t[-1] == 0 else t


def shifted(
    config: Mapping[str, Any], t: np.ndarray, mu: float | None, *, stretch: bool = True
) -> np.ndarray:
    """The times t in [0, 1] after the config's shift and stretch."""
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("mu is missing: use_dynamic_shifting=True needs it in set_timesteps")
        kind = config.get("time_shift_type") or "exponential"
        if kind not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type={kind!r}: choose 'exponential' or 'linear'")
        shift = math.exp(mu) if kind == "exponential" else float(mu)
    else:
        given = config.get("shift")
        shift = float(config["flow_shift"] if given is None else given)
    if not 0 < shift < math.inf:
        raise ValueError(f"shift={shift!r}: need a positive number")
    t = shift_time(t, shift)
    terminal = config.get("shift_terminal")
    if stretch and terminal and t[-1] < 1:
        t = 1 - (1 - t) * (1 - terminal) / (1 - t[-1])
    return t
