"""Declared beside measured orders of solvers, as a table, a plot, or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..studies.orders import Curve, Measurement, full_options, resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- begin measured orders -->", "<!-- end measured orders -->"
COLUMNS = ("solver", "options", "grid", "declared", "local", "global")


def label(solver: str, options: Mapping[str, Any]) -> str:
    """The options that differ from the solver's defaults, and always the order."""
    defaults = full_options(solver, resolve(solver)[1], {})
    full = {**defaults, **options}
    shown = (key for key in full if key == "order" or full[key] != defaults.get(key))
    return ", ".join(f"{key}={full[key]}" for key in shown)


def cells(entry: Measurement) -> list[str]:
    """The entries of `COLUMNS`."""
    declared = "-" if entry.declared is None else str(entry.declared)
    orders = (f"{value:.2f}" for value in (entry.local_order, entry.global_order))
    return [entry.solver, label(entry.solver, entry.options), entry.grid, declared, *orders]


def write_page(page: Path, measured: Sequence[Measurement]) -> None:
    """Put the table between the markers of a Markdown page; ValueError if it has none."""
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} needs the lines {BEGIN} and {END}")
    rows = [COLUMNS, ["---"] * 3 + ["--:"] * 3, *map(cells, measured)]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    page.write_text(f"{head}{BEGIN}\n\n{lines}\n{END}{tail}")


def record(entry: Measurement) -> dict[str, Any]:
    """A measurement as JSON values."""

    def curves(found: Mapping[str, Curve]) -> dict[str, Any]:
        return {name: asdict(curve) | {"slope": curve.slope} for name, curve in found.items()}

    return {
        "solver": entry.solver,
        "options": dict(entry.options),
        "grid": entry.grid,
        "declared": entry.declared,
        "local_order": entry.local_order,
        "global_order": entry.global_order,
        "local": curves(entry.local),
        "global": curves(entry.global_),
    }


def plot(measured: Sequence[Measurement]) -> Figure:
    """Errors over step size on the mixture, with the declared slopes dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("local", "global"), strict=True):
        for i, entry in enumerate(measured):
            curves = entry.local if kind == "local" else entry.global_
            curve, colour = curves["mixture"], f"C{i % 10}"
            name = f"{entry.solver} {label(entry.solver, entry.options)}"
            axes.loglog(curve.h, curve.errors, "o-", color=colour, label=name)
            if entry.declared is not None:
                slope = entry.declared + (kind == "local")
                line = [curve.errors[0] * (h / curve.h[0]) ** slope for h in curve.h]
                axes.loglog(curve.h, line, "--", color=colour, alpha=0.5)
        axes.set_title(f"{kind} error (dashed: declared order)")
        axes.set_xlabel("step size h in lambda")
        axes.set_ylabel("rms error")
        axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=7)
    return figure
