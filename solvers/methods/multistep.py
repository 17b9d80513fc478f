r"""The frame of every multistep method: one state, the last few outputs, optionally a corrector.

A multistep method is two functions of the nodes. The predictor gives the weights of the step to
node t from the last p evaluations,

    x_t = a x_s + sum_i b_i g_i (+ c, in DPM-Solver-v3),

and the corrector those of the same step repeated with the evaluation at t itself, which the next
step needs anyway and which therefore costs nothing (Zhao et al. 2023, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from .. import scalar
from ..plan import DATA, NOISE, VELOCITY, Coefficient, Node, Noise, Row, Target
from .pure_noise import Frame
from .stochastic import Split

T = TypeVar("T")
Weights = tuple[float, Sequence[float]]


class Step(NamedTuple):
    """a, the b's and c of one step; the coefficients may be tensors over the event shape.

    ``seen`` multiplies the state at which the newest evaluation was made, where that is another
    than x_s, its corrected form.
    """

    a: Coefficient
    b: Sequence[Coefficient]
    c: Coefficient = 0.0
    seen: Coefficient = 0.0


Predictor = Callable[[Sequence[Node], Node], Weights | Step]
"""(evaluated nodes, newest first; the node to step to) -> a and one b for each given node."""
Corrector = Callable[[Sequence[Node], Node], Weights | Step | None]
"""The same, returning one more b, for the evaluation at the node stepped to, at the end. It may
leave out the oldest nodes; None leaves the predicted state as it is."""

SPACES = {"data": DATA, "noise": NOISE, "velocity": VELOCITY}
BEFORE = 1.0
"""In lambda; from 1 to 4 the results differ little."""


def exponential(
    space: str, start: Node, end: Node, decay: float = 0.0
) -> tuple[float, float, float]:
    """(a, S, z) of the exponential step in ``space``: x_t = a x_s - S z (phi_1(z) g_s + ...).

    data:  a = e^-E sigma_t / sigma_s, S = alpha_t, z = -h - E;
    noise: a = alpha_t / alpha_s, S = (1 + E / h) sigma_t, z = h;   h = lambda_t - lambda_s,

    with E the ``decay`` of a step with noise (see `stochastic`).
    """
    h = end.lam - start.lam
    if space == "data":
        return scalar.exp(-decay) * end.sigma / start.sigma, end.alpha, -h - decay
    noisy = scalar.is_tensor(decay) or decay > 0
    return end.alpha / start.alpha, (1 + decay / h) * end.sigma if noisy else end.sigma, h


def first_order(target: Target, start: Node, end: Node) -> tuple[float, float]:
    """(a, b) of the first-order step, exact in both limits sigma_t = 0 and alpha_s = 0.

    It is DDIM: the unique combination of x_s and one prediction that satisfies the identities. The
    velocity eps - x0 is for flow matching, where it is Euler's step in t.
    """
    if target == VELOCITY:  # alpha + sigma = 1
        return 1.0, end.sigma - start.sigma
    if target.eps == 0:
        a = end.sigma / start.sigma
        return a, end.alpha - a * start.alpha
    a = end.alpha / start.alpha
    return a, end.sigma - a * start.sigma


def multistep(
    nodes: Sequence[Node],
    predictor: Predictor | Sequence[Predictor],
    *,
    order: int,
    space: str | Callable[[Node], Target] = "data",
    lower_order_final: bool = True,
    corrector: Corrector | Sequence[Corrector] | None = None,
    through_zero: bool = False,
    keep_first: bool = False,
    splits: Sequence[Split] = (),
) -> list[Row]:
    """Rows of a multistep method over ``nodes``, with warm-up orders 1, 2, .., ``order``.

    ``space`` is "data", "noise", "velocity" (flow matching), or a function to the target, of data
    predictions, at a node with alpha > 0. With ``lower_order_final`` the order falls again to 1 at
    the last step. The step to sigma = 0 is of order 1, which is exact there, unless
    ``through_zero`` says that the predictor is finite there; a step between equal nodes leaves the
    state alone.

    The nodes run from noise to data, or from data to noise; what follows is said of the former, and
    holds of the latter with noise and data exchanged (but for ``keep_first``).

    An evaluation at pure noise (see `pure_noise`) has no lambda. As published, it is used for the
    first step alone. With ``keep_first``, in data space, it stays: at the mean of both evaluations
    the first step is corrected, in the limit h -> inf of UniC-1, and the later ones look back on
    it as if it were `BEFORE` below the next in lambda, which is where the data prediction of pure
    noise, the mean of the data, is left.

    ``splits`` are the steps of a method with noise, see `stochastic`: a first-order step leads to
    the lower level, and the noise is added to every row at the step's end. Predictors and
    correctors, which have to know of it, may be given one a step.
    """
    kind = space if isinstance(space, str) else "data"
    frame = Frame.of(kind, nodes)
    keep_first = keep_first and space == "data" and not frame.inverted
    through_zero = through_zero and (kind == "velocity" or not frame.inverted)
    seen_at: dict[int, Node] = {}  # where an evaluation counts as made, if not at its own node
    pure = [frame.starts(node) for node in nodes]
    targets = [
        # A noise prediction carries no information about x0 where alpha = 0.
        frame.first_target if first else SPACES[space] if isinstance(space, str) else space(node)
        for node, first in zip(nodes, pure, strict=True)
    ]
    rows = [Row(nodes[0], target=targets[0])]
    history: list[int] = []  # evaluated rows at distinct finite lambda, newest first
    base = newest = last_pure = 0
    for i, end in enumerate(nodes[1:], start=1):
        start = rows[newest].node
        if not pure[i - 1]:
            if keep_first and not history and newest > 0:
                history, seen_at = [last_pure], {last_pure: _before(start)}
            repeated = bool(history) and rows[history[0]].node.lam == start.lam
            history = [newest, *history[1 if repeated else 0 :]]
        last_pure = newest
        past = history[: min(order, len(nodes) - i) if lower_order_final else order]
        at = [seen_at.get(j, rows[j].node) for j in past]
        first = frame.only_first_order(start, end)
        first = first or end.lam == start.lam or (frame.ends(end) and not through_zero)
        lower, noise = (splits[i - 1].down, splits[i - 1].noise) if splits else (end, ())
        if first:
            a, b = first_order(rows[newest].target or DATA, start, lower)
            step, used = Step(a, [b]), [newest]
        else:
            step, used = Step(*_of_step(predictor, i)(at, end)), past
        if i == len(nodes) - 1:
            rows.append(_row(end, (base, newest), used, step, noise))
            break
        rows.append(_row(end, (base, newest), used, step, noise, targets[i]))
        newest = len(rows) - 1
        corrected: Weights | Step | None = None
        if corrector is not None and not first and not frame.single_evaluation(start, end):
            corrected = _of_step(corrector, i)(at, end)
        elif corrector is not None and keep_first and pure[i - 1] and not pure[i]:
            corrected = a, [b / 2, b / 2]
        if corrected is None:
            base = newest
        else:
            step = Step(*corrected)
            used = [*used[: len(step.b) - 1], newest]
            rows.append(_row(end, (base, newest), used, step, noise))
            base = newest + 1
    return rows


def _of_step(function: T | Sequence[T], i: int) -> T:
    """The predictor or corrector of step i, counted from 1."""
    return function[i - 1] if isinstance(function, Sequence) else function


def _before(node: Node) -> Node:
    """The node `BEFORE` below ``node`` in lambda, of which nothing but lambda is asked."""
    ratio = scalar.exp(node.lam - BEFORE)
    return Node(node.t, ratio / (1 + ratio), 1 / (1 + ratio))


def _row(
    node: Node,
    states: tuple[int, int],
    used: Sequence[int],
    step: Step,
    noise: tuple[Noise, ...],
    target: Target | None = None,
) -> Row:
    both = zip(states, (step.a, step.seen), strict=True)
    kept = tuple((j, a) for j, a in both if _occurs(a))
    outputs = tuple((j, b) for j, b in zip(used, step.b, strict=True) if _occurs(b))
    return Row(node, kept, outputs, target, step.c, noise)


def _occurs(coefficient: Coefficient) -> bool:
    return isinstance(coefficient, Tensor) or coefficient != 0
