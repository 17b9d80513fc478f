r"""A solver as a table of numbers.

A `Plan` is a list of rows. Row k lives at its node (t, alpha, sigma) and says

    x_k = sum_j A[k,j] x_j + sum_j B[k,j] g_j + c_k + sum_i n_ki z(interval_i),

and, if the row is evaluated, the network is called at (x_k, t_k) and turned into

    g_k = u eps_k + w x0_k + q x_k

where (u, w, q) is the row's target: (0, 1, 0) combines data predictions, (1, 0, 0) noise
predictions, (0, 1, (l - 1)/alpha) is the quantity of DPM-Solver-v3. Row 0 is the start
state x_T, the last row is the sample. In numerical analysis this is a general linear method.

Every row of a consistent solver must be exact for a model whose x0 and eps are constant, since
then x_j = alpha_j x0 + sigma_j eps along the whole path. Reading off both coefficients,

    sum_j A alpha_j + sum_j B (w_j + q_j alpha_j) = alpha_k
    sum_j A sigma_j + sum_j B (u_j + q_j sigma_j) = sigma_k

which is checked when a Plan is built; see `identities`, also for rows with noise, whose variances
add to sigma_k^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cached import Cache, cached_rows
from .identities import check_identities
from .keywords import takes
from .node import DATA, NOISE, VELOCITY, Coefficient, Node, Target
from .noise_terms import MOMENTS, Noise
from .plan_files import load_plan, save_plan
from .plan_table import table
from .rows import Row
from .scalar import plain
from .starts import start_states

__all__ = [
    "DATA",
    "NOISE",
    "VELOCITY",
    "Coefficient",
    "Node",
    "Noise",
    "Plan",
    "Row",
    "Target",
]


@dataclass(frozen=True, eq=False)
class Plan:
    """A frozen, validated solver table. ``str(plan)`` is a readable table.

    Parameters
    ----------
    rows : row 0 is the start state, the last row the sample.
    solver, options : where the plan came from; kept with it when saved. Options are JSON values.
    consistent : False skips the identities (DPM-Solver-v3 with non-degenerate statistics, tuned
        coefficients); everything else is still checked.

    Raises ValueError that names the row and what is wrong with it.
    """

    rows: tuple[Row, ...]
    solver: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    consistent: bool = True
    # What `segments` makes of the plan, which lives as long as the plan itself.
    compiled: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        validate(self)

    def __copy__(self) -> Plan:
        return self  # nothing in it changes

    def __deepcopy__(self, memo: Any) -> Plan:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compiled": {}}

    @cached_property
    def evaluated(self) -> tuple[int, ...]:
        """Indices of the rows at which the network is called, in order."""
        return tuple(k for k, row in enumerate(self.rows) if row.evaluated)

    @property
    def nfe(self) -> int:
        """Number of network evaluations of one run."""
        return len(self.evaluated)

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The times at which the network is called, in order."""
        return tuple(self.rows[k].node.t for k in self.evaluated)

    @property
    def tells_times(self) -> bool:
        """Whether a node tells the network another time than its own, or a second one."""
        return any(row.node[3:] != (None, None) for row in self.rows)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return any(row.noise for row in self.rows)

    @cached_property
    def numeric(self) -> bool:
        """Whether every coefficient is a single number that needs no gradient."""
        numbers = (c for row in self.rows for c in row.numbers())
        return not any(isinstance(c, Tensor) and (c.ndim > 0 or c.requires_grad) for c in numbers)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is wanted with respect to some coefficient."""
        return any(
            isinstance(c, Tensor) and c.requires_grad for row in self.rows for c in row.numbers()
        )

    def coefficients(self) -> Tensor:
        """All A's and B's as one flat float64 tensor, row by row (of `numeric` plans only)."""
        if not self.numeric:
            raise ValueError(
                "coefficients() needs a plan whose coefficients are plain numbers: of one that is "
                "being fitted, detach() the values given to with_coefficients"
            )
        flat = [float(c) for row in self.rows for c in row.coefficients()]
        return torch.tensor(flat, dtype=torch.float64)

    def with_coefficients(self, values: Tensor) -> Plan:
        """The same plan with its A's and B's replaced by the entries of ``values``.

        ``values`` has the layout of ``coefficients()`` and may require grad, so that a plan can
        be fitted to a model; the result is then not held to the identities. Values that need no
        grad are copied, and the result runs as any other plan does.
        """
        count = sum(len(row.coefficients()) for row in self.rows)
        if values.shape != (count,):
            raise ValueError(f"values has shape {tuple(values.shape)}: need ({count},)")
        entries = iter((values if values.requires_grad else values.clone()).unbind())
        rows = [
            replace(
                row,
                states=tuple((j, next(entries)) for j, _ in row.states),
                outputs=tuple((j, next(entries)) for j, _ in row.outputs),
            )
            for row in self.rows
        ]
        return replace(self, rows=tuple(rows), consistent=False)

    def labelled(self, solver: str, options: Mapping[str, Any]) -> Plan:
        """The same plan with a note of where it came from; its rows are not validated again."""
        plan = object.__new__(Plan)
        plan.__dict__.update(self.__dict__, solver=solver, options=dict(options))
        return plan

    @takes(Cache)
    def cached(self, options: Cache) -> Plan:
        """The same plan with the network called at some evaluations only; see `cached`.

        At the others its output is reused, or extrapolated from the last real ones, as caches do
        that are put around a network: the sample is that of such a run, but it is a plan that may
        be saved, printed and tuned, and whatever runs a plan runs it.

        Parameters
        ----------
        options : of `Cache`.

        The plan is no longer consistent with the quantity "v_prediction", which is not constant
        where x0 and eps are. Raises ValueError for bad options, and for a plan that adds noise
        unless the quantity is "data": another would change its marginals.
        """
        options.check_fits(self.rows)
        if all(options.mask):
            return self
        note = options.note()
        if "cached" in self.options:
            note["of"] = self.options["cached"]
        return replace(
            self,
            rows=cached_rows(self.rows, options),
            options={**self.options, "cached": note},
            consistent=self.consistent and options.constant,
        )

    def start(
        self,
        shape: Sequence[int],
        seeds: Sequence[int] | Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Start states x_T = sqrt(alpha^2 + sigma^2) z of the plan's first node, z ~ N(0, 1).

        Parameters
        ----------
        shape : (B, *event).
        seeds : one whole number a sample: sample i depends on its seed alone, not on the batch, the
            device or the dtype. None draws from torch's global generator.
        device, dtype : of the result.

        The deviation is 1 for variance-preserving schedules and for flow matching from t = 1,
        sqrt(1 + sigma_max^2) for variance-exploding ones. Raises ValueError naming the argument.
        """
        node = self.rows[0].node
        return start_states(math.hypot(node.alpha, node.sigma), shape, seeds, device, dtype)

    def __str__(self) -> str:
        return table(self)

    def __repr__(self) -> str:
        return f"<Plan {self.solver or '?'}: {self.nfe} NFE, {len(self.rows)} rows>"

    def save(self, path: str | Path) -> None:
        """Write the plan as safetensors: numbers exactly as they are, tensors beside them."""
        save_plan(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by ``save``; it is validated anew. ValueError for another file."""
        return cls(*load_plan(path))


def validate(plan: Plan) -> None:
    """Raise ValueError naming the first row that is not well formed or not consistent."""
    rows = plan.rows
    if len(rows) < 2:
        raise ValueError(f"rows has {len(rows)} entries: a plan needs a start and a result")
    if rows[0].states or rows[0].outputs or rows[0].noise:
        raise ValueError("row 0 is the start state: it may not depend on other rows")
    if not any(row.evaluated for row in rows):
        raise ValueError("no row is evaluated: the plan never calls the network")
    if rows[-1].evaluated:
        raise ValueError("the last row is the sample: evaluating it would be wasted")
    for k, row in enumerate(rows):
        for name, entries in (("states", row.states), ("outputs", row.outputs)):
            for j, _ in entries:
                if not 0 <= j < k:
                    raise ValueError(f"row {k}: {name} refers to row {j}; allowed are 0..{k - 1}")
                if name == "outputs" and not rows[j].evaluated:
                    raise ValueError(f"row {k}: outputs refers to row {j}, which is not evaluated")
        numbers = row.numbers()
        if not row.plain:
            numbers = [c for c in numbers if not isinstance(c, Tensor)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"row {k} has a number that is not finite: {row}")
        for term in row.noise:
            _check_noise(k, term)
    if plan.consistent:
        check_identities(rows)


def _check_noise(k: int, term: Noise) -> None:
    start, end = plain(term.start), plain(term.end)
    if math.isnan(start) or math.isnan(end) or start == end:
        raise ValueError(f"row {k}: {term} needs an interval of the clock, start and end apart")
    if not isinstance(term.clock, str) or not term.clock:
        raise ValueError(f"row {k}: clock={term.clock!r} is not the name of a clock")
    if term.moment not in MOMENTS:
        raise ValueError(f"row {k}: moment={term.moment!r}: choose one of {MOMENTS}")
