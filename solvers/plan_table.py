"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from .node import DATA, NOISE, VELOCITY, Coefficient, Target
from .noise_terms import Noise
from .scalar import plain

if TYPE_CHECKING:
    from .plan import Plan


def _show(value: Coefficient) -> str:
    if isinstance(value, Tensor):
        return f"{plain(value):+.5g}" if value.ndim == 0 else f"tensor{tuple(value.shape)}"
    return f"{value:+.5g}"


def _random(term: Noise) -> str:
    return f"{_show(term.scale)} z" + ("" if term.moment == 0 else str(term.moment))


def _role(target: Target | None) -> str:
    if target is None:
        return ""
    return {DATA: "x0", NOISE: "eps", VELOCITY: "v"}.get(target, "g") if _plain(target) else "g"


def _plain(target: Target) -> bool:
    return not any(isinstance(c, Tensor) for c in target)


def table(plan: Plan) -> str:
    """The plan as text: a line a row with its node, what it evaluates and what it combines."""
    told = plan.tells_times
    head = ("row", "t", *["told"] * told, "lambda", "alpha", "sigma", "calls", "x_k =")
    lines: list[tuple[str, ...]] = [head]
    for k, row in enumerate(plan.rows):
        terms = [f"{_show(a)} x{j}" for j, a in row.states]
        terms += [f"{_show(b)} g{j}" for j, b in row.outputs]
        if isinstance(row.offset, Tensor) or row.offset:
            terms.append(_show(row.offset))
        terms += [_random(term) for term in row.noise]
        node = row.node
        times = (node.t, *[node.call[0]] * told)
        cells = (f"{plain(v):.6g}" for v in (*times, node.lam, node.alpha, node.sigma))
        lines.append((str(k), *cells, _role(row.target), "  ".join(terms) or "start"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if i >= len(head) - 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    said = {key: value for key, value in plan.options.items() if not isinstance(value, Mapping)}
    options = ", ".join(f"{key}={value!r}" for key, value in said.items())
    title = f"{plan.solver or 'plan'}({options}): {plan.nfe} NFE, {len(plan.rows)} rows"
    return "\n".join([title, *text])
