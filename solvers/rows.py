"""The rows of a plan, see `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .node import Coefficient, Node, Target
from .noise_terms import Noise
from .scalar import plain


@dataclass(frozen=True)
class Row:
    """One row of a Plan; see `plan` for the formula.

    ``states`` and ``outputs`` list (row index, coefficient) with indices of earlier rows;
    ``target`` is None for a row that is not evaluated.
    """

    node: Node
    states: tuple[tuple[int, Coefficient], ...] = ()
    outputs: tuple[tuple[int, Coefficient], ...] = ()
    target: Target | None = None
    offset: Coefficient = 0.0
    noise: tuple[Noise, ...] = ()

    @property
    def evaluated(self) -> bool:
        return self.target is not None

    def coefficients(self) -> list[Coefficient]:
        """A's, then B's, in order."""
        return [c for _, c in self.states] + [c for _, c in self.outputs]

    def numbers(self) -> list[Coefficient]:
        """Every number of the row: of its node, of what it combines, of its target and noise."""
        told = [entry for entry in self.node[3:] if entry is not None]
        scales = [term.scale for term in self.noise]
        return [
            *self.node[:3],
            *told,
            *self.coefficients(),
            *(self.target or ()),
            self.offset,
            *scales,
        ]

    @property
    def plain(self) -> bool:
        """Whether every number of the row is a Python one."""
        return set(map(type, self.numbers())) <= {float, int}

    def without_gradients(self) -> Row:
        """The row with every single number as a float."""
        return Row(
            Node(*map(_settled, self.node)),
            tuple((j, _settled(a)) for j, a in self.states),
            tuple((j, _settled(b)) for j, b in self.outputs),
            None if self.target is None else Target(*map(_settled, self.target)),
            _settled(self.offset),
            tuple(term.key._replace(scale=plain(term.scale)) for term in self.noise),
        )


def _settled(value: Any) -> Any:
    return float(value.detach()) if isinstance(value, Tensor) and value.ndim == 0 else value
