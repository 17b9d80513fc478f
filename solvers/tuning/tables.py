r"""A deterministic plan as one triangle of numbers.

Everything between two evaluations is linear, so each evaluated state, and the sample, is a
combination of the start and of the data predictions before it:

    x_k = a_k x_T + sum_{j<k} b_kj x0_j,    k = 1 .. n  (x_n is the sample).

Corrected states, past states, and noise predictions eps_j = (x_j - alpha_j x0_j) / sigma_j are in
it already: no plan with the same evaluations has more freedom than a_k, b_kj, the nodes, and what
the network is told there. The identities become a_k sigma_0 = sigma_k and
a_k alpha_0 + sum_j b_kj = alpha_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..node import DATA, Node
from ..plan import Plan
from ..rows import Row
from ..scalar import plain


@dataclass(frozen=True)
class Table:
    """The triangle of a plan.

    Parameters
    ----------
    weights : (n + 1, n + 1) float64; row k holds a_k, b_k0 .. b_k,n-1.
    nodes : n + 1, those of the evaluations and that of the sample.
    """

    weights: Tensor
    nodes: tuple[Node, ...]

    @property
    def nfe(self) -> int:
        return len(self.nodes) - 1

    @property
    def times(self) -> Tensor:
        """(n,) of the evaluations."""
        return torch.tensor([plain(node.t) for node in self.nodes[:-1]], dtype=torch.float64)

    @property
    def told(self) -> Tensor:
        """(n,) what the network is told there."""
        return torch.tensor([plain(n.call[0]) for n in self.nodes[:-1]], dtype=torch.float64)

    def plan(self, *, consistent: bool) -> Plan:
        """The plan of these numbers, which combines data predictions.

        Of consistent rows a_k is sigma_k / sigma_0 exactly, so that nothing of the start is left at
        sigma = 0.
        """
        rows, start = [], plain(self.nodes[0].sigma)
        for k, node in enumerate(self.nodes):
            a, *b = self.weights[k].tolist()
            a = plain(node.sigma) / start if consistent else a
            states = ((0, a),) if k and a else ()
            outputs = tuple((j, entry) for j, entry in enumerate(b[:k]) if entry)
            rows.append(Row(node, states, outputs, DATA if k < self.nfe else None))
        return Plan(tuple(rows), consistent=consistent)


def table_of(plan: Plan) -> Table:
    """The triangle of a plan of plain numbers. Raises ValueError for one that has none."""
    if not plan.numeric or plan.stochastic:
        kind = "adds noise" if plan.stochastic else "has coefficients that are no plain numbers"
        raise ValueError(f"solver={plan.solver!r} {kind}: its coefficients cannot be tuned")
    count = plan.nfe
    place = {k: i for i, k in enumerate(plan.evaluated)}
    states: list[Tensor] = []
    outputs: dict[int, Tensor] = {}
    for k, row in enumerate(plan.rows):
        state = torch.zeros(count + 1, dtype=torch.float64)
        state[0] = 1.0 if k == 0 else 0.0
        for j, a in row.states:
            state = state + plain(a) * states[j]
        for j, b in row.outputs:
            state = state + plain(b) * outputs[j]
        states.append(state)
        if row.target is not None:
            outputs[k] = _output(row, state, place[k])
    kept = [states[k] for k in plan.evaluated] + [states[-1]]
    nodes = [plan.rows[k].node for k in plan.evaluated] + [plan.rows[-1].node]
    return Table(torch.stack(kept), tuple(nodes))


def _output(row: Row, state: Tensor, place: int) -> Tensor:
    """g = u eps + w x0 + q x by the state and x0, with eps = (x - alpha x0) / sigma."""
    assert row.target is not None
    u, w, q = map(plain, row.target)
    alpha, sigma = plain(row.node.alpha), plain(row.node.sigma)
    of_eps = u / sigma if u else 0.0
    output = (of_eps + q) * state
    output[1 + place] += w - of_eps * alpha
    return output
