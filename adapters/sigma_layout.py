r"""Nodes of models that a range of sigma describes; see `sigma_models` for their state.

EDM configs space sigma by ``sigma_schedule``, "karras" (with ``rho``) or "exponential". Stable
Video Diffusion has betas too, and follows the flags and rules of the models with training steps
over its own range. ``timestep_spacing`` with a name of ``SPACINGS`` overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logsnr.solvers import Node

from .noise_schedules import discrete_schedule
from .sigma_models import SigmaModel, is_edm
from .spacing import final_sigma, flagged_spacing, named_spacing, named_times, sigma_spacing
from .step_layout import at_steps, spaced_steps

EDM_SPACINGS = ("karras", "exponential")


def sigma_layout(
    config: Mapping[str, Any],
    schedule: SigmaModel,
    solver: str,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    to_zero = final_sigma(config, solver) == "zero"
    if sigmas is not None:
        levels, last = [float(s) for s in sigmas[:-1]], float(sigmas[-1])
    elif timesteps is not None:
        levels = [schedule.time_told(float(told)) * schedule.sigma_data for told in timesteps]
        last = 0.0 if to_zero else schedule.sigma_min
    else:
        assert n is not None
        levels = _spaced(config, schedule, solver, n, to_zero)
        last = 0.0 if to_zero else schedule.sigma_min
    nodes = [schedule.at(s) for s in levels]
    told = timesteps or [schedule.network_time(node.t) for node in nodes]
    return [*nodes, schedule.last(last)], list(told)


def _spaced(
    config: Mapping[str, Any], schedule: SigmaModel, solver: str, n: int, to_zero: bool
) -> list[float]:
    named, flagged = named_spacing(config), flagged_spacing(config)
    low, high = schedule.sigma_min, schedule.sigma_max
    if named is not None:
        ends = schedule.t_start, schedule.t_end
        times = named_times(named, schedule, *ends, n, to_zero=to_zero)
        return [t * schedule.sigma_data for t in times]
    if is_edm(config):
        name = flagged or config.get("sigma_schedule") or "karras"
        if flagged is None and name not in EDM_SPACINGS:
            raise ValueError(f"sigma_schedule={name!r}: choose one of {', '.join(EDM_SPACINGS)}")
        return sigma_spacing(name, low, high, n, float(config.get("rho") or 7.0)).tolist()
    if flagged is not None:
        return sigma_spacing(flagged, low, high, n).tolist()
    discrete = discrete_schedule(config)
    nodes = at_steps(discrete, spaced_steps(config, solver, discrete, n).astype(np.float64))
    return [node.sigma / node.alpha for node in nodes]
