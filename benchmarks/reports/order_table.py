"""Declared beside measured orders of solvers, as a table, a plot, or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..studies.curves import Curve
from ..studies.orders import Measurement
from ..studies.sde_orders import SdeMeasurement
from ..studies.solver_methods import full_options, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEGIN, END = "<!-- begin measured orders -->", "<!-- end measured orders -->"
COLUMNS = ("solver", "options", "grid", "declared", "local", "global")
SDE_BEGIN, SDE_END = "<!-- begin measured SDE orders -->", "<!-- end measured SDE orders -->"
SDE_COLUMNS = ("solver", "options", "declared strong", "strong", "declared weak", "weak")

Measured = Measurement | SdeMeasurement


def label(solver: str, options: Mapping[str, Any]) -> str:
    """The options that differ from the solver's defaults, and always the order."""
    defaults = full_options(solver, resolve(solver)[1], {})
    full = {**defaults, **options}
    shown = (key for key in full if key == "order" or full[key] != defaults.get(key))
    return ", ".join(f"{key}={full[key]}" for key in shown)


def cells(entry: Measured) -> list[str]:
    """The entries of `COLUMNS`, or of `SDE_COLUMNS` for a method that adds noise."""
    head = [entry.solver, label(entry.solver, entry.options)]
    orders = [f"{value:.2f}" for value in entry.orders.values()]
    if isinstance(entry, Measurement):
        return [*head, entry.grid, _declared(entry.declared), *orders]
    declared = map(_declared, entry.expected.values())
    return head + [cell for pair in zip(declared, orders, strict=True) for cell in pair]


def _declared(order: float | None) -> str:
    return "-" if order is None else f"{order:g}"


def tables(measured: Sequence[Measured]) -> list[tuple[tuple[str, ...], list[Measured]]]:
    """(columns, entries) of the methods without and of those with noise, if there are any."""
    groups: dict[tuple[str, ...], list[Measured]] = {COLUMNS: [], SDE_COLUMNS: []}
    for entry in measured:
        groups[COLUMNS if isinstance(entry, Measurement) else SDE_COLUMNS].append(entry)
    return [(columns, entries) for columns, entries in groups.items() if entries]


def write_page(page: Path, measured: Sequence[Measured]) -> None:
    """Put the rows of the measured solvers into the tables between a Markdown page's markers.

    Rows of other solvers stay. Raises ValueError for a page without the markers.
    """
    text = page.read_text()
    for columns, entries in tables(measured):
        first, last = (BEGIN, END) if columns == COLUMNS else (SDE_BEGIN, SDE_END)
        head, begin, rest = text.partition(first)
        old, end, tail = rest.partition(last)
        if not (begin and end):
            raise ValueError(f"{page} needs the lines {first} and {last}")
        left = 3 if columns == COLUMNS else 2
        rule = ["---"] * left + ["--:"] * (len(columns) - left)
        rows = [columns, rule, *_merged(rows_of(old)[1:], [cells(entry) for entry in entries])]
        lines = "".join("| " + " | ".join(row) + " |\n" for row in rows)
        text = f"{head}{first}\n\n{lines}\n{last}{tail}"
    page.write_text(text)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table, its header first."""
    lines = (line.strip() for line in table.splitlines())
    rows = (line[1:-1].split(" | ") for line in lines if line.startswith("|"))
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if not row[0].startswith("---")]


def _merged(old: list[list[str]], new: list[list[str]]) -> list[list[str]]:
    """``new`` in the place of the rows of its solvers, those of solvers not in ``old`` last."""
    waiting: dict[str, list[list[str]]] = {}
    for row in new:
        waiting.setdefault(row[0], []).append(row)
    replaced = set(waiting)
    merged: list[list[str]] = []
    for row in old:
        if row[0] in replaced:
            merged += waiting.pop(row[0], [])
        else:
            merged.append(row)
    return merged + [row for rows in waiting.values() for row in rows]


def record(entry: Measured) -> dict[str, Any]:
    """A measurement as JSON values; what could not be measured is None."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def curves(found: Mapping[str, Curve]) -> dict[str, Any]:
        return {
            name: asdict(curve) | {"slope": finite(curve.slope)} for name, curve in found.items()
        }

    content: dict[str, Any] = {
        "solver": entry.solver,
        "options": dict(entry.options),
        "grid": entry.grid,
    }
    if isinstance(entry, Measurement):
        content["declared"] = entry.declared
    else:
        content |= {f"declared_{kind}": value for kind, value in entry.expected.items()}
    content |= {f"{kind}_order": finite(value) for kind, value in entry.orders.items()}
    return content | {kind: curves(found) for kind, found in entry.curves.items()}


def plot(measured: Sequence[Measured]) -> Figure:
    """Errors over step size on the mixture, with the declared slopes dashed."""
    from matplotlib.figure import Figure

    groups = [entries for _, entries in tables(measured)]
    figure = Figure(figsize=(10, 4.5 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for axes_of_group, entries in zip(grid, groups, strict=True):
        for axes, kind in zip(axes_of_group, entries[0].curves, strict=True):
            _draw(axes, kind, entries)
        axes_of_group[-1].legend(fontsize=7)
    return figure


def _draw(axes: Axes, kind: str, entries: Sequence[Measured]) -> None:
    for i, entry in enumerate(entries):
        curve, declared, colour = entry.curves[kind]["mixture"], entry.expected[kind], f"C{i % 10}"
        name = f"{entry.solver} {label(entry.solver, entry.options)}"
        axes.loglog(curve.h, curve.errors, "o-", color=colour, label=name)
        if declared is not None:
            slope = declared + (kind == "local")
            line = [curve.errors[0] * (h / curve.h[0]) ** slope for h in curve.h]
            axes.loglog(curve.h, line, "--", color=colour, alpha=0.5)
    axes.set_title(f"{kind} error (dashed: declared order)")
    axes.set_xlabel("step size h in lambda")
    axes.set_ylabel("rms error")
    axes.grid(True, which="major", alpha=0.3)
