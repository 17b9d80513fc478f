r"""The objective of a fit, and its gradient through the run.

The run is differentiated with respect to its table, by reverse mode; the table with respect to the
parameters, in `family`. Every network evaluation is checkpointed: the memory is that of one
evaluation's graph and of the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..denoiser import Denoiser
from ..node import Node
from ..prediction import to_data
from ..schedules import NoiseSchedule
from .family import Family
from .problem import Part
from .tables import Table

SPREAD = 3.0
"""RMSE over median, of the errors of networks that draw pictures: about."""


def losses(name: str, squares: Tensor, scale: float) -> Tensor:
    """The objective ``name`` of every start with mean square error ``squares``.

    ``scale`` is the error of a typical start at the beginning of the fit. "log" is rounded off
    far below it, where a start is as good as exact.
    """
    if name == "log":
        return torch.log(squares + (1e-2 * scale) ** 2) / 2
    if name == "mse":
        return squares / scale**2
    if name == "balanced":  # log_mean^3/4 rmse^1/4, by its logarithm to first order
        worst = squares / (2 * (SPREAD * scale) ** 2)
        return 0.75 * losses("log", squares, scale) + 0.25 * worst
    relative = squares / (0.5 * scale) ** 2
    return 2 * (torch.sqrt(1 + relative) - 1)  # pseudo-Huber: quadratic to half the scale


def weights(name: str, squares: Tensor, scale: float) -> Tensor:
    """d losses / d squares, by which a start counts in the curvature."""
    with torch.enable_grad():
        at = squares.detach().clone().requires_grad_()
        return torch.autograd.grad(losses(name, at, scale).sum(), at)[0]


def states_of(
    part: Part,
    table: Table,
    weights: Tensor,
    times: Tensor,
    told: Tensor,
    schedule: NoiseSchedule,
    *,
    save_memory: bool = True,
) -> list[Tensor]:
    """The evaluated states and the sample, differentiable in weights, times and the times told."""
    x, n = part.starts, table.nfe
    dtype = torch.promote_types(x.dtype, torch.float32)
    here = weights.to(x.device, dtype)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    call = evaluation(part.denoise)
    basis = [x.to(dtype)]
    states = []
    for k in range(n):
        state = _combined(here[k], basis) if k else basis[0]
        states.append(state)
        asked = state.to(x.dtype), times[k], told[k]
        output = checkpoint(call, *asked, use_reentrant=False) if save_memory else call(*asked)
        linear = to_data(part.denoise.prediction, _node(times[k], alphas[k], sigmas[k]))
        of_output, of_state = (torch.as_tensor(v).to(x.device, dtype) for v in linear)
        basis.append(of_output * output + of_state * state)
    return [*states, _combined(here[n], basis)]


def evaluation(denoise: Denoiser) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How the network is called: (x, t, told), both times tensors of one entry or one a sample."""

    def call(x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        return denoise.evaluate(x.clone(), t.expand(len(x)), told.expand(len(x)))

    return call


def _node(*numbers: Any) -> Node:
    return Node(*numbers)


def _combined(row: Tensor, basis: list[Tensor]) -> Tensor:
    total = row[0] * basis[0]
    for j, entry in enumerate(basis[1:], start=1):
        total = total + row[j] * entry
    return total


class Gradient(NamedTuple):
    """Of the mean objective over the starts of a part: by theta (P,), and by the starts."""

    loss: float
    theta: Tensor
    starts: Tensor | None


def passes_gradients(part: Part) -> bool:
    """Whether what the network returns has a gradient with respect to what it is given."""
    one = part.rows(torch.arange(1))
    x = one.starts.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            output = one.denoise.evaluate(x * 1.0, one.denoise.schedule.time(0.0))
            return torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is not None
    except (RuntimeError, NotImplementedError):  # inference mode, kernels without a way back
        return False


def gradient(
    family: Family,
    theta: Tensor,
    part: Part,
    name: str,
    scale: float,
    *,
    by_starts: bool = False,
    save_memory: bool = True,
) -> Gradient:
    """The mean objective over the part's starts, and its gradient."""
    table, slope = family.table(theta), family.slope(theta)
    weights = table.weights.clone().requires_grad_()
    times, told = table.times.requires_grad_(), table.told.requires_grad_()
    leaves = [weights, times, told]
    if by_starts:
        part = replace(part, starts=part.starts.detach().clone().requires_grad_())
        leaves.append(part.starts)
    with torch.enable_grad():
        states = states_of(
            part, table, weights, times, told, family.schedule, save_memory=save_memory
        )
        loss = losses(name, part.squares(states, times), scale).mean()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    by = [torch.zeros_like(v) if g is None else g for g, v in zip(found, leaves, strict=True)]
    total = (slope.weights * by[0]).sum((1, 2)) + slope.times @ by[1] + slope.told @ by[2]
    return Gradient(float(loss.detach()), total, by[3] if by_starts else None)
