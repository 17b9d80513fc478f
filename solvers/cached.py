r"""Plans that leave evaluations out: the output is reused, or extrapolated from the last real ones.

A *cache* calls the network at some of the evaluations of a long run only, and predicts its output
at the others. With a fixed mask that is linear in the real outputs, so what comes out is a plan
again, with fewer evaluated rows. Let Q be the quantity that is kept (x0, eps, a velocity), p the
place of an evaluation (lambda, t, or its number) and R the last ``order`` real evaluations before
a skipped one, at row k:

    Q_k = sum_{i in R} L_i(p_k) Q_i,     L_i the Lagrange polynomials over the places of R.

Each Q_i is a combination of the output g_i and the state x_i of its row, and g_k one of Q_k and
x_k. Putting both into the rows that read g_k leaves coefficients of the same table. Since the L_i
sum to 1, a point mass, whose x0 and eps are constant, is met as exactly as before; unless what is
kept is v = (alpha eps - sigma x0) / r, which turns with alpha and sigma there, too. Rows that are
not evaluated any more, and that nothing reads beyond the next evaluation, are multiplied out.

Lambda is infinite at pure noise and at pure data: such a place drops out of the polynomial, which
is the limit of its weights; alone, its output is reused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from .checks import check_choice, check_whole
from .node import Coefficient, Node, Target
from .noise_terms import Noise
from .prediction import Linear, as_target, to_target
from .rows import Row
from .scalar import Number, plain

VARIABLES = ("lambda", "time", "index")
QUANTITIES = {
    "data": "sample",
    "noise": "epsilon",
    "velocity": "flow_prediction",
    "v_prediction": "v_prediction",
}
"""What may be kept, as the prediction type of a network."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Cache:
    """Which evaluations are real, and what stands for the others.

    Parameters
    ----------
    mask : one entry an evaluation, True where the network is called; the first has to be. Also
        a string of 1 and 0.
    order : of the extrapolation: how many real outputs it looks back on. 1 reuses the last one.
    variable : in which the outputs are polynomials: "time", which is finite at both ends and was
        the best or near it on all models tried, "lambda", or "index", the number of the
        evaluation (all steps count as equally long).
    quantity : what is reused or extrapolated: "data" (x0), "noise" (eps), "velocity" (eps - x0), or
        "v_prediction". That of the network's own type is what a cache around the network keeps.

    Raises ValueError naming the argument that is out of range.
    """

    mask: Sequence[bool] | str
    order: int = 1
    variable: str = "time"
    quantity: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", _as_mask(self.mask))
        check_whole("order", self.order, 1)
        check_choice("variable", self.variable, VARIABLES)
        check_choice("quantity", self.quantity, tuple(QUANTITIES))

    @property
    def constant(self) -> bool:
        """Whether the quantity is constant where x0 and eps are, so that the identities hold."""
        return self.quantity != "v_prediction"

    def check_fits(self, rows: Sequence[Row]) -> None:
        """ValueError unless a plan of these rows can be cached so."""
        nfe = sum(row.evaluated for row in rows)
        if len(self.mask) != nfe:
            raise ValueError(
                f"mask has {len(self.mask)} entries: need one for each of the {nfe} evaluations"
            )
        if self.quantity != "data" and any(row.noise for row in rows) and not all(self.mask):
            raise ValueError(
                f"quantity={self.quantity!r}: the noise of a plan that adds some is another at "
                "every state, so that it cannot be kept; use 'data'"
            )

    def note(self) -> dict[str, str | int]:
        """The options as JSON values; the mask as a string of 1 and 0."""
        return {
            "mask": "".join("1" if real else "0" for real in self.mask),
            "order": self.order,
            "variable": self.variable,
            "quantity": self.quantity,
        }


def _as_mask(mask: Any) -> tuple[bool, ...]:
    listed = mask.tolist() if isinstance(mask, Tensor | np.ndarray) else mask
    if isinstance(listed, str):
        listed = [{"1": True, "0": False}.get(entry) for entry in listed]
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"mask={mask!r}: need a list with one True or False an evaluation")
    if any(entry not in (True, False) for entry in listed):
        raise ValueError(f"mask={mask!r}: need True (call the network) or False, entry by entry")
    if not listed[0]:
        raise ValueError(f"mask={mask!r}: the first evaluation has to be real")
    return tuple(bool(entry) for entry in listed)


@dataclass
class _Form:
    """A combination of the states and outputs of rows that stay, an offset and noise."""

    states: dict[int, Coefficient] = field(default_factory=dict)
    outputs: dict[int, Coefficient] = field(default_factory=dict)
    offset: Coefficient = 0.0
    noise: dict[Noise, Number] = field(default_factory=dict)

    def add(self, weight: Coefficient, other: _Form) -> None:
        """Add ``weight`` times another one."""
        if not _occurs(weight):
            return
        _add(self.states, weight, other.states)
        _add(self.outputs, weight, other.outputs)
        _add(self.noise, weight, other.noise)
        self.offset = self.offset + weight * other.offset

    def row(self, node: Node, target: Target | None) -> Row:
        """The combination as a row."""
        return Row(
            node,
            tuple(sorted(self.states.items())),
            tuple(sorted(self.outputs.items())),
            target,
            self.offset,
            tuple(key._replace(scale=scale) for key, scale in self.noise.items()),
        )


def _add(mine: dict[Key, Any], weight: Coefficient, theirs: Mapping[Key, Any]) -> None:
    for key, value in theirs.items():
        mine[key] = mine.get(key, 0.0) + weight * value


def cached_rows(rows: Sequence[Row], cache: Cache) -> tuple[Row, ...]:
    """The rows of the plan with ``rows`` that ``cache`` leaves, see the module's text."""
    prediction = QUANTITIES[cache.quantity]
    evaluated = [(k, row.node, row.target) for k, row in enumerate(rows) if row.target is not None]
    called = [k for (k, _, _), real in zip(evaluated, cache.mask, strict=True) if real]
    places = {k: _place(cache.variable, i, node) for i, (k, node, _) in enumerate(evaluated)}
    skipped = {
        k: to_target(prediction, node, target) for k, node, target in evaluated if k not in called
    }
    number = {k: i for i, k in enumerate(_kept(rows, called, skipped))}
    states: dict[int, _Form] = {}
    outputs: dict[int, _Form] = {}
    result: list[Row] = []
    for k, row in enumerate(rows):
        form = _Form(offset=row.offset, noise={term.key: term.scale for term in row.noise})
        for j, a in row.states:
            form.add(a, states[j])
        for j, b in row.outputs:
            form.add(b, outputs[j])
        if k in number:
            result.append(form.row(row.node, None if k in skipped else row.target))
            form = _Form(states={number[k]: 1.0})
        states[k] = form
        if k in skipped:
            outputs[k] = _Form()
            outputs[k].add(skipped[k].x, states[k])
            past = [j for j in called if j < k]
            for j, weight in _extrapolation(places, past, k, cache.order):
                of_g, of_x = _from_output(prediction, rows[j])
                outputs[k].add(weight * skipped[k].out * of_g, outputs[j])
                outputs[k].add(weight * skipped[k].out * of_x, states[j])
        elif row.evaluated:
            outputs[k] = _Form(outputs={number[k]: 1.0})
    return tuple(result)


def _kept(rows: Sequence[Row], called: Sequence[int], skipped: Mapping[int, Linear]) -> list[int]:
    """The rows that stay: real evaluations, the sample, and what is read beyond the next one."""
    last_read = list(range(len(rows)))
    for k, row in enumerate(rows):
        for j, _ in row.states:
            last_read[j] = k
        for j, _ in row.outputs:
            if j in skipped and _occurs(skipped[j].x):
                last_read[j] = k
    last = len(rows) - 1
    return [
        k
        for k in range(len(rows))
        if k in (0, last) or k in called or any(k < call < last_read[k] for call in called)
    ]


def _place(variable: str, index: int, node: Node) -> Number:
    return {"lambda": node.lam, "time": node.t, "index": float(index)}[variable]


def _extrapolation(
    places: Mapping[int, Number], past: Sequence[int], k: int, order: int
) -> list[tuple[int, Number]]:
    """The rows whose outputs stand for that of row k, and their weights."""
    found: list[int] = []
    if math.isfinite(plain(places[k])):
        for j in reversed(past):
            apart = all(plain(places[j]) != plain(places[i]) for i in found)
            if len(found) < order and apart and math.isfinite(plain(places[j])):
                found.append(j)
    if not found:
        return [(past[-1], 1.0)]
    weights = []
    for j in found:
        weight: Number = 1.0
        for i in found:
            if i != j:
                weight = weight * (places[k] - places[i]) / (places[j] - places[i])
        weights.append((j, weight))
    return weights


def _from_output(prediction: str, row: Row) -> tuple[Coefficient, Coefficient]:
    """The prediction at an evaluated row as a combination of its g and its state.

    Raises ValueError where they do not tell it: x0 at sigma = 0 says nothing of eps.
    """
    node, target = row.node, row.target
    alpha, sigma = node.alpha, node.sigma
    assert target is not None
    # x = alpha x0 + sigma eps and g = data x0 + noise eps, solved for both.
    data, noise = target.data + target.x * alpha, target.eps + target.x * sigma
    wanted = as_target(prediction, node)
    determinant = sigma * data - alpha * noise
    if not isinstance(determinant, Tensor) and determinant == 0:
        raise ValueError(
            f"mask: the evaluation at t={node.t:g} does not tell {prediction!r}, which others need"
        )
    return (
        (wanted.data * sigma - wanted.eps * alpha) / determinant,
        (wanted.eps * data - wanted.data * noise) / determinant,
    )


def _occurs(value: Coefficient) -> bool:
    return isinstance(value, Tensor) or value != 0
