r"""Integrals of Lagrange polynomials: where the weights of exact Adams methods come from.

A step from s to t in data or noise space is a weighted mean of the prediction g over the step,

    x_t = a x_s + b <g>,     <g> = int g(lambda) w(lambda) d lambda,     int w d lambda = 1,

with w proportional to e^lambda (data) or e^-lambda (noise) and a, b those of the first-order
step. Replacing g by the polynomial through its values at earlier nodes, in a variable u(lambda)
of one's choice, gives the weights b_j = b int L_j(u(lambda)) w d lambda. They sum to b whatever
the quadrature does, so the identities of a plan hold to rounding.

Quadrature is Gauss-Legendre on panels, exact to rounding for what is smooth inside a panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .. import scalar
from ..plan import Node
from ..scalar import Number, plain
from .multistep import SPACES, Weights, first_order

Array = NDArray[np.float64]
"""Or a float64 tensor, where the nodes carry gradients: see `scalar`."""

_POINTS = 12
# The functions lambda -> t of the schedules are analytic at least pi / 2 around the real axis, so
# that 12 points on a panel of width 1 leave an error below 1e-16.
_PANEL = 1.0


@lru_cache
def _gauss(points: int) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


def panels(start: Number, end: Number, breaks: Array | None = None) -> tuple[Array, Array]:
    """Points and weights of a quadrature from start to end.

    ``breaks`` are points at which the integrand has a kink, in any order.
    """
    low, high = plain(start), plain(end)
    if high < low:
        points, weights = panels(end, start, breaks)
        return points, -weights
    count = math.ceil((high - low) / _PANEL)
    edges = start + (end - start) / count * scalar.alike(np.arange(count + 1), end - start)
    if breaks is not None:
        inside = breaks[(breaks > low) & (breaks < high)]
        edges = scalar.merged(edges, inside)
    nodes, weights = (scalar.alike(values, edges) for values in _gauss(_POINTS))
    widths = (edges[1:] - edges[:-1])[:, None]
    return (edges[:-1, None] + widths * nodes).ravel(), (widths * weights).ravel()


def lambda_measure(
    space: str, start: Node, end: Node, breaks: Array | None = None
) -> tuple[Array, Array]:
    """Points lambda of the step and weights that integrate w over it; ``space`` as above."""
    lams, weights = panels(start.lam, end.lam, breaks)
    return lams, weights * scalar.exps(lams - end.lam if space == "data" else start.lam - lams)


def means(at: Sequence[Number] | Array, points: Array, weights: Array) -> Array:
    """The mean of every Lagrange polynomial of the distinct nodes ``at`` under the quadrature."""
    points, weights = (scalar.alike(values, at[0]) for values in (points, weights))
    far = [points - u for u in at]
    shares = []
    for j, node in enumerate(at):
        product = weights
        for k, other in enumerate(at):
            if k != j:
                product = product * (far[k] / (node - other))
        shares.append(product.sum())
    return scalar.array(shares) / weights.sum()


def step_weights(space: str, start: Node, end: Node, shares: Array) -> Weights:
    """a and b_j = b shares_j of the step from ``start`` to ``end``, where the shares sum to 1."""
    a, b = first_order(SPACES[space], start, end)
    return a, scalar.entries(b * scalar.alike(shares, b))


def polynomial_weights(
    space: str, u: Callable[[Node], Number], past: Sequence[Node], end: Node, at: Sequence[Node]
) -> Weights:
    """a, and one b for each of ``at``: u is the variable of the polynomial and of the mean."""
    values = scalar.array([u(node) for node in [*at, past[0], end]])
    # In units of the step, so that it is [0, 1] and no power overflows.
    scaled = (values - values[-2]) / (values[-1] - values[-2])
    return step_weights(space, past[0], end, means(scaled[:-2], *panels(0.0, 1.0)))


def noise_ratio(node: Node) -> Number:
    """rho = sigma / alpha."""
    return node.sigma / node.alpha
