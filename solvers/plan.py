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
    sum_j A sigma_j + sum_j B (u_j + q_j sigma_j) = sigma_k      (with noise: squares add)

which is checked when a Plan is built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .starts import start_states

Coefficient = float | Tensor

IDENTITY_TOLERANCE = 1e-9
_FORMAT = "logsnr-plan-1"


class Node(NamedTuple):
    """A point of the noise schedule: time, signal scale and noise scale, float64."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """lambda = log(alpha / sigma); -inf at alpha = 0, +inf at sigma = 0."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


class Target(NamedTuple):
    """g = eps * (noise prediction) + data * (data prediction) + x * (state)."""

    eps: Coefficient
    data: Coefficient
    x: Coefficient


DATA = Target(0.0, 1.0, 0.0)
NOISE = Target(1.0, 0.0, 0.0)
VELOCITY = Target(1.0, -1.0, 0.0)
"""eps - x0, the derivative of x in t along the straight path of flow matching."""


class Noise(NamedTuple):
    """scale * z, where z is the standardised Brownian increment over [lam_from, lam_to]."""

    scale: float
    lam_from: float
    lam_to: float


@dataclass(frozen=True)
class Row:
    """One row of a Plan; see the module's text for the formula.

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
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return any(row.noise for row in self.rows)

    @cached_property
    def numeric(self) -> bool:
        """Whether every coefficient is a single number that needs no gradient."""
        numbers = (c for row in self.rows for c in _numbers(row))
        return not any(isinstance(c, Tensor) and (c.ndim > 0 or c.requires_grad) for c in numbers)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is wanted with respect to some coefficient."""
        return any(
            isinstance(c, Tensor) and c.requires_grad for row in self.rows for c in _numbers(row)
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
        tensors: dict[str, Tensor] = {}

        def encode(value: Coefficient) -> Any:
            if not isinstance(value, Tensor):
                return value
            name = f"coefficient{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}

        rows = [
            {
                "node": row.node,
                "states": [(j, encode(c)) for j, c in row.states],
                "outputs": [(j, encode(c)) for j, c in row.outputs],
                "target": None if row.target is None else [encode(c) for c in row.target],
                "offset": encode(row.offset),
                "noise": row.noise,
            }
            for row in self.rows
        ]
        body = {
            "format": _FORMAT,
            "solver": self.solver,
            "options": dict(self.options),
            "consistent": self.consistent,
            "rows": rows,
        }
        tensors["nodes"] = torch.tensor([row.node for row in self.rows], dtype=torch.float64)
        save_file(tensors, path, metadata={"plan": json.dumps(body)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by ``save``; it is validated anew. ValueError for another file."""
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"path={str(path)!r} is not a saved plan: {error}") from error
        with opened as file:
            body = json.loads((file.metadata() or {}).get("plan", "{}"))
            if body.get("format") != _FORMAT:
                raise ValueError(f"path={str(path)!r} is not a saved plan ({_FORMAT})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}

        def decode(value: Any) -> Coefficient:
            return tensors[value["tensor"]] if isinstance(value, dict) else float(value)

        rows = tuple(
            Row(
                node=Node(*row["node"]),
                states=tuple((j, decode(c)) for j, c in row["states"]),
                outputs=tuple((j, decode(c)) for j, c in row["outputs"]),
                target=None if row["target"] is None else Target(*map(decode, row["target"])),
                offset=decode(row["offset"]),
                noise=tuple(Noise(*entry) for entry in row["noise"]),
            )
            for row in body["rows"]
        )
        return cls(rows, body["solver"], body["options"], body["consistent"])


def _numbers(row: Row) -> Iterable[Coefficient]:
    yield from row.coefficients()
    yield from row.target or ()
    yield row.offset


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
        plain = [c for c in _numbers(row) if not isinstance(c, Tensor)]
        if not all(map(math.isfinite, [*row.node, *plain, *(n.scale for n in row.noise)])):
            raise ValueError(f"row {k} has a number that is not finite: {row}")
    if plan.consistent:
        for k in range(1, len(rows)):
            residual = identity_residual(rows, k)
            if not residual <= IDENTITY_TOLERANCE:
                raise ValueError(f"row {k} breaks its identities by {residual:.2e}: {rows[k]}")


def identity_residual(rows: Sequence[Row], k: int) -> float:
    """How far row k is from the identities of the module's text.

    Relative to alpha_k, sigma_k and to the largest term that was summed, so that it measures
    rounding and not the size of the schedule.
    """
    row = rows[k]
    signal: list[float] = []
    noise: list[float] = []
    for j, a in row.states:
        signal.append(float(a) * rows[j].node.alpha)
        noise.append(float(a) * rows[j].node.sigma)
    for j, b in row.outputs:
        target, node = rows[j].target, rows[j].node
        assert target is not None
        u, w, q = (float(c) for c in target)
        signal.append(float(b) * (w + q * node.alpha))
        noise.append(float(b) * (u + q * node.sigma))
    added = sum(n.scale**2 for n in row.noise)
    sigma = math.sqrt(max(row.node.sigma**2 - added, 0.0)) if added else row.node.sigma
    return max(
        abs(math.fsum(terms) - wanted) / max([1e-300, abs(wanted), *map(abs, terms)])
        for terms, wanted in ((signal, row.node.alpha), (noise, sigma))
    )


def _show(value: Coefficient) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):+.5g}" if value.ndim == 0 else f"tensor{tuple(value.shape)}"
    return f"{value:+.5g}"


def _role(target: Target | None) -> str:
    if target is None:
        return ""
    return {DATA: "x0", NOISE: "eps", VELOCITY: "v"}.get(target, "g") if _plain(target) else "g"


def _plain(target: Target) -> bool:
    return not any(isinstance(c, Tensor) for c in target)


def table(plan: Plan) -> str:
    """The plan as text: a line a row with its node, what it evaluates and what it combines."""
    head = ("row", "t", "lambda", "alpha", "sigma", "calls", "x_k =")
    lines: list[tuple[str, ...]] = [head]
    for k, row in enumerate(plan.rows):
        terms = [f"{_show(a)} x{j}" for j, a in row.states]
        terms += [f"{_show(b)} g{j}" for j, b in row.outputs]
        if isinstance(row.offset, Tensor) or row.offset:
            terms.append(_show(row.offset))
        terms += [f"{_show(n.scale)} z" for n in row.noise]
        node = row.node
        cells = (f"{v:.6g}" for v in (node.t, node.lam, node.alpha, node.sigma))
        lines.append((str(k), *cells, _role(row.target), "  ".join(terms) or "start"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if i >= len(head) - 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    options = ", ".join(f"{key}={value!r}" for key, value in plan.options.items())
    title = f"{plan.solver or 'plan'}({options}): {plan.nfe} NFE, {len(plan.rows)} rows"
    return "\n".join([title, *text])
