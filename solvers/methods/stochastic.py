r"""The frame of stochastic steps: a deterministic step to less noise, and noise to make up for it.

Between the probability-flow ODE (tau = 0) and the reverse SDE (tau = 1) lies, in lambda,

    d(x / sigma) = ((1 + tau^2) e^lambda D - tau^2 x / sigma) dlambda + sqrt(2) tau dW,

with D the data prediction. Whatever tau(lambda) is, its marginals are those of the forward process.
Over a step, with E = int tau^2 dlambda, the *decay* of the noise that there was,

    x_t = (sigma_t / sigma_s) e^(-E) x_s + int (weights) D + sigma_t sqrt(1 - e^(-2E)) z,

which is a step to the lower level sigma_down = sigma_t e^(-E) at alpha_t, and noise that brings it
back up to sigma_t (`split`). Ancestral sampling and DDIM give the noise as a share eta of that of
tau = 1, n = eta sigma_t sqrt(1 - e^(-2h)), and sigma_down^2 = sigma_t^2 - n^2 (`posterior_split`).
A step to sigma = 0 adds none; one from pure noise, alpha = 0, keeps none where tau > 0.

The noise is a Brownian motion in the clock e^(2 int tau^2), for tau = 1 the clock "snr", which is 0
at pure noise. Steps of any strength use "snr": where an inner node's noise is part of that of its
step, the step's reading is shared out at the pace of its own clock (`nested_noise`), so that
covariances are those of the SDE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import scalar
from ..noise_terms import reading
from ..plan import Node, Noise
from ..scalar import Number, plain
from ..schedules import NoiseSchedule
from .pure_noise import Frame

Strength = float | Sequence[float] | np.ndarray | Tensor | Callable[[float], float] | None
"""How much noise a run takes: a number, a list (or array) of one a step, a function of the time t,
or None, which is 0. The numbers may be 0-d tensors that carry a gradient."""
_FINITE = sys.float_info.max
_SHARES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def strengths(
    name: str,
    value: Strength,
    nodes: Sequence[Node],
    schedule: NoiseSchedule,
    *,
    most: float = math.inf,
    power: int = 1,
) -> list[Number]:
    """The strength of every step between ``nodes``, from the option ``name``.

    A function of t counts with its mean over the step in lambda: of its values where the decay is
    strength h (``power`` 1), their root mean square where it is strength^2 h (2). A step with an
    infinite end has no such mean, and takes the value at its start.

    Raises ValueError that names the option: for another kind or length, for an entry outside
    [0, ``most``], and for noise in an inversion.
    """
    steps = list(pairwise(nodes))
    values: list[Any]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None:
        values = [0.0] * len(steps)
    elif isinstance(value, Tensor) and value.ndim == 1:
        values = list(value.unbind())
    elif isinstance(value, list | tuple):
        values = list(value)
    elif callable(value):
        given = _checked(name, value, most)
        values = [_mean(given, step, schedule, power) for step in steps]
    else:
        values = [value] * len(steps)
    if len(values) != len(steps):
        raise ValueError(f"{name} has {len(values)} entries: need {len(steps)}, one a step")
    found = [_number(name, entry, most) for entry in values]
    noisy = next((entry for entry in found if plain(entry) > 0), None)
    if noisy is not None and Frame.of("data", nodes).inverted:
        raise ValueError(
            f"{name}={plain(noisy)!r}: an inversion is deterministic, and needs {name}=0"
        )
    return found


def recorded(name: str, value: Strength, found: Sequence[Number]) -> dict[str, Any]:
    """For `Plan.options`: what the option was where it is no JSON value, as one number a step."""
    if value is None or isinstance(value, int | float):
        return {}
    return {name: [plain(entry) for entry in found]}


def keeps_marginals(s_noise: float | None, amounts: Sequence[Number]) -> bool:
    """Whether noise of amplitude ``s_noise`` leaves the marginals right, None if none does.

    What counts is the noise that the steps make room for, not what is drawn: where they do, an
    amplitude of 0 is wrong too.
    """
    return s_noise == 1 or not any(plain(amount) > 0 for amount in amounts)


def _number(name: str, value: Any, most: float) -> Number:
    number = isinstance(value, Real) or (
        isinstance(value, Tensor)
        and value.ndim == 0
        and torch.can_cast(value.dtype, torch.float64)
        and value.dtype != torch.bool
    )
    if number and not isinstance(value, bool) and 0 <= plain(value) <= min(most, _FINITE):
        return scalar.numbers(torch.as_tensor(value, dtype=torch.float64)[None])[0]
    allowed = "a number of at least 0" if math.isinf(most) else f"a number in [0, {most:g}]"
    raise ValueError(
        f"{name}={value!r}: need {allowed}, a list of one a step, or a function of the time"
    )


def _checked(name: str, function: Callable[[float], float], most: float) -> Callable:
    return lambda t: _number(name, function(t), most)


def _mean(
    function: Callable[[float], Number],
    step: tuple[Node, Node],
    schedule: NoiseSchedule,
    power: int,
) -> Number:
    start, end = step
    low, high = plain(start.lam), plain(end.lam)
    if math.isinf(low) or math.isinf(high) or low == high:
        return function(plain(start.t))
    lams = low + (high - low) * (1 + _SHARES) / 2
    times = schedule.time(torch.from_numpy(lams)).tolist()
    mean = sum(w / 2 * function(t) ** power for w, t in zip(_WEIGHTS.tolist(), times, strict=True))
    return mean ** (1 / power)


class Split(NamedTuple):
    """A step from ``start`` to ``end`` by way of a lower level of noise.

    ``down`` is the node that its deterministic part leads to: t and alpha of the end, and sigma_t
    e^-``decay``. ``scale`` is the deviation of the noise that is then added.
    """

    start: Node
    end: Node
    down: Node
    decay: Number
    scale: Number

    @property
    def noise(self) -> tuple[Noise, ...]:
        """The noise over the step; nothing where it has none."""
        low, high = reading("snr", self.start), reading("snr", self.end)
        if plain(self.scale) == 0 or plain(low) == plain(high):
            return ()
        return (Noise(self.scale, low, high, "snr"),)

    def scaled(self, amplitude: Number) -> Split:
        """The step with its noise times ``amplitude``."""
        return self._replace(scale=amplitude * self.scale)


def nested_noise(parts: Sequence[Split]) -> list[tuple[Noise, ...]]:
    """The noise at the inner nodes of a step, rising, and at its end, the last of ``parts``.

    All are splits from one start. The step is cut at its inner nodes, and the noise at a node is
    the sum over the pieces up to it, each with the share of the variance that it has in the clock
    of the step's own strength.
    """
    whole = parts[-1]
    if not whole.noise:
        return [()] * len(parts)
    (term,) = whole.noise
    seen = [0.0, *(_share(part.decay, whole.decay) for part in parts[:-1]), 1.0]
    at = [term.start + share * (term.end - term.start) for share in seen[:-1]] + [term.end]
    pieces = [k for k in range(len(parts)) if plain(seen[k]) < plain(seen[k + 1])]
    return [
        tuple(
            Noise(
                part.scale * scalar.sqrt((seen[k + 1] - seen[k]) / seen[i + 1]),
                at[k],
                at[k + 1],
                term.clock,
            )
            for k in pieces
            if k <= i
        )
        for i, part in enumerate(parts)
    ]


def _share(decay: Number, whole: Number) -> Number:
    """The share of the noise of a step that a node in it has seen."""
    if plain(decay) == plain(whole):
        return 1.0
    return scalar.exp(2 * (decay - whole)) * (scalar.expm1(-2 * decay) / scalar.expm1(-2 * whole))


def split(start: Node, end: Node, rate: Number) -> Split:
    """The exact step with E = ``rate`` h: the rate is tau^2, and the eta of SDE-DPM-Solver++."""
    h = end.lam - start.lam
    if plain(rate) > 0 and plain(h) == math.inf and end.sigma > 0:
        return _split(start, end, 0.0, math.inf, end.sigma)  # however small the rate
    decay = rate * h if plain(rate) > 0 and end.sigma > 0 else 0.0
    scale = end.sigma * scalar.sqrt(-scalar.expm1(-2 * decay)) if plain(decay) > 0 else 0.0
    return _split(start, end, end.sigma * scalar.exp(-decay), decay, scale)


def posterior_split(start: Node, end: Node, eta: Number) -> Split:
    """The step of DDIM and of ancestral sampling, for ``eta`` in [0, 1]."""
    h = end.lam - start.lam
    if plain(eta) == 0 or end.sigma == 0 or plain(h) == 0:
        return _split(start, end, end.sigma, 0.0, 0.0)
    left = (1 - eta**2) + eta**2 * scalar.exp(-2 * h)  # e^(-2 E)
    scale = eta * end.sigma * scalar.sqrt(-scalar.expm1(-2 * h))
    decay = -scalar.log(left) / 2 if plain(left) > 0 else math.inf
    down = end.sigma * scalar.sqrt(left) if plain(left) > 0 else 0.0
    return _split(start, end, down, decay, scale)


def _split(start: Node, end: Node, down: Number, decay: Number, scale: Number) -> Split:
    return Split(start, end, Node(end.t, end.alpha, down), decay, scale)
