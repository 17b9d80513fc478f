"""``logsnr order``: declared beside measured orders of solvers, as a table, a plot, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from logsnr.solvers import SOLVERS

from .orders import GRIDS, Curve, Measurement, full_options, measure, resolve, variations

BEGIN, END = "<!-- begin measured orders -->", "<!-- end measured orders -->"
COLUMNS = ("solver", "options", "grid", "declared", "local", "global")
Job = tuple[str, dict[str, Any], str]
"""(solver, options, grid)"""


def order(
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered solver, or module:function for your own (grid, nfe, **options) "
            "-> Plan. Repeat for several; default: all that are registered."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the solvers, as order=3.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Every method that the solvers offer.")
    ] = False,
    grid: Annotated[str, typer.Option(help=f"Where the steps lie: {', '.join(GRIDS)}.")] = "logsnr",
    out: Annotated[Path | None, typer.Option(help="Write the log-log plot to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table between the markers of this page.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the order of solvers and print it beside the order they declare.

    Local order: one step from exact history. Global order: a whole run from an exact start. Both
    are the smaller of two problems with known solutions, a Gaussian and a mixture of Gaussians.

    Example: logsnr order --solver unipc --solver adams --set order=3 --out orders.png
    """
    try:
        jobs = _jobs(solver or list(SOLVERS), _parsed(set_ or []), grid, every)
        console = Console(stderr=True)
        steps = jobs if json_ else track(jobs, "measuring", console=console, transient=True)
        measured = [measure(name, grid=where, **options) for name, options, where in steps]
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None
    if out is not None:
        plot(measured).savefig(out, dpi=150)
    if markdown is not None:
        write_page(markdown, measured)
    if json_:
        typer.echo(json.dumps([_record(entry) for entry in measured], indent=1))
        return
    table = Table(box=SIMPLE)
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if i < 3 else "right", overflow="fold")
    for entry in measured:
        table.add_row(*cells(entry))
    Console().print(table)


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: need name=value, such as order=3")
        try:
            options[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _jobs(names: Sequence[str], options: Mapping[str, Any], grid: str, every: bool) -> list[Job]:
    """What to measure. ``options`` selects among the methods if ``every`` is asked for."""
    if not every:
        return [(name, dict(options), grid) for name in names]
    return [
        (name, found, grid)
        for name in names
        for found in variations(name)
        if all(found.get(key) == value for key, value in options.items())
    ]


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


def _record(entry: Measurement) -> dict[str, Any]:
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
