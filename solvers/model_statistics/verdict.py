"""Whether statistics help: errors with them and with the degenerate ones, order by order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MARGIN = 1.05
"""Errors that are closer than this are called equal."""


@dataclass(frozen=True)
class Verdict:
    """Errors of DPM-Solver-v3 to the converged solution, relative to its root mean square.

    Parameters
    ----------
    nfe : the numbers of evaluations that were tried, rising.
    own, degenerate : order -> errors with the statistics and with l = 1, s = b = 0, one for each
        entry of ``nfe``, on the same starts and grid.
    starts : the number of starts.

    Raises ValueError if the errors are not as described.
    """

    nfe: tuple[int, ...]
    own: Mapping[int, tuple[float, ...]]
    degenerate: Mapping[int, tuple[float, ...]]
    starts: int

    def __post_init__(self) -> None:
        same = set(self.own) == set(self.degenerate)
        rows = [*self.own.values(), *self.degenerate.values()]
        if not self.nfe or not rows or not same or any(len(r) != len(self.nfe) for r in rows):
            raise ValueError("verdict: need one error of either kind for each order and each nfe")
        if not all(error > 0 and math.isfinite(error) for row in rows for error in row):
            raise ValueError("verdict: need positive finite errors")

    def ratio(self, order: int, nfe: int) -> float:
        """Error with the statistics over that without; between the NFE tried, interpolated.

        In the logarithms of both; beyond the first and the last it is theirs.
        """
        ratios = np.log(self.own[order]) - np.log(self.degenerate[order])
        return math.exp(np.interp(math.log(nfe), np.log(self.nfe), ratios))

    def loses(self, order: int, nfe: int) -> bool:
        """Whether the degenerate statistics are better by more than the margin."""
        return order in self.own and self.ratio(order, nfe) > MARGIN

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        own, degenerate = (
            {str(order): list(errors) for order, errors in side.items()}
            for side in (self.own, self.degenerate)
        )
        return {
            "nfe": list(self.nfe),
            "own": own,
            "degenerate": degenerate,
            "starts": self.starts,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """What `to_json` gave."""
        own, degenerate = (
            {int(order): tuple(errors) for order, errors in values[side].items()}
            for side in ("own", "degenerate")
        )
        return cls(tuple(values["nfe"]), own, degenerate, values["starts"])
