r"""The frame of exponential Runge-Kutta methods for the reverse SDE, in data space.

A step from s to t has inner nodes at lambda_s + c h. With E the decay of the old noise up to a node
i (see `stochastic`) and z_i = -(lambda_i - lambda_s + E_i), the state there is

    x_i = (sigma_i / sigma_s) e^(-E_i) x_s + alpha_i sum_j w_ij(z_i) D_j + n_i z'_i,
    n_i = sigma_i sqrt(1 - e^(-2 E_i)),

where the weights of a row add up to 1 - e^(z_i), and the noise of an inner node is part of that of
the whole step. Steps from pure noise and to sigma = 0 have one evaluation, those between equal
nodes leave the state alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from .. import scalar
from ..grids import Grid
from ..plan import DATA, Node, Plan, Row, Target
from ..scalar import Number
from .multistep import first_order
from .pure_noise import Frame
from .runge_kutta import at_lams, layout
from .stochastic import Split, Strength, keeps_marginals, nested_noise, recorded, strengths


class Stages(NamedTuple):
    """What a step is made of.

    ``inner`` are the c's of its inner nodes, rising, in (0, 1]; ``weights`` map z to the weights of
    the outputs so far, for each inner node and for the end.
    """

    inner: tuple[float, ...]
    weights: tuple[Callable[[Number], Sequence[Number]], ...]


SINGLE = Stages((), (lambda z: [-scalar.expm1(z)],))
"""The first-order step."""


def stages(
    grid: Grid,
    nfe: int | None,
    methods: Mapping[int, Stages],
    rule: Callable[[Node, Node, Number], Split],
    eta: Strength,
    s_noise: float = 1.0,
    *,
    most: float = math.inf,
    power: int = 1,
) -> Plan:
    """The plan of a method whose full steps have as many evaluations as the largest key has.

    ``methods`` has a step of every smaller number too, for the last ones of a budget that full
    steps do not fill. ``rule`` makes a `Split` of the ends of a step and its strength; ``most`` and
    ``power`` are those of `strengths`. The nodes of the grid are the ends of the steps.
    """
    if nfe is not None and nfe < max(methods):
        raise ValueError(f"nfe={nfe!r}: the solver needs at least {max(methods)} at this order")
    nodes, counts = layout(grid, nfe, max(methods), space="data")
    found = strengths("eta", eta, nodes, grid.schedule, most=most, power=power)
    steps = list(pairwise(nodes))
    used = [methods[count] for count in counts]
    inner = _inner_nodes(steps, used, grid)
    frame = Frame.of("data", nodes)
    rows = [Row(nodes[0])]
    for (start, end), method, between, strength in zip(steps, used, inner, found, strict=True):
        whole = rule(start, end, strength).scaled(s_noise)
        parts = [rule(start, node, strength).scaled(s_noise) for node in between]
        target = frame.first_target if frame.starts(start) else DATA
        _step(rows, whole, parts, method, target)
    consistent = keeps_marginals(s_noise, found)
    return Plan(tuple(rows), options=recorded("eta", eta, found), consistent=consistent)


def _step(
    rows: list[Row], whole: Split, parts: Sequence[Split], method: Stages, target: Target
) -> None:
    base = len(rows) - 1
    start, places = whole.start, [*parts, whole]
    for part, weights, noise in zip(places, method.weights, nested_noise(places), strict=True):
        rows[-1] = replace(rows[-1], target=target)
        a, b = first_order(target, start, part.down)
        if len(parts) > 0:
            listed = list(enumerate(weights(-(part.end.lam - start.lam + part.decay)), base))
            outputs = tuple((j, part.end.alpha * w) for j, w in listed if _occurs(w))
        else:  # exact at both singular ends
            outputs = ((base, b),) if _occurs(b) else ()
        rows.append(
            Row(
                part.end,
                ((base, a),) if _occurs(a) else (),
                outputs,
                noise=noise,
            )
        )


def _occurs(coefficient: Number) -> bool:
    return scalar.is_tensor(coefficient) or coefficient != 0


def _inner_nodes(
    steps: Sequence[tuple[Node, Node]], methods: Sequence[Stages], grid: Grid
) -> list[list[Node]]:
    """The inner nodes of every step; all at once, since each call costs tensor work."""
    places = [
        (i, start.lam + c * (end.lam - start.lam))
        for i, ((start, end), method) in enumerate(zip(steps, methods, strict=True))
        for c in method.inner
        if c < 1 and start.lam != end.lam
    ]
    between: list[list[Node]] = [[] for _ in steps]
    if places:
        nodes = at_lams(grid.schedule, [lam for _, lam in places])
        for (i, _), node in zip(places, nodes, strict=True):
            between[i].append(node)
    for (_, end), method, found in zip(steps, methods, between, strict=True):
        found += [end] * (len(method.inner) - len(found))
    return between
