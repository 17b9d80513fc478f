r"""Converged solutions of the reverse SDE on a given Brownian path, with an error bar.

In y = x / alpha and lambda, with noise of strength eta beside the probability-flow ODE (eta = 0),

    dy = -(1 + eta^2) (y - x0) d lambda + eta sqrt(2) e^(-lambda) dW(lambda),

whose solutions have the same distribution at every lambda, whatever eta; eta = 1 is the reversed
forward process. An integrating factor takes the linear part away: z = y e^((1 + eta^2) lambda) has

    dz = (1 + eta^2) e^((1 + eta^2) lambda) x0 d lambda + eta sqrt(2) e^(eta^2 lambda) dW(lambda),

noise that does not depend on the state. A path may run in another clock u (`noise_terms`):
dW(lambda) is then sqrt(d lambda / du) dW(u). For eta = 1 and u = (alpha / sigma)^2 that is

    dz = x0 du + dW(u).

torchsde integrates it in the clock of the path by a Runge-Kutta method of strong order 1.5 for
additive noise, which takes the increments and the space-time Levy areas of the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .brownian import BrownianPath
from .checks import check_whole
from .grids import node_at
from .methods.multistep import first_order
from .noise_terms import Noise, reading
from .plan import DATA, Node
from .schedules import NoiseSchedule

LAM_LIMIT = 12.0
"""Where lambda is infinite, integration stops here at the latest."""
PIECE = 0.25
"""Steps are equal in the clock over pieces of so much lambda."""
DENSITY = 32
"""Steps a unit of lambda, if no number is given."""
FALLING = ("sigma", "sigma2")
"""The clocks that run backwards while sampling."""


@torch.no_grad()
def sde_solution(
    denoise: Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    start: Node,
    end: Node,
    path: BrownianPath,
    *,
    eta: float = 1.0,
    steps: int | None = None,
) -> tuple[Tensor, float]:
    """Endpoint of the reverse SDE on ``path`` from x_T (B, *event) at ``start``, and its error bar.

    ``steps`` is about how many steps are taken; half as many give the bar, the root mean square of
    the difference. What the noise beyond the last step to sigma = 0 does is added to it.

    Raises ValueError for eta and steps out of range, and for a path that does not cover the range.
    """
    if not 0 < eta < math.inf:
        raise ValueError(f"eta={eta!r}: need a positive number; without noise it is an ODE")
    if steps is not None:
        check_whole("steps", steps, 2)
    inner, stop = _inside(schedule, start, end, path, eta)
    pieces = max(1, math.ceil((stop.lam - inner.lam) / PIECE))
    each = math.ceil((steps or DENSITY * PIECE * pieces) / (2 * pieces))
    lams = [inner.lam + (stop.lam - inner.lam) * k / pieces for k in range(pieces + 1)]
    lams[-1] = stop.lam
    nodes = [inner, *(node_at(schedule, schedule.time(lam)) for lam in lams[1:-1]), stop]

    def network(x: Tensor, t: float) -> Tensor:
        return denoise(x.to(x_T), t).double()

    def solve(each: int) -> Tensor:
        x = x_T.double()
        if start.alpha == 0:
            x = _from_pure_noise(network(x, start.t), inner, path)
        for first, last in pairwise(nodes):
            x = _piece(network, x, schedule, first, last, path, eta, each)
        if stop is not end:
            a, b = first_order(DATA, stop, end)
            x = a * x + b * network(x, stop.t)
        return x

    fine, coarse = solve(2 * each), solve(each)
    bar = float((fine - coarse).square().mean().sqrt())
    if stop is not end:
        bar += eta * end.alpha * math.exp(-stop.lam)
    return fine.to(x_T), bar


def _inside(
    schedule: NoiseSchedule, start: Node, end: Node, path: BrownianPath, eta: float
) -> tuple[Node, Node]:
    """Where integration begins and stops: at the ends, or near those where lambda is infinite."""
    covered = Noise(1.0, path.start, path.end, path.clock)
    low, high = sorted((covered.lam_from, covered.lam_to))
    inner, stop = start, end
    if start.alpha == 0:
        if eta != 1 or path.clock != "snr" or path.start > 0:
            raise ValueError(
                "t_start: alpha is 0 there, from where the SDE is that of eta=1 on a path of clock "
                "'snr' that starts at 0; start later for others"
            )
        inner = _node(schedule, -LAM_LIMIT)
    if end.sigma == 0:
        stop = _node(schedule, min(LAM_LIMIT, high))
    if not (low <= inner.lam < stop.lam <= high):
        raise ValueError(
            f"noise covers lambda = {low:g} .. {high:g}: the solution needs a path over "
            f"{inner.lam:g} .. {stop.lam:g}, readings {reading(path.clock, inner):g} and "
            f"{reading(path.clock, stop):g} of its clock {path.clock!r}"
        )
    return inner, stop


def _node(schedule: NoiseSchedule, lam: float) -> Node:
    return node_at(schedule, schedule.time(lam))


def _from_pure_noise(x0: Tensor, inner: Node, path: BrownianPath) -> Tensor:
    """The first step from alpha = 0, where z = x alpha / sigma^2 is 0 and x0 a constant."""
    u = reading("snr", inner)
    increment = path(Noise(1.0, 0.0, u, "snr"), x0) * math.sqrt(u)
    return (x0 * u + increment) * inner.sigma**2 / inner.alpha


def _piece(
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    schedule: NoiseSchedule,
    first: Node,
    last: Node,
    path: BrownianPath,
    eta: float,
    steps: int,
) -> Tensor:
    from torchsde import sdeint

    system = _Reverse(denoise, x, schedule, first, path.clock, eta)
    ends = [system.sign * reading(path.clock, node) for node in (first, last)]
    times = torch.tensor(ends, dtype=torch.float64, device=x.device)
    # A little more, or rounding would leave a sliver for one more step.
    dt = (ends[1] - ends[0]) / steps * (1 + 1e-9)
    q = (x / first.sigma).flatten(1)
    driver = _Driver(path, x, system.sign)
    with torch.random.fork_rng(devices=[]):  # it draws numbers to look at shapes
        q = sdeint(system, q, times, bm=driver, dt=dt, method="srk")[-1]
    return (q * last.sigma * math.exp(-(eta**2) * (last.lam - first.lam))).reshape(x.shape)


class _Reverse:
    """The SDE of q = x / sigma e^(eta^2 (lambda - lambda_first)), as torchsde asks for it.

    Its time is the clock of the path, or the negative of one that falls while sampling.
    """

    noise_type, sde_type = "additive", "ito"

    def __init__(
        self,
        denoise: Callable[[Tensor, float], Tensor],
        like: Tensor,
        schedule: NoiseSchedule,
        first: Node,
        clock: str,
        eta: float,
    ):
        self.denoise, self.like, self.schedule = denoise, like, schedule
        self.first, self.clock, self.eta = first, clock, eta
        self.sign = -1.0 if clock in FALLING else 1.0

    def f(self, time: Tensor, q: Tensor) -> Tensor:
        lam, rate, growth = self._at(time)
        t = self.schedule.time(lam)
        x = (q * (self.schedule.sigma(t) / growth)).reshape(self.like.shape)
        return (1 + self.eta**2) * math.exp(lam) * growth * rate * self.denoise(x, t).flatten(1)

    def g_prod(self, time: Tensor, q: Tensor, v: Tensor) -> Tensor:
        _, rate, growth = self._at(time)
        return self.eta * math.sqrt(2 * rate) * growth * v

    def _at(self, time: Tensor) -> tuple[float, float, float]:
        """lambda, how fast it rises in the time, and the integrating factor."""
        u = self.sign * float(time)
        lam = Noise(1.0, u, u, self.clock).lam_from
        rate = {"lambda": 1.0, "sigma": 1 / u, "sigma2": 0.5 / u, "snr": 0.5 / u}[self.clock]
        return lam, rate, math.exp(self.eta**2 * (lam - self.first.lam))


class _Driver:
    """The path as torchsde asks for it: increments, and integrals above their start."""

    levy_area_approximation = "space-time"

    def __init__(self, path: BrownianPath, like: Tensor, sign: float):
        self.path, self.like, self.sign = path, like, sign
        self.shape = like.flatten(1).shape

    def __call__(self, t0: Tensor, t1: Tensor, return_U: bool = False) -> Any:
        # Readings at the path's own ends are off by rounding.
        start, end = (
            min(max(self.sign * float(t), self.path.start), self.path.end) for t in (t0, t1)
        )
        h = abs(end - start)
        term = Noise(1.0, start, end, self.path.clock)
        w = self.path(term, self.like).flatten(1) * math.sqrt(h)
        if not return_U:
            return w
        area = self.path(term._replace(moment=1), self.like).flatten(1) * math.sqrt(h / 12)
        return w, h * (area + w / 2)
