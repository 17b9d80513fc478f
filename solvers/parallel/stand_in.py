r"""A stand-in for the network, to count what a parallel run takes before running it.

How many sweeps a plan takes depends on the plan, the window and the tolerance, and only weakly on
the network, as long as its data prediction turns as sharply as that of a trained one. The stand-in
is the exact data prediction of a mixture of M narrow Gaussians N(mu_k, s^2) in D dimensions,

    x0(x) = sum_k r_k (mu_k + alpha s^2 / v (x - alpha mu_k)),      v = alpha^2 s^2 + sigma^2,
    r = softmax_k(-|x - alpha mu_k|^2 / (2 v)),

with means drawn once from N(0, 1). M = 16, D = 128, s = 0.1 were chosen among eight such mixtures
because they take as many sweeps as the trained UNet in benchmarks/embedded; the numbers are in
docs/parallel-devices.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..plan import Coefficient, Plan
from ..requests import Evaluate

MODES, DIMENSION, SCALE = 16, 128, 0.1


def stand_in(plan: Plan, batch: int = 4) -> tuple[Tensor, Evaluate]:
    """Start states (batch, D) of ``plan`` and the stand-in's data predictions at its nodes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = normal(MODES, DIMENSION)
    start, *_ = nodes = [row.node for row in plan.rows]
    data = means[torch.arange(batch) % MODES] + SCALE * normal(batch, DIMENSION)
    x_T = start.alpha * data + start.sigma * normal(batch, DIMENSION)
    scales = {node.t: (node.alpha, node.sigma) for node in nodes}

    def evaluate(x: Tensor, times: Sequence[float]) -> Tensor:
        pairs = torch.tensor([scales[t] for t in times], dtype=torch.float64)
        alpha, sigma = pairs.view(-1, 2, 1, 1).unbind(1)
        variance = (alpha * SCALE) ** 2 + sigma**2
        # |x - alpha mu_k|^2 without the term that all k share.
        square = alpha**2 * means.square().sum(1) - 2 * alpha * (x @ means.T)
        share = torch.softmax(-square / (2 * variance), dim=-1)
        shrink = alpha * SCALE**2 / variance
        return (1 - alpha * shrink) * (share @ means) + shrink * x

    return x_T, evaluate


def without_tensors(plan: Plan) -> Plan:
    """The plan with every tensor coefficient replaced by its mean, for states of any shape."""
    if plan.numeric:
        return plan

    def mean(value: Coefficient) -> float:
        return float(value.detach().mean()) if isinstance(value, Tensor) else value

    rows = [
        replace(
            row,
            states=tuple((j, mean(a)) for j, a in row.states),
            outputs=tuple((j, mean(b)) for j, b in row.outputs),
            target=None if row.target is None else type(row.target)(*map(mean, row.target)),
            offset=mean(row.offset),
        )
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows), consistent=False)
