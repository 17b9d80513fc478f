r"""What is measured at one state: v, the diagonal of the Jacobian, the derivative along the ODE.

v = (alpha eps - sigma x0) / rho, rho^2 = alpha^2 + sigma^2, is the velocity of `statistics`. For a
vector w of random signs (Rademacher) E[w * (J w)] = diag J, so one product with the Jacobian
gives an unbiased estimate of

    diag(sigma d eps/dx) = (sigma^2 + alpha sigma diag(rho dv/dx)) / rho^2,

and v1 = dv/d lambda is the derivative along the ODE dx/d lambda = (d log alpha/d lambda) x -
sigma eps. Each is had in two ways: by forward-mode differentiation of the network, or by
differences of network outputs alone, which every network allows.

Differences. The product with the Jacobian is rho (v(x + d w) - v(x - d w)) / (2 d), d = tau sigma.
For v1 the state is moved along x(lambda + d) = alpha' x0 + sigma' eps with the x0 and eps of the
state itself, which has the ODE's direction and needs no derivative of the schedule: central
differences inside the grid and one-sided ones of the same order at its ends, so that the
network is never called outside the range. Truncation errors are of second order in tau and d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..batches import Batch
from ..denoiser import Denoiser
from ..methods.multistep import first_order
from ..plan import NOISE, Node
from ..prediction import Linear, to_data, to_noise
from ..schedules import NoiseSchedule


@dataclass(slots=True)
class SampleBatch(Batch):
    """A `Batch` that says which samples its B states belong to, for conditions of their own."""

    samples: range


@dataclass(slots=True)
class Probe:
    """A request to measure at states ``x`` (B, *event) of ``samples`` at ``node``.

    ``signs`` (B, *event) is w. Answered by `Measured`.
    """

    x: Tensor
    signs: Tensor
    node: Node
    samples: range


class Measured(NamedTuple):
    """v, w * (sigma d eps/dx w) and v1 at the states of a probe, each (B, *event)."""

    velocity: Tensor
    jacobian: Tensor
    derivative: Tensor


class Steps(NamedTuple):
    """Step sizes of differences: ``state`` is tau, ``lam`` is d; ``unit`` the unit roundoff."""

    state: float
    lam: float
    unit: float


@dataclass(frozen=True)
class Path:
    """The lambda range in which the network may be called, and its schedule."""

    schedule: NoiseSchedule
    first: float
    last: float

    def node(self, lam: float) -> Node:
        """The node at lambda."""
        t = self.schedule.time(lam)
        return Node(t, self.schedule.alpha(t), self.schedule.sigma(t))

    def stencil(self, node: Node, step: float) -> tuple[float, list[tuple[float, Node]]]:
        """(weight at ``node``, [(weight, other node)]) of the derivative in lambda."""
        lam = node.lam
        step = min(step, (self.last - self.first) / 4)
        slack = 1e-9 * (self.last - self.first)
        if lam - step < self.first - slack:
            offsets, weights = (step, 2 * step), (-1.5, 2.0, -0.5)
        elif lam + step > self.last + slack:
            offsets, weights = (-step, -2 * step), (1.5, -2.0, 0.5)
        else:
            offsets, weights = (-step, step), (0.0, -0.5, 0.5)
        centre, *others = (weight / step for weight in weights)
        ends = (min(max(lam + offset, self.first), self.last) for offset in offsets)
        return centre, list(zip(others, map(self.node, ends), strict=True))


def to_velocity(prediction: str, node: Node) -> Linear:
    """v as a linear function of the prediction and x at ``node``."""
    rho = math.hypot(node.alpha, node.sigma)
    eps, data = to_noise(prediction, node), to_data(prediction, node)
    out, x = ((node.alpha * e - node.sigma * d) / rho for e, d in zip(eps, data, strict=True))
    return Linear(out, x)


def velocity(output: Tensor, x: Tensor, node: Node, prediction: str) -> Tensor:
    """v from a network output at states x (B, *event), in float32 or better."""
    precise = torch.promote_types(x.dtype, torch.float32)
    out, state = to_velocity(prediction, node)
    return out * output.to(precise) + state * x.to(precise)


def noise(v: Tensor, x: Tensor, node: Node) -> Tensor:
    """eps from v and x."""
    rho = math.hypot(node.alpha, node.sigma)
    return (node.alpha / rho) * v + (node.sigma / rho**2) * x.to(v.dtype)


def diagonal(probe: Probe, product: Tensor) -> Tensor:
    """w * (sigma d eps/dx w) from the product rho dv/dx w."""
    alpha, sigma = probe.node.alpha, probe.node.sigma
    return (sigma**2 + alpha * sigma * (probe.signs * product)) / (alpha**2 + sigma**2)


def jacobian_by_difference(
    probe: Probe, prediction: str, steps: Steps
) -> Generator[Batch, Tensor, tuple[Tensor, Tensor]]:
    """(v, w * (sigma d eps/dx w)) from three evaluations a state.

    tau sigma is kept above a few units in the last place of a typical x, or it would be lost in x.
    """
    x, node = probe.x, probe.node
    rho = math.hypot(node.alpha, node.sigma)
    tau = max(steps.state, min(8 * steps.unit * rho / node.sigma, 0.5))
    shift = (tau * node.sigma) * probe.signs
    states = torch.stack([x, (x + shift).to(x.dtype), (x - shift).to(x.dtype)])
    output = yield SampleBatch(states, [node] * 3, probe.samples)
    v, up, down = velocity(output, states, node, prediction)
    return v, diagonal(probe, (up - down) * (rho / (2 * tau * node.sigma)))


def derivative_by_difference(
    probe: Probe, v: Tensor, prediction: str, path: Path, steps: Steps
) -> Generator[Batch, Tensor, Tensor]:
    """v1 from two evaluations a state, beside ``v`` at the state itself."""
    centre, others = path.stencil(probe.node, steps.lam)
    eps = noise(v, probe.x, probe.node)
    states = []
    for _, node in others:
        # The first-order step in noise space: alpha' x0 + sigma' eps.
        a, b = first_order(NOISE, probe.node, node)
        states.append((a * probe.x.to(eps.dtype) + b * eps).to(probe.x.dtype))
    nodes = [node for _, node in others]
    output = yield SampleBatch(torch.stack(states), nodes, probe.samples)
    total = centre * v
    for (weight, node), state, out in zip(others, states, output, strict=True):
        total = total + weight * velocity(out, state, node, prediction)
    return total


def jacobian_by_jvp(denoise: Denoiser, probe: Probe) -> tuple[Tensor, Tensor]:
    """(v, w * (sigma d eps/dx w)) by one forward-mode product."""
    x, node, prediction = probe.x, probe.node, denoise.prediction
    direction = (math.hypot(node.alpha, node.sigma) * probe.signs).to(x.dtype)
    output, tangent = _jvp(
        lambda state: denoise.evaluate(state, node.t), (x.clone(),), (direction,)
    )
    product = velocity(tangent, direction, node, prediction)
    return velocity(output, x, node, prediction), diagonal(probe, product)


def derivative_by_jvp(denoise: Denoiser, probe: Probe, v: Tensor) -> Tensor:
    """v1 by one forward-mode product in the direction (dx/dlambda, dt/dlambda)."""
    x, node, schedule = probe.x, probe.node, denoise.schedule
    dt = 1 / schedule.dlam(node.t)
    drift = schedule.dlog_alpha(node.t) * dt
    direction = drift * x.to(v.dtype) - node.sigma * noise(v, x, node)
    t = torch.full((len(x),), node.t, dtype=torch.float64)
    tangents = (direction.to(x.dtype), torch.full_like(t, dt))
    output, tangent = _jvp(denoise.evaluate, (x.clone(), t), tangents)
    # v = P out + Q x, and P and Q depend on lambda too: their differences are exact to 1e-10.
    d, prediction = 1e-5, denoise.prediction
    ahead, behind = (
        to_velocity(
            prediction,
            Node(node.t, node.alpha * (1 + e * drift), node.sigma * (1 + e * (drift - 1))),
        )
        for e in (d, -d)
    )
    dp, dq = ((p - q) / (2 * d) for p, q in zip(ahead, behind, strict=True))
    moved = dp * output.to(v.dtype) + dq * x.to(v.dtype)
    return velocity(tangent, direction, node, prediction) + moved


def _jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    tangents = tuple(v.clone() for v in tangents)  # a network that writes to its input writes here
    # Of the attention kernels only the plain one knows forward mode.
    with sdpa_kernel(SDPBackend.MATH), _ContiguousNorms():
        output, tangent = torch.func.jvp(function, primals, tangents)[:2]
        return output, tangent


class _ContiguousNorms(TorchFunctionMode):
    """Give group_norm contiguous inputs: its forward-mode rule fails on channels-last ones.

    The attention blocks of diffusers' UNets return those.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in (torch.group_norm, torch.nn.functional.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))
