r"""What is measured at a state: v, the diagonal of the Jacobian, the derivative along the ODE.

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

A probe holds the states of the same samples at K nodes, so that a network that is small is called
with many rows. Whatever depends on the node is a column (K, 1, ...) beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..denoiser import Denoiser
from ..methods.multistep import first_order
from ..plan import NOISE, Node
from ..prediction import Linear, to_data, to_noise
from ..requests import Batch
from ..schedules import NoiseSchedule


@dataclass(slots=True)
class SampleBatch(Batch):
    """A `Batch` that says which samples its B states belong to, for conditions of their own."""

    samples: range


@dataclass(slots=True)
class Probe:
    """A request to measure at states ``x`` (K, B, *event) of ``samples``, x[k] at ``nodes[k]``.

    ``signs`` (B, *event) is w. Answered by `Measured`.
    """

    x: Tensor
    signs: Tensor
    nodes: Sequence[Node]
    samples: range


class Measured(NamedTuple):
    """v, w * (sigma d eps/dx w) and v1 at the states of a probe, each (K, B, *event)."""

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
    _stencils: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def node(self, lam: float) -> Node:
        """The node at lambda."""
        t = self.schedule.time(lam)
        return Node(t, self.schedule.alpha(t), self.schedule.sigma(t))

    def stencil(self, node: Node, step: float) -> tuple[float, list[tuple[float, Node]]]:
        """(weight at ``node``, [(weight, other node)]) of the derivative in lambda."""
        if (node, step) not in self._stencils:  # every batch of samples asks for the same
            self._stencils[node, step] = self._stencil(node.lam, step)
        return self._stencils[node, step]

    def _stencil(self, lam: float, step: float) -> tuple[float, list[tuple[float, Node]]]:
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


@lru_cache(maxsize=4096)  # every batch of samples asks for the same nodes
def to_velocity(prediction: str, node: Node) -> Linear:
    """v as a linear function of the prediction and x at ``node``."""
    rho = math.hypot(node.alpha, node.sigma)
    eps, data = to_noise(prediction, node), to_data(prediction, node)
    out, x = ((node.alpha * e - node.sigma * d) / rho for e, d in zip(eps, data, strict=True))
    return Linear(out, x)


def columns(rows: Sequence[Sequence[Any]], like: Tensor) -> tuple[Tensor, ...]:
    """Numbers of each node, as columns that multiply ``like`` (K, ...) in float32 or better."""
    precise = torch.promote_types(like.dtype, torch.float32)
    table = torch.tensor(rows, dtype=torch.float64).to(like.device, precise)
    return table.reshape(len(rows), -1, *[1] * (like.ndim - 1)).unbind(1)


def velocity(output: Tensor, x: Tensor, nodes: Sequence[Node], prediction: str) -> Tensor:
    """v from network outputs at states x (K, B, *event), in float32 or better."""
    return Linear(*columns([to_velocity(prediction, node) for node in nodes], x))(output, x)


def noise(v: Tensor, x: Tensor, nodes: Sequence[Node]) -> Tensor:
    """eps from v and x."""
    rho = [math.hypot(node.alpha, node.sigma) for node in nodes]
    pairs = [(n.alpha / r, n.sigma / r**2) for n, r in zip(nodes, rho, strict=True)]
    of_v, of_x = columns(pairs, v)
    return of_v * v + of_x * x.to(v.dtype)


def diagonal(probe: Probe, product: Tensor) -> Tensor:
    """w * (sigma d eps/dx w) from the product rho dv/dx w."""
    levels = [(n.alpha * n.sigma, n.sigma**2, n.alpha**2 + n.sigma**2) for n in probe.nodes]
    mixed, squared, total = columns(levels, product)
    return (squared + mixed * (probe.signs * product)) / total


def jacobian_by_difference(
    probe: Probe, prediction: str, steps: Steps
) -> Generator[Batch, Tensor, tuple[Tensor, Tensor]]:
    """(v, w * (sigma d eps/dx w)) from three evaluations a state.

    tau sigma is kept above a few units in the last place of a typical x, or it would be lost in x.
    """
    x, nodes = probe.x, [*probe.nodes] * 3
    reach = []
    for node in probe.nodes:
        rho = math.hypot(node.alpha, node.sigma)
        tau = max(steps.state, min(8 * steps.unit * rho / node.sigma, 0.5))
        reach.append((tau * node.sigma, rho / (2 * tau * node.sigma)))
    step, scale = columns(reach, x)
    shift = step * probe.signs
    states = torch.cat([x, (x + shift).to(x.dtype), (x - shift).to(x.dtype)])
    output = yield SampleBatch(states, nodes, probe.samples)
    v, up, down = velocity(output, states, nodes, prediction).chunk(3)
    return v, diagonal(probe, (up - down) * scale)


def derivative_by_difference(
    probe: Probe, v: Tensor, prediction: str, path: Path, steps: Steps
) -> Generator[Batch, Tensor, Tensor]:
    """v1 from two evaluations a state, beside ``v`` at the state itself."""
    centres, arms = zip(*(path.stencil(node, steps.lam) for node in probe.nodes), strict=True)
    eps = noise(v, probe.x, probe.nodes)
    states: list[Tensor] = []
    nodes: list[Node] = []
    for side in zip(*arms, strict=True):
        there = [node for _, node in side]
        # The first-order step in noise space: alpha' x0 + sigma' eps.
        pairs = [first_order(NOISE, *ends) for ends in zip(probe.nodes, there, strict=True)]
        a, b = columns(pairs, eps)
        states.append((a * probe.x.to(eps.dtype) + b * eps).to(probe.x.dtype))
        nodes += there
    joined = torch.cat(states)
    output = yield SampleBatch(joined, nodes, probe.samples)
    weights = [(weight,) for side in zip(*arms, strict=True) for weight, _ in side]
    moved = columns(weights, v)[0] * velocity(output, joined, nodes, prediction)
    total = columns([(centre,) for centre in centres], v)[0] * v
    for part in moved.chunk(len(states)):
        total = total + part
    return total


def jacobian_by_jvp(denoise: Denoiser, probe: Probe) -> tuple[Tensor, Tensor]:
    """(v, w * (sigma d eps/dx w)) by one forward-mode product."""
    x, nodes, prediction = probe.x, probe.nodes, denoise.prediction
    times = [node.t for node in nodes]
    (rho,) = columns([(math.hypot(node.alpha, node.sigma),) for node in nodes], x)
    direction = (rho * probe.signs).to(x.dtype)
    output, tangent = _jvp(
        lambda state: denoise.evaluate_groups(state, times), (x.clone(),), (direction,)
    )
    product = velocity(tangent, direction, nodes, prediction)
    return velocity(output, x, nodes, prediction), diagonal(probe, product)


def derivative_by_jvp(denoise: Denoiser, probe: Probe, v: Tensor) -> Tensor:
    """v1 by one forward-mode product in the direction (dx/dlambda, dt/dlambda)."""
    x, nodes, schedule, prediction = probe.x, probe.nodes, denoise.schedule, denoise.prediction
    t = torch.tensor([node.t for node in nodes], dtype=torch.float64)
    dt = 1 / schedule.dlam(t)
    drifts = (schedule.dlog_alpha(t) * dt).tolist()
    drift, sigma = columns([(d, n.sigma) for d, n in zip(drifts, nodes, strict=True)], v)
    direction = (drift * x.to(v.dtype) - sigma * noise(v, x, nodes)).to(x.dtype)
    output, tangent = _jvp(denoise.evaluate_groups, (x.clone(), t), (direction, dt))
    # v = P out + Q x, and P and Q depend on lambda too: their differences are exact to 1e-10.
    h = 1e-5
    slopes = []
    for d, n in zip(drifts, nodes, strict=True):
        ahead, behind = (
            to_velocity(prediction, Node(n.t, n.alpha * (1 + e * d), n.sigma * (1 + e * (d - 1))))
            for e in (h, -h)
        )
        slopes.append([(p - q) / (2 * h) for p, q in zip(ahead, behind, strict=True)])
    dp, dq = columns(slopes, v)
    moved = dp * output.to(v.dtype) + dq * x.to(v.dtype)
    return velocity(tangent, direction, nodes, prediction) + moved


def _jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    tangents = tuple(v.clone() for v in tangents)  # a network that writes to its input writes here
    # Of the attention kernels only the plain one knows forward mode.
    with sdpa_kernel(SDPBackend.MATH), _ForwardRules():
        output, tangent = torch.func.jvp(function, primals, tangents)[:2]
        return output, tangent


class _ForwardRules(TorchFunctionMode):
    """Rules of forward mode where torch's are slow or fail.

    Of layers that are linear in their input it multiplies the input by a weight tangent of zeros,
    too, which made a product of forward mode cost up to fifteen evaluations: here the tangent goes
    through the layer without its bias. group_norm gets contiguous inputs: its rule fails on the
    channels-last ones that the attention blocks of diffusers' UNets return.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LINEAR:
            return _linear(func, args, kwargs)
        if func in (torch.group_norm, functional.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **kwargs)


_LINEAR = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)


def _linear(layer: Callable[..., Tensor], args: tuple, kwargs: dict) -> Tensor:
    """``layer(input, weight, bias, ...)``, whose weight has no tangent, or else as torch does."""
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    rest = args[3:]
    x, weight, bias = (named.pop(name, None) for name in ("input", "weight", "bias"))
    primal, tangent = forward_ad.unpack_dual(x)
    others = [part for part in (weight, bias) if part is not None]
    if tangent is None or any(forward_ad.unpack_dual(o).tangent is not None for o in others):
        return layer(x, weight, bias, *rest, **named)
    output = layer(primal, weight, bias, *rest, **named)
    return forward_ad.make_dual(output, layer(tangent, weight, None, *rest, **named))
