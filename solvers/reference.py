r"""Converged solutions of the probability-flow ODE, with an error bar.

The ODE is integrated in lambda with torchdiffeq. In the rotated state u = x / r, with
r = sqrt(alpha^2 + sigma^2) and a = alpha / r, it needs the data prediction alone, no derivative
of the schedule, and it stays bounded at both ends:

    du / d lambda = a (x0 - a u)

With a Brownian path, `reference_solution` solves the reverse SDE instead (`sde_reference`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .brownian import BrownianPath
from .denoiser import Denoiser, check_start
from .grids import check_range, node_at
from .methods.multistep import first_order
from .plan import DATA, Node
from .schedules import NoiseSchedule
from .sde_reference import sde_solution

LAM_LIMIT = 12.0
"""Where lambda is infinite, integration stops here: sigma/alpha = 6e-6."""


@torch.no_grad()
def reference_solution(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rtol: float | None = None,
    method: str | None = None,
    noise: BrownianPath | None = None,
    eta: float | None = None,
    steps: int | None = None,
) -> tuple[Tensor, float]:
    """Endpoint of the probability-flow ODE from x_T (B, *event) at t_start, and its error bar.

    With ``noise``, that of the reverse SDE on this Brownian path (see `sde_reference`), which a
    plan with ``noise=path`` converges to if its noise is of the same clock and strength.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0.
    t_start, t_end : of ``schedule``; default its own ends. Where lambda is infinite (alpha = 0
        or sigma = 0) the integration stops at abs(lambda) = 12 and a first-order step, which is
        exact in that limit, covers the rest.
    rtol : relative and absolute tolerance of the solution that is returned; default 1e-9 for
        float64 and 1e-5 for other states. A second run at 10 rtol gives the error bar.
    method : an adaptive method of torchdiffeq; default "dopri5". Like rtol, of the ODE alone.
    noise : a path; its clock, one of `noise_terms`, should be that of the plans to compare with.
        Where sigma = 0 at the end, the integration stops at lambda = 12 or where the path does.
        Only eta = 1 on a path of clock "snr" from 0 can start at alpha = 0.
    eta : strength of the noise, > 0: its variance over d lambda is 2 eta^2 sigma^2; default 1, the
        reversed forward process. Like steps, of the SDE alone.
    steps : about how many steps to take, by a method of strong order 1.5 with two evaluations a
        step; default 32 a unit of lambda. A second run with half as many gives the error bar.

    Returns (solution like x_T, error bar): the bar is the root mean square, over all entries, of
    the difference between the two runs: the error of the looser run, and so amply that of the
    solution. Look at the bar before trusting the solution: networks that embed the time by sines
    make a right-hand side that ripples at the 1e-3 level, which long adaptive steps do not see;
    such a network wants rtol=1e-6 or less, or a multistep plan with hundreds of steps.

    Raises ValueError for bad input before the network is called.
    """
    check_start(x_T, denoise)
    x_T = x_T.clone()  # two runs start from it, and it is the caller's
    from torchdiffeq import odeint

    start = schedule.t_start if t_start is None else float(t_start)
    end = schedule.t_end if t_end is None else float(t_end)
    check_range(schedule, start, end)
    if noise is not None:
        if not isinstance(noise, BrownianPath):
            raise ValueError(f"noise={noise!r}: need a BrownianPath, which any step can ask")
        _refuse("noise: its SDE is solved in fixed steps", {"rtol": rtol, "method": method})
        nodes = node_at(schedule, start), node_at(schedule, end)
        strength = 1.0 if eta is None else eta
        return sde_solution(denoise, x_T, schedule, *nodes, noise, eta=strength, steps=steps)
    _refuse("no noise: that is for an SDE", {"eta": eta, "steps": steps})
    method = "dopri5" if method is None else method
    if rtol is None:
        rtol = 1e-9 if x_T.dtype == torch.float64 else 1e-5
    if not 0 < rtol < 0.1:
        raise ValueError(f"rtol={rtol!r}: need a tolerance in (0, 0.1)")

    def solve(tolerance: float) -> Tensor:
        x, (first, last) = x_T, (node_at(schedule, start), node_at(schedule, end))
        if first.lam < -LAM_LIMIT:
            inner = node_at(schedule, schedule.time(-LAM_LIMIT))
            x, first = _first_order(denoise, x, first, inner), inner
        goal = last if last.lam < LAM_LIMIT else node_at(schedule, schedule.time(LAM_LIMIT))

        def velocity(lam: Tensor, u: Tensor) -> Tensor:
            t = schedule.time(float(lam))
            r = math.hypot(schedule.alpha(t), schedule.sigma(t))
            a = schedule.alpha(t) / r
            return a * (denoise(u * r, t) - a * u)

        u = x / math.hypot(first.alpha, first.sigma)
        lams = torch.tensor([first.lam, goal.lam], dtype=torch.float64, device=x.device)
        u = odeint(velocity, u, lams, rtol=tolerance, atol=tolerance, method=method)[-1]
        x = u * math.hypot(goal.alpha, goal.sigma)
        return x if goal is last else _first_order(denoise, x, goal, last)

    fine, coarse = solve(rtol), solve(10 * rtol)
    return fine, float((fine - coarse).double().square().mean().sqrt())


def _refuse(reason: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} was given with {reason}")


def _first_order(denoise: Callable, x: Tensor, start: Node, end: Node) -> Tensor:
    a, b = first_order(DATA, start, end)
    return a * x + b * denoise(x.clone(), start.t)
