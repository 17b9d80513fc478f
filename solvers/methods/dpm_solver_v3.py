r"""DPM-Solver-v3 (Zheng et al. 2023): an exponential integrator fitted to one model.

With y = x / alpha the probability-flow ODE is dy/d lambda = x0 - y. For any l(lambda)

    y' = -l y + g,      g = x0 - (1 - l) y,

and with l from the model's statistics (see `ems`), g depends as little as possible on y. Along
a trajectory g' is about s g - b, so that, with integrals from the start of the step, of

    G = e^-S g + beta,      beta = int e^-S b,      L = int l,      S = int s

even the derivative nearly vanishes, and G is what the solver takes for a polynomial. Exactly,

    y_t = e^-L(h) y_s + int_0^h e^(L - L(h) + S) (G - beta) du,

so with the derivatives of G at s as combinations sum_j D_ij G_j of its values at nodes j,

    x_t = alpha_t e^-L(h) / alpha_s x_s + alpha_t (sum_j W_j (e^-S_j g_j + beta_j) - response),
    W_j = moments_0 [j is s] + sum_i D_ij moments_i,

a `Plan` whose coefficients have the shape of the statistics. (The paper writes f = -g.) With
l = 1, s = b = 0 this is DPM-Solver++, with l = 0, s = -1, b = 0 DPM-Solver, both with the
third-order weights that attain order 3.

Order. The D_ij of p nodes are those of the interpolating polynomial: the predictor has order p and
the corrector, on as many nodes with the new one among them, too. *Pseudo-order* takes i! times the
divided differences instead, leaving out their corrections to the lower derivatives: from 3 nodes on
the order is 2, with smaller weights. The corrector costs no evaluation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import scalar
from ..checks import check_choice, check_order
from ..grids import Grid, node_at
from ..model_statistics.ems import EMS
from ..model_statistics.integrals import Integrals, closed, quadratures, trapezoids
from ..plan import DATA, Coefficient, Node, Plan, Target
from ..registry import count_steps, solver
from ..scalar import Number
from .multistep import Corrector, Predictor, Step, multistep
from .pure_noise import Frame

TREATMENTS = ("published", "spline")


def _order(options: Mapping[str, Any]) -> int:
    order = options["order"]
    predicted = min(order, 2) if options["p_pseudo"] else order
    nodes = order + bool(options["c_pseudo"])
    if not options["corrector"] or nodes == 1:
        return predicted
    corrected = 2 if options["c_pseudo"] else nodes
    return min(corrected, predicted + 1)


@solver(
    "dpm-solver-v3",
    order=_order,
    nfe_per_step=1,
    title="DPM-Solver-v3: exponential integrator fitted to statistics of the model",
    when="a model whose statistics you have (logsnr ems)",
    paper="zheng2023dpmv3",
    spaces=("data",),
)
def dpm_solver_v3(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 3,
    ems: EMS | str | Path | None = None,
    p_pseudo: bool = False,
    corrector: bool = True,
    c_pseudo: bool = True,
    corrector_above: float = 0.0,
    treatment: str = "published",
    lower_order_final: bool = True,
    fallback: bool = True,
) -> Plan:
    """DPM-Solver-v3 of order 1, 2 or 3; see the module's text for the update rule.

    Parameters
    ----------
    ems : the statistics, or the file that holds them. None takes l = 1, s = b = 0, for which
        plain numbers suffice: DPM-Solver++ with this corrector.
    p_pseudo, c_pseudo : pseudo-order of the predictor and the corrector. With ``c_pseudo`` the
        corrector takes one node more than the predictor, otherwise as many.
    corrector : correct every step but the last, where that takes two nodes or more.
    corrector_above : correct only states at times t above this. The official ``half=True`` is
        0.5 (its text says t <= 0.5, its code t > 0.5).
    treatment : "published" moves the nodes to the statistics' own grid and integrates by
        trapezoids on it, an error that more steps do not remove; "spline" leaves the nodes where
        they are and integrates splines through the statistics to rounding.
    lower_order_final : lower the order towards the last steps.
    fallback : take l = 1, s = b = 0, with a warning, where the verdict of the statistics is that
        they have the larger error at this order and number of evaluations. False insists on them.

    lambda may be infinite at the ends only: the step from pure noise is of first order in the data
    prediction, and the one to sigma = 0 returns it; neither needs the statistics. All other nodes
    must lie within the range of the statistics.

    Raises ValueError for a value that is not listed here, nfe < order, statistics of another
    schedule or range, and with "published" if two nodes fall on one node of the statistics.
    """
    check_order(order, (1, 2, 3))
    check_choice("treatment", treatment, TREATMENTS)
    if not corrector_above >= 0:
        raise ValueError(f"corrector_above={corrector_above!r}: need a time, at least 0")
    statistics = _statistics(ems)
    nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
    frame = Frame.of("data", nodes)
    finite = [k for k, n in enumerate(nodes) if not (frame.starts(n) or frame.ends(n))]
    lams = [nodes[k].lam for k in finite]
    count = order + 1  # moments: the corrector may take one node more than the predictor
    if statistics is not None:
        if frame.inverted:
            raise ValueError(
                f"ems={ems!r}: statistics are of runs to the data; an inversion takes None"
            )
        if any(map(scalar.is_tensor, lams)):
            raise ValueError(
                "ems: no gradient with respect to the nodes passes through statistics; give the "
                "grid without gradients, or ems=None"
            )
        statistics.fits(grid.schedule, lams)
        if fallback and loses(statistics, order, len(nodes) - 1):
            statistics = None
    if statistics is None:
        integrals = closed(lams, count)
    else:
        if treatment == "published":
            indices = nearest(statistics, lams)
            for k, i in zip(finite, indices, strict=True):
                nodes[k] = _moved(grid, nodes[k], statistics.lam[i].item())
            integrals = trapezoids(statistics, indices, count)
        else:
            integrals = quadratures(statistics, lams, count)
    steps = _Steps([nodes[k] for k in finite], integrals)

    def correct(past: Sequence[Node], end: Node) -> Step | None:
        used = past if c_pseudo else past[:-1]
        if not used or end.t <= corrector_above:
            return None
        at = [used[0], end, *used[1:]]
        step = steps.step(at, end, pseudo=c_pseudo)
        newest, last, *older = step.b
        return step._replace(b=[newest, *older, last])

    predict: Predictor = lambda past, end: steps.step(past, end, pseudo=p_pseudo)  # noqa: E731
    maybe: Corrector | None = correct if corrector else None
    rows = multistep(
        nodes,
        predict,
        order=order,
        space=steps.target,
        lower_order_final=lower_order_final,
        corrector=maybe,
        through_zero=True,
    )
    if statistics is None:
        return Plan(tuple(rows), options={} if ems is None else {"ems": None})
    return Plan(tuple(rows), options={"ems": statistics.describe()}, consistent=False)


def _statistics(ems: Any) -> EMS | None:
    if ems is None or isinstance(ems, EMS):
        return ems
    if isinstance(ems, str | Path):
        return EMS.load(ems)
    raise ValueError(f"ems={ems!r}: need an EMS, the path of its file, or None")


def loses(ems: EMS, order: int, nfe: int) -> bool:
    """Whether the verdict is against the statistics; it is said aloud."""
    if ems.verdict is None or not ems.verdict.loses(order, nfe):
        return False
    warnings.warn(
        f"dpm-solver-v3 of order {order} at {nfe} NFE: in their check these statistics had "
        f"{ems.verdict.ratio(order, nfe):.3g} times the error of l = 1, s = b = 0, which are taken "
        "instead. fallback=False, an option of the solver, insists on the statistics",
        stacklevel=5,  # who called make_plan
    )
    return True


def nearest(ems: EMS, lams: Sequence[float]) -> list[int]:
    """Indices of the statistics' nodes next to ``lams``; ValueError if two share one."""
    first, last = ems.lam[0].item(), ems.lam[-1].item()
    indices = [round(ems.intervals * (lam - first) / (last - first)) for lam in lams]
    for i, j in pairwise(indices):
        if i == j:
            raise ValueError(
                f"treatment='published': two nodes of the grid fall on node {i} of the statistics, "
                f"whose spacing in lambda is {(last - first) / ems.intervals:.3g}. Use "
                "treatment='spline', which leaves the nodes where they are, or fewer steps"
            )
    return indices


def _moved(grid: Grid, node: Node, lam: float) -> Node:
    # A node that is there already keeps its time, which a round trip through lambda might not.
    if abs(node.lam - lam) < 1e-9:
        return node
    return node_at(grid.schedule, grid.schedule.time(lam))


class _Steps:
    """The weights of any step between nodes of finite lambda, from the integrals over them."""

    def __init__(self, nodes: Sequence[Node], integrals: Integrals):
        self.integrals = integrals
        self.index = {node: k for k, node in enumerate(nodes)}

    def target(self, node: Node) -> Target:
        """g = x0 - (1 - l) x / alpha at ``node``."""
        l = self.integrals.l[self.index[node]] if node in self.index else 1.0
        if not isinstance(l, Tensor) and l == 1:
            return DATA
        return Target(0.0, 1.0, (l - 1) / node.alpha)

    def step(self, at: Sequence[Node], end: Node, *, pseudo: bool) -> Step:
        """The step from at[0] to ``end`` with a polynomial through ``at``, in the order given."""
        start, k = at[0], self.index[at[0]]
        if end.sigma == 0:  # x0 = g + (1 - l) x / alpha, of the x at which g was evaluated
            linear = (1 - self.integrals.l[k]) / start.alpha
            return Step(0.0, [end.alpha, *[0.0] * (len(at) - 1)], seen=end.alpha * linear)
        span = self.integrals.spans[k]
        lams = [node.lam for node in at]
        derivatives = divided(lams) if pseudo else interpolated(lams)
        b: list[Coefficient] = []
        c: Coefficient = -span.response
        for j, node in enumerate(at):
            weight: Coefficient = span.moments[0] if j == 0 else 0.0
            for i, row in enumerate(derivatives, start=1):
                weight = weight + row[j] * span.moments[i]
            scale, beta = self._relative(k, self.index[node])
            b.append(end.alpha * weight * scale)
            c = c + weight * beta
        return Step(end.alpha / start.alpha * _exp(-span.L), b, end.alpha * c)

    def _relative(self, k: int, j: int) -> tuple[Coefficient, Coefficient]:
        """e^-S and beta at node j, of the integrals from node k."""
        S: Coefficient = 0.0
        beta: Coefficient = 0.0
        for span in self.integrals.spans[k:j]:
            S, beta = S + span.S, beta + _exp(-S) * span.bias
        for span in reversed(self.integrals.spans[j:k]):
            S = S - span.S
            beta = beta - _exp(-S) * span.bias
        return _exp(-S), beta


def _exp(value: Coefficient) -> Coefficient:
    if isinstance(value, Tensor):
        return torch.exp(value)
    try:
        return math.exp(value)
    except OverflowError:
        raise ValueError(
            f"ems: e^{value:.4g} overflows: l or s is too large for the steps of this grid"
        ) from None


def interpolated(lams: Sequence[Number]) -> list[list[Number]]:
    """n rows of n + 1: the derivatives 1..n at lams[0] of the polynomial through n + 1 values."""
    n = len(lams) - 1
    if n == 0:
        return []
    far = scalar.array(lams[1:]) - lams[0]
    inverse = scalar.inverse(far[:, None] ** scalar.alike(np.arange(1, n + 1), far))
    factorials = scalar.alike(np.array([math.factorial(i) for i in range(1, n + 1)]), far)
    rows = factorials[:, None] * inverse
    return [
        [first, *scalar.entries(row)]
        for first, row in zip(scalar.entries(-rows.sum(1)), rows, strict=True)
    ]


def divided(lams: Sequence[Number]) -> list[list[Number]]:
    """n rows of n + 1: i! times the divided difference of the first i + 1 values, i = 1..n."""
    rows = [[0.0] * len(lams) for _ in lams[1:]]
    for i, row in enumerate(rows, start=1):
        for j in range(i + 1):
            others = [lams[j] - lams[k] for k in range(i + 1) if k != j]
            row[j] = math.factorial(i) / math.prod(others)
    return rows
