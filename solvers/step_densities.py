r"""The densities of the steps of a stochastic plan.

A row with noise is Gaussian given the rows before it. With n_k the row's noise as a vector over the
plan's independent parts (`shared_noise`) and q_1, .., the orthonormal directions that earlier rows
have brought in,

    x_k = mean_k + sum_j c_kj u_j + r_k u_k,    c_kj = n_k . q_j,    r_k = |n_k - sum_j c_kj q_j|,

where mean_k is what the row combines of states and outputs, and the u_j are known from the earlier
rows: u_j = (x_j - mean_j - ..) / r_j. So

    log p(x_k | x_0, .., x_{k-1}) = sum over entries of  -u_k^2 / 2 - log r_k - log(2 pi) / 2,

and the sum over k is the density of the whole trajectory, shared noise included. Where nothing is
shared c = 0 and r_k = |n_k|. A row all of whose noise is known from earlier ones (r_k = 0, as of a
corrector that repeats its predictor's) is a function of them, and no step of its own.

Gradients are those of a *stored* trajectory, as policy gradients need them: the states of the steps
are given values, and what is differentiated is the mean under the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import scalar
from .plan import Plan
from .rows import Row
from .scalar import Number, plain
from .segments import made_once
from .shared_noise import sharing

DETERMINED = 1e-9
"""The share of a row's noise below which what is new of it counts as rounding."""


class Innovation(NamedTuple):
    """What the noise of a row has beyond that of earlier rows.

    Parameters
    ----------
    known : (row j, c_kj) of the earlier rows from which the rest is known.
    deviation : r_k; 0.0 where all of it is known.
    """

    known: tuple[tuple[int, Number], ...]
    deviation: Number


def innovations(plan: Plan) -> Mapping[int, Innovation]:
    """The innovation of every row that adds noise."""
    # A graph can be walked through once only.
    if plan.requires_grad:
        return _innovations(plan)
    return made_once(plan, "innovations", lambda: _innovations(plan))


def stochastic_steps(found: Mapping[int, Innovation]) -> tuple[int, ...]:
    """The rows whose states are random given the rows before: the S steps of a plan, in order."""
    return tuple(k for k, entry in found.items() if not _is_zero(entry.deviation))


def _innovations(plan: Plan) -> dict[int, Innovation]:
    parts = sharing(plan).parts
    names = dict.fromkeys(part for entries in parts.values() for part, _ in entries)
    index = {part: i for i, part in enumerate(names)}
    directions: dict[int, Tensor] = {}
    found = {}
    with torch.set_grad_enabled(plan.requires_grad):
        for k, row in enumerate(plan.rows):
            if row.noise:
                found[k] = _innovation(k, _vector(row, parts, index), directions)
    return found


def _vector(row: Row, parts: Mapping, index: Mapping) -> Tensor:
    vector = torch.zeros(len(index), dtype=torch.float64)
    for term in row.noise:
        places = [index[part] for part, _ in parts[term.key]]
        weights = torch.tensor([weight for _, weight in parts[term.key]], dtype=torch.float64)
        scale = torch.as_tensor(term.scale, dtype=torch.float64, device="cpu")
        vector = vector.index_add(0, torch.tensor(places), scale * weights)
    return vector


def _innovation(k: int, vector: Tensor, directions: dict[int, Tensor]) -> Innovation:
    """That of row k, whose direction is put beside those of earlier rows."""
    rest, known, size = vector, [], plain(vector.norm())
    for j, direction in directions.items():
        c = direction @ rest
        if abs(plain(c)) > DETERMINED * size:
            known.append((j, c))
            rest = rest - c * direction
    length = rest.norm()
    if plain(length) <= DETERMINED * size:
        return Innovation(_numbers(known), 0.0)
    directions[k] = rest / length
    return Innovation(_numbers(known), _number(length))


def _number(value: Any) -> Number:
    return value if value.requires_grad else float(value)


def _numbers(known: list[tuple[int, Tensor]]) -> tuple[tuple[int, Number], ...]:
    return tuple((j, _number(c)) for j, c in known)


def _is_zero(deviation: Number) -> bool:
    return not scalar.is_tensor(deviation) and deviation == 0


def log_density(u: Tensor, deviation: Number) -> Tensor:
    """log N(r u; 0, r^2) (B,), float64: of standard u (B, *event), summed over the event."""
    log_r = scalar.log(deviation)
    entries = u[0].numel() if len(u) else 0
    squares = u.square().flatten(1).sum(1, dtype=torch.float64)
    return -squares / 2 - entries * (log_r + math.log(2 * math.pi) / 2)


class StepDensities:
    """What an executor shows the noise of its rows to.

    Parameters
    ----------
    keep_states : keep a copy of the state of every step.

    Attributes
    ----------
    asked : whether the densities of the rows to come are wanted.
    given : the state of the step to come, if that is to be taken and not drawn.
    log_probs : row -> log density (B,) of each step that was made.
    states : row -> state, in the precision of the run.
    mean : of the latest step's state, given those before it.
    """

    def __init__(self, plan: Plan, *, keep_states: bool = False):
        self.innovations = innovations(plan)
        self.keep_states, self.asked = keep_states, True
        self.given: Tensor | None = None
        self.log_probs: dict[int, Tensor] = {}
        self.states: dict[int, Tensor] = {}
        self._latest: tuple[Tensor, Tensor, Number] | None = None
        self._u: dict[int, Tensor] = {}
        self._cut: set[int] = set()
        self._until = {j: k for k, entry in self.innovations.items() for j, _ in entry.known}
        self._rows = plan.rows

    def fork(self) -> StepDensities:
        """Another one in the same state."""
        other = copy(self)
        for name in ("log_probs", "states", "_u", "_cut"):
            setattr(other, name, copy(getattr(self, name)))
        return other

    def steps(self, rows: range) -> list[int]:
        """Those of ``rows`` that are stochastic steps."""
        return [k for k in stochastic_steps(self.innovations) if k in rows]

    def shared(self, k: int) -> bool:
        """Whether a later row has noise of row k."""
        return k in self._until

    @property
    def known(self) -> dict[int, Tensor]:
        """The u's of rows so far that later ones need."""
        return {**self._u}

    @known.setter
    def known(self, u: dict[int, Tensor]) -> None:
        self._u = {**u}

    @property
    def mean(self) -> Tensor:
        assert self._latest is not None
        x, u, deviation = self._latest
        return x - deviation * u

    def observe(self, k: int, result: Tensor, drawn: list[Tensor]) -> Tensor:
        """The state of row k, which is ``result``, where z of its terms were ``drawn``.

        It has no gradient if it is that of a step. Raises ValueError if the noise of an earlier
        row is needed that was not observed.
        """
        if not (self.asked or k in self._until):
            return result
        known, deviation = self.innovations[k]
        if _is_zero(deviation) and not result.requires_grad:
            return result
        if missing := [j for j, _ in known if j not in self._u]:
            raise ValueError(
                f"log_prob: row {k} of the plan shares noise with row {missing[0]}, whose density "
                "was not asked for: ask for that of every step, from the first on"
            )
        past = sum((c * self._u[j] for j, c in known), start=torch.zeros(()))
        if _is_zero(deviation):
            # Its value is right as it is: what it lacks is how the u's depend on the network.
            return result + (past - past.detach()) if past.requires_grad else result
        x, noise = result, self._noise(k, drawn, result)
        if self.given is not None:
            x = self.given.detach().to(result)
            noise = noise + (x - result)
            self._redraw(k, drawn, noise.detach())
        elif result.requires_grad and self.asked:
            x = result.detach()
            noise = noise + (x - result)
        u = (noise - past) / deviation
        if self.asked:
            self.log_probs[k] = log_density(u, deviation)
            self._latest = x, u, deviation
        if self.keep_states:
            self.states[k] = x.clone()
        if k in self._until:
            self._u[k] = u
        for j in [j for j in self._u if self._until[j] <= k]:
            del self._u[j]
        if x is not result:
            self._cut.add(k)
        return x

    def settled(self, k: int, state: Tensor) -> Tensor:
        """``state`` of row k computed anew, as `observe` gave it back."""
        return state.detach() if k in self._cut else state

    def _noise(self, k: int, drawn: list[Tensor], like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        for term, z in zip(self._rows[k].noise, drawn, strict=True):
            total = total + term.scale * z
        return total

    def _redraw(self, k: int, drawn: list[Tensor], noise: Tensor) -> None:
        """Noise that leads to the state that was given, for who computes the row anew."""
        scales = [plain(term.scale) for term in self._rows[k].noise]
        square = sum(scale**2 for scale in scales)
        drawn[:] = [noise * (scale / square) for scale in scales]
