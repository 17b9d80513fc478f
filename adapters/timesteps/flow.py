r"""Nodes of flow-matching models, which are told N t in float32.

Grids run from pure noise at t = 1. The resolution shift

    t -> s t / (1 + (s - 1) t),    s = shift, or e^mu if the shift is dynamic

moves lambda by -log(s). The default grid takes it for its location (`location`). The others apply
it: those that are uniform in t or in training steps afterwards, those by sigma or lambda to their
ends. "karras", "exponential" and "beta" act on t, as in diffusers. ``shift_terminal`` is the
smallest t that is evaluated: the default grid keeps to it, the others are stretched to it.

``invert_sigmas`` (Mochi, LongCat audio) only renames: such a network is told N (1 - t) and returns
x0 - eps, the velocity with the sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logsnr.solvers import SPACINGS, Node, NoiseSchedule
from logsnr.solvers.schedules import shift_time
from logsnr.solvers.spacings import WHOLE_STEPS, training_steps

from ..config.location import location_of
from .pipeline_sigmas import sent_unasked
from .spacing import (
    LOGISTIC,
    evaluation_times,
    final_sigma,
    offset_of,
    parameters_of,
    sigma_spacing,
    spacing_of,
)

# Spacings of t between its ends, in diffusers' sense of sigma.
IN_T = ("karras", "exponential", "beta", "kl_optimal")
# Rules for t itself, which the shift moves afterwards.
BEFORE_SHIFT = ("time", "quadratic", "linear_quadratic")
# Rules that stand instead of what pipelines hand over unasked; "linspace" is diffusers' own, which
# takes it.
INSTEAD = (*LOGISTIC, *BEFORE_SHIFT, "leading", "trailing")


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
    spacing, to_zero = spacing_of(config), final_sigma(config, solver) == "zero"
    if sigmas is not None and not config.get("exact_sigmas") and spacing in INSTEAD:
        if sent_unasked(_without_end(sigmas).tolist()):
            n, sigmas = len(_without_end(sigmas)), None
    if sigmas is None and timesteps is not None:
        t = np.asarray(timesteps, dtype=np.float64) / steps
        t = 1 - t if inverted else t
    elif sigmas is not None and config.get("exact_sigmas"):
        t = _without_end(sigmas)
    elif sigmas is not None:
        t = _between(config, spacing, schedule, shifted(config, _without_end(sigmas), mu), mu)
    else:
        assert n is not None
        t = _spaced(config, spacing, schedule, n, mu, to_zero)
    if not ((t >= 0) & (t <= 1 + 1e-12)).all():
        name = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(f"{name} give t={t.tolist()}: need values in [0, 1]")
    t = t.clip(max=1.0)
    told = steps * (1 - t if inverted else t)
    if timesteps is not None:
        told = np.asarray(timesteps, dtype=np.float64)
    if len(told) != len(t):
        raise ValueError(f"timesteps has {len(told)} entries, sigmas {len(t)}: need equal lengths")
    last = 0.0 if to_zero else float(t[-1])
    return [Node(s, 1 - s, s) for s in [*t.tolist(), last]], told.tolist()


def _spaced(
    config: Mapping[str, Any],
    spacing: str,
    schedule: NoiseSchedule,
    n: int,
    mu: float | None,
    to_zero: bool,
) -> np.ndarray:
    """t of n evaluations by the config's rule, shifted."""
    steps = int(config["num_train_timesteps"])
    if spacing in LOGISTIC:
        location = location_of(config, schedule, resolution_shift(config, mu))
        parameters = parameters_of(config, spacing, location)
        last = max(1 / steps, smallest_time(config))
        return evaluation_times(
            spacing, schedule, 1.0, last, n, to_zero=to_zero, parameters=parameters
        )
    if spacing == "linspace":
        return shifted(config, _to_last_step(config, steps, n, mu), mu)
    if spacing in WHOLE_STEPS:
        indices = training_steps(spacing, steps, n, offset=offset_of(config, spacing))
        return shifted(config, (indices + 1.0).clip(max=steps) / steps, mu)
    if spacing in BEFORE_SHIFT:
        parameters = parameters_of(config, spacing)
        end = 0.0 if to_zero else 1 / steps
        t = SPACINGS[spacing](schedule, 1.0, end, n, parameters)[:n].numpy()
        return shifted(config, t, mu)
    ends = shifted(config, _to_last_step(config, steps, n, mu), mu)
    return _between(config, spacing, schedule, ends, mu)


def _between(
    config: Mapping[str, Any],
    spacing: str,
    schedule: NoiseSchedule,
    t: np.ndarray,
    mu: float | None,
) -> np.ndarray:
    """As many times as ``t`` has between its ends, if the spacing has the ends for input."""
    if spacing in (*LOGISTIC, *WHOLE_STEPS, *BEFORE_SHIFT) or len(t) == 1:
        return t
    parameters = parameters_of(config, spacing)
    high, low = float(t[0]), float(t[-1])
    if spacing in IN_T:
        return sigma_spacing(spacing, low, high, len(t), parameters.rho)
    if high >= 1:  # lambda(1) = -inf: spaced from the first training step below, started at 1
        below = 1 - 1 / int(config["num_train_timesteps"])
        high = float(shifted(config, np.array([below]), mu, stretch=False)[0])
    inner = evaluation_times(
        spacing, schedule, high, low, len(t), to_zero=True, parameters=parameters
    )
    return np.array([t[0], *inner[1:]])


def _to_last_step(config: Mapping[str, Any], steps: int, n: int, mu: float | None) -> np.ndarray:
    """diffusers' own: equal steps of t from 1 to, or towards, the last training step."""
    if config.get("shift") is None:
        return np.linspace(1, 1 / steps, n + 1)[:-1]
    # Its flow schedulers take the last t from the training grid, which is shifted already.
    low = np.array([1 / steps])
    if not config.get("use_dynamic_shifting"):
        low = shifted(config, low, mu, stretch=False)
    return np.linspace(1, low[0], n)


def _without_end(sigmas: Sequence[float]) -> np.ndarray:
    t = np.asarray(sigmas, dtype=np.float64)
    return t[:-1] if len(t) > 1 and t[-1] == 0 else t


def resolution_shift(config: Mapping[str, Any], mu: float | None) -> float:
    """The config's shift, e^mu where it is dynamic; ValueError where it is missing or no shift."""
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("mu is missing: use_dynamic_shifting=True needs it in set_timesteps")
        kind = config.get("time_shift_type") or "exponential"
        if kind not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type={kind!r}: choose 'exponential' or 'linear'")
        with np.errstate(over="ignore"):  # named below
            shift = float(np.exp(mu)) if kind == "exponential" else mu
        typed = f"mu={mu!r}"
    else:
        key = "flow_shift" if config.get("shift") is None else "shift"
        shift, typed = float(config[key]), f"{key}={config[key]!r}"
    if not 0 < shift < math.inf:
        raise ValueError(f"{typed} means a shift of {shift!r}: need a positive number")
    return shift


def smallest_time(config: Mapping[str, Any]) -> float:
    """``shift_terminal``, 0 for none; ValueError unless in [0, 1)."""
    terminal = float(config.get("shift_terminal") or 0)
    if not 0 <= terminal < 1:
        raise ValueError(f"shift_terminal={terminal!r}: need a time in [0, 1), or None")
    return terminal


def shifted(
    config: Mapping[str, Any], t: np.ndarray, mu: float | None, *, stretch: bool = True
) -> np.ndarray:
    """The times t in [0, 1] after the config's shift and stretch."""
    shift = resolution_shift(config, mu)
    t = shift_time(t, shift)
    terminal = smallest_time(config)
    if stretch and terminal and t[-1] < 1:
        t = 1 - (1 - t) * (1 - terminal) / (1 - t[-1])
    return t
