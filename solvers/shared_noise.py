r"""Noise that rows of a plan share: each part of it is drawn once in a run.

Rows that name one interval have one noise, and intervals that overlap are cut into parts (see
`noise_terms`). A part is drawn at the first row that has it, and remembered until the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from .noise_terms import Noise, Parts, independent
from .plan import Plan
from .segments import made_once

NoiseSource = Callable[[Noise, Tensor], Tensor]
Memory = dict[Noise, Tensor]
"""The parts that were drawn and will be needed again: a run's own, copied with it."""


class Sharing(NamedTuple):
    """Of which parts a plan's noise is made.

    Parameters
    ----------
    parts : each term's `key` as a combination of parts.
    fresh : for every row, the parts that it is the first to have, in the order of drawing.
    none : whether every term is a part of its own.
    """

    parts: Mapping[Noise, Parts]
    fresh: tuple[tuple[Noise, ...], ...]
    none: bool


def sharing(plan: Plan) -> Sharing:
    """How the noise of ``plan`` is shared; made once."""
    return made_once(plan, "noise", lambda: _sharing(plan))


def _sharing(plan: Plan) -> Sharing:
    terms = [term for row in plan.rows for term in row.noise]
    parts = independent(terms)
    seen: dict[Noise, None] = {}
    fresh = []
    for row in plan.rows:
        its = dict.fromkeys(part for term in row.noise for part, _ in parts[term.key])
        fresh.append(tuple(part for part in its if part not in seen))
        seen.update(its)
    plain = all(parts[term.key] == ((term.key, 1.0),) for term in terms)
    return Sharing(parts, tuple(fresh), plain and len(seen) == len(terms))


def draws(plan: Plan) -> int:
    """How many independent normals of a state's shape the plan draws: one a noise term, but for
    terms that are the same (once) or overlap (one a part, see `noise_terms.independent`).
    """
    return sum(map(len, sharing(plan).fresh))


def along(
    plan: Plan, source: NoiseSource, memory: Memory | None = None, begin: int = 0
) -> NoiseSource:
    """``source`` for the terms of the rows after ``begin``, each part of which is drawn once.

    It is ``source`` itself where no noise is shared. Parts are kept in ``memory``, from which a
    copy of a run goes on.
    """
    if not plan.stochastic:
        return source
    shared = sharing(plan)
    if shared.none:
        return source
    parts, kept = shared.parts, {} if memory is None else memory
    left = Counter(
        part for row in plan.rows[begin + 1 :] for term in row.noise for part, _ in parts[term.key]
    )

    def drawn(part: Noise, like: Tensor) -> Tensor:
        z = kept.pop(part) if part in kept else source(part, like)
        left[part] -= 1
        if left[part] > 0:
            kept[part] = z
        return z

    def combined(term: Noise, like: Tensor) -> Tensor:
        (first, weight), *others = parts[term.key]
        z = drawn(first, like)
        z = z if weight == 1 else weight * z
        for part, weight in others:
            z = z + weight * drawn(part, like)
        return z

    return combined
