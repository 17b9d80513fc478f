r"""The five things a network may predict, and the linear maps between them.

With x = alpha x0 + sigma eps at a node (alpha, sigma), every prediction is a linear function of
(x0, eps), so x0 and eps are linear in (prediction, x):

    epsilon          eps
    sample           x0
    v_prediction     v = (alpha eps - sigma x0) / r,   r = sqrt(alpha^2 + sigma^2)
                     (r = 1 for variance-preserving schedules: Salimans and Ho 2022)
    flow_prediction  u = eps - x0                      (velocity of the straight path)
    score            -eps / sigma

No derivative of the schedule is needed, and no map goes by way of another prediction: near
sigma = 0 a detour (x - alpha x0) / sigma would cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import scalar
from .node import DATA, NOISE, VELOCITY, Coefficient, Node, Target

if TYPE_CHECKING:
    from .plan import Plan

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction", "score")


class Linear(NamedTuple):
    """out * (network output) + x * (state)."""

    out: Coefficient
    x: Coefficient

    def __call__(self, output: Tensor, state: Tensor) -> Tensor:
        """The combination, in the finer precision of the two."""
        dtype = torch.promote_types(output.dtype, state.dtype)
        return self.out * output.to(dtype) + self.x * state.to(dtype)

    def beside(self, like: Tensor) -> Linear:
        """The same map with its coefficients where, and as precise as, ``like`` is."""
        return Linear(at_home(self.out, like), at_home(self.x, like))


def at_home(value: Coefficient, like: Tensor) -> Coefficient:
    """A coefficient where, and as precise as, ``like`` is."""
    return value.to(like.device, like.dtype) if isinstance(value, Tensor) else value


def check_prediction(prediction: str) -> str:
    """The argument, or ValueError naming the choices."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    return prediction


def to_data(prediction: str, node: Node) -> Linear:
    """x0 as a linear function of the prediction and x at ``node``.

    Raises ValueError where it does not exist: from epsilon or the score at alpha = 0.
    """
    alpha, sigma = node.alpha, node.sigma
    if prediction == "sample":
        return Linear(1.0, 0.0)
    if prediction == "v_prediction":
        r = scalar.hypot(alpha, sigma)
        return Linear(-sigma / r, alpha / r**2)
    if prediction == "flow_prediction":
        return Linear(-sigma / (alpha + sigma), 1 / (alpha + sigma))
    if alpha == 0:
        raise no_signal(prediction, node, "alpha = 0")
    if prediction == "epsilon":
        return Linear(-sigma / alpha, 1 / alpha)
    check_prediction(prediction)
    return Linear(sigma**2 / alpha, 1 / alpha)


def check_signal(prediction: str, node: Node, dtype: torch.dtype) -> None:
    """ValueError where x0 is asked for and states of ``dtype`` hold not one digit of it.

    From epsilon or the score x0 is a difference divided by alpha / sigma, which may be no smaller
    than the rounding of what is subtracted (float32 for half precision).
    """
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    if prediction in ("epsilon", "score") and node.alpha < rounding * node.sigma:
        raise no_signal(prediction, node, f"alpha / sigma = {node.alpha / node.sigma:.1g}")


def check_signals(plan: Plan, prediction: str, dtype: torch.dtype) -> None:
    """`check_signal` at every row of ``plan`` that asks for x0."""
    for k in plan.evaluated:
        target = plan.rows[k].target
        if target is not None and (isinstance(target.data, Tensor) or target.data != 0):
            check_signal(prediction, plan.rows[k].node, dtype)


def no_signal(prediction: str, node: Node, where: str) -> ValueError:
    """The error for a network that cannot be used so near to pure noise."""
    return ValueError(
        f"prediction={prediction!r} cannot be used at t={node.t:g}, where {where} (zero terminal "
        "SNR): x holds no signal there. Use a network with 'v_prediction', 'flow_prediction' or "
        "'sample', or start at a smaller t_start"
    )


def to_noise(prediction: str, node: Node) -> Linear:
    """eps as a linear function of the prediction and x at ``node``.

    Raises ValueError where it does not exist: from the data prediction at sigma = 0.
    """
    alpha, sigma = node.alpha, node.sigma
    if prediction == "epsilon":
        return Linear(1.0, 0.0)
    if prediction == "score":
        return Linear(-sigma, 0.0)
    if prediction == "v_prediction":
        r = scalar.hypot(alpha, sigma)
        return Linear(alpha / r, sigma / r**2)
    if prediction == "flow_prediction":
        return Linear(alpha / (alpha + sigma), 1 / (alpha + sigma))
    check_prediction(prediction)
    if sigma == 0:
        raise ValueError(
            f"prediction='sample' gives no noise prediction at t={node.t:g} (sigma = 0)"
        )
    return Linear(-alpha / sigma, 1 / sigma)


def to_target(prediction: str, node: Node, target: Target) -> Linear:
    """The target's combination g = u eps + w x0 + q x as a linear function of (output, x)."""
    out: Coefficient = 0.0
    state: Coefficient = target.x
    for weight, convert in ((target.eps, to_noise), (target.data, to_data)):
        if isinstance(weight, Tensor) or weight != 0:
            part = convert(prediction, node)
            out, state = out + weight * part.out, state + weight * part.x
    return Linear(out, state)


def as_target(prediction: str, node: Node) -> Target:
    """The prediction itself as a combination of eps and x0 at ``node``."""
    if prediction == "v_prediction":
        r = scalar.hypot(node.alpha, node.sigma)
        return Target(node.alpha / r, -node.sigma / r, 0.0)
    if prediction == "score":
        return Target(-1 / node.sigma, 0.0, 0.0)
    return {"sample": DATA, "epsilon": NOISE, "flow_prediction": VELOCITY}[prediction]
