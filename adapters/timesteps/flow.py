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

from collections.abc import Sequence

import numpy as np

from logsnr.solvers import SPACINGS, Node
from logsnr.solvers.spacings import LOGISTIC, WHOLE_STEPS, training_steps

from ..config.description import Description
from ..config.location import location_of
from ..config.resolution_shift import ResolutionShift
from .pipeline_sigmas import sent_unasked
from .spacing import evaluation_times, sigma_spacing

# Spacings of t between its ends, in diffusers' sense of sigma.
IN_T = ("karras", "exponential", "beta", "kl_optimal")
# Rules for t itself, which the shift moves afterwards.
BEFORE_SHIFT = ("time", "quadratic", "linear_quadratic")
# Rules that stand instead of what pipelines hand over unasked; "linspace" is diffusers' own, which
# takes it.
INSTEAD = (*LOGISTIC, *BEFORE_SHIFT, "leading", "trailing")


def flow_layout(
    description: Description,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> tuple[Sequence[Node], Sequence[float]]:
    """n + 1 nodes, and what the network is told at the first n; see `layout`."""
    grid, shift = description.grid, shift_of(description)
    steps, inverted = description.model.training_steps, description.model.inverted
    if sigmas is not None and not grid.exact_sigmas and grid.spacing in INSTEAD:
        if sent_unasked(_without_end(sigmas).tolist()):
            n, sigmas = len(_without_end(sigmas)), None
    if sigmas is None and timesteps is not None:
        t = np.asarray(timesteps, dtype=np.float64) / steps
        t = 1 - t if inverted else t
    elif sigmas is not None and grid.exact_sigmas:
        t = _without_end(sigmas)
    elif sigmas is not None:
        t = _between(description, shift.shifted(_without_end(sigmas), mu), mu)
    else:
        assert n is not None
        t = _spaced(description, n, mu)
    if not ((t >= 0) & (t <= 1 + 1e-12)).all():
        name = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(f"{name} give t={t.tolist()}: need values in [0, 1]")
    t = t.clip(max=1.0)
    told = steps * (1 - t if inverted else t)
    if timesteps is not None:
        told = np.asarray(timesteps, dtype=np.float64)
    if len(told) != len(t):
        raise ValueError(f"timesteps has {len(told)} entries, sigmas {len(t)}: need equal lengths")
    last = 0.0 if grid.to_zero else float(t[-1])
    return [Node(s, 1 - s, s) for s in [*t.tolist(), last]], told.tolist()


def shift_of(description: Description) -> ResolutionShift:
    """The resolution shift, which the config of a flow model has."""
    shift = description.grid.shift
    assert shift is not None
    return shift


def _spaced(description: Description, n: int, mu: float | None) -> np.ndarray:
    """t of n evaluations by the config's rule, shifted."""
    model, grid, shift = description.model, description.grid, shift_of(description)
    steps = model.training_steps
    if grid.spacing in LOGISTIC:
        return evaluation_times(
            grid.spacing,
            model.schedule,
            1.0,
            max(1 / steps, shift.smallest_time()),
            n,
            to_zero=grid.to_zero,
            parameters=grid.placed(location_of(model, shift.factor(mu))),
        )
    if grid.spacing == "linspace":
        return shift.shifted(_to_last_step(shift, steps, n, mu), mu)
    if grid.spacing in WHOLE_STEPS:
        indices = training_steps(grid.spacing, steps, n, offset=grid.offset)
        return shift.shifted((indices + 1.0).clip(max=steps) / steps, mu)
    if grid.spacing in BEFORE_SHIFT:
        end = 0.0 if grid.to_zero else 1 / steps
        times = SPACINGS[grid.spacing](model.schedule, 1.0, end, n, grid.parameters)
        return shift.shifted(times[:n].numpy(), mu)
    ends = shift.shifted(_to_last_step(shift, steps, n, mu), mu)
    return _between(description, ends, mu)


def _between(description: Description, t: np.ndarray, mu: float | None) -> np.ndarray:
    """As many times as ``t`` has between its ends, if the spacing has the ends for input."""
    model, grid = description.model, description.grid
    if grid.spacing in (*LOGISTIC, *WHOLE_STEPS, *BEFORE_SHIFT) or len(t) == 1:
        return t
    high, low = float(t[0]), float(t[-1])
    if grid.spacing in IN_T:
        return sigma_spacing(grid.spacing, low, high, len(t), grid.parameters.rho)
    if high >= 1:  # lambda(1) = -inf: spaced from the first training step below, started at 1
        below = np.array([1 - 1 / model.training_steps])
        high = float(shift_of(description).shifted(below, mu, stretch=False)[0])
    inner = evaluation_times(
        grid.spacing,
        model.schedule,
        high,
        low,
        len(t),
        to_zero=True,
        parameters=grid.placed(0.0),
    )
    return np.array([t[0], *inner[1:]])


def _to_last_step(shift: ResolutionShift, steps: int, n: int, mu: float | None) -> np.ndarray:
    """diffusers' own: equal steps of t from 1 to, or towards, the last training step."""
    if not shift.of_flow_classes:
        return np.linspace(1, 1 / steps, n + 1)[:-1]
    # Its flow schedulers take the last t from the training grid, which is shifted already.
    low = np.array([1 / steps])
    if not shift.dynamic:
        low = shift.shifted(low, mu, stretch=False)
    return np.linspace(1, low[0], n)


def _without_end(sigmas: Sequence[float]) -> np.ndarray:
    t = np.asarray(sigmas, dtype=np.float64)
    return t[:-1] if len(t) > 1 and t[-1] == 0 else t
