"""``logsnr order``: declared beside measured orders of solvers, as a table, a plot, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logsnr.benchmarks.cli.command_line import file, json_value, options, progress, working

if TYPE_CHECKING:
    from logsnr.benchmarks.reports.order_table import Measured

Job = tuple[str, dict[str, Any]]
"""(solver, options)"""


def order(
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="A solver, or module:function for your own (grid, nfe, **options) -> Plan, also "
            "of a module in the current folder. Repeat for several; default: all."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="An option of all the solvers, as order=3, or of one, as unipc:order=3."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Every method that the solvers offer.")
    ] = False,
    grid: Annotated[
        str, typer.Option(help="Where the steps lie: logsnr, uneven, ratio.")
    ] = "logsnr",
    paths: Annotated[
        int, typer.Option(min=0, help="Paths that are drawn for the weak order of a method.")
    ] = 65536,
    out: Annotated[Path | None, typer.Option(help="Write the log-log plot to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table between the markers of this page.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the order of solvers and print it beside the order they declare.

    Local order: one step from exact history. Global order: a whole run from an exact start. With
    noise, strong order: the same Brownian path; weak order: the moments. All are the smaller of
    two problems with known solutions, a Gaussian and a mixture of Gaussians.

    Example: logsnr order --solver unipc --solver adams --set order=3 --out orders.png
    """
    from logsnr.benchmarks.reports.order_table import plot, record, write_page
    from logsnr.benchmarks.studies.orders import check, measure_any
    from logsnr.solvers import SOLVERS

    with options(), current_folder():
        jobs = jobs_of(solver or list(SOLVERS), settings_of(set_ or []), every)
        for name, chosen in jobs:
            check(name, grid=grid, **chosen)
        file(out)
        file(markdown, "markdown")
    measured: list[Measured] = []
    with working(), options(), current_folder(), progress(len(jobs), "methods") as update:
        for name, chosen in jobs:
            measured.append(measure_any(name, grid=grid, paths=paths, **chosen))
            update(len(measured), name)
    with working():
        if out is not None:
            plot(measured).savefig(out, dpi=150)
        if markdown is not None:
            write_page(markdown, measured)
    if json_:
        typer.echo(json.dumps([record(entry) for entry in measured], indent=1))
    else:
        print_table(measured)


@contextmanager
def current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported inside, as Python itself does it."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def settings_of(texts: Sequence[str]) -> dict[str | None, dict[str, Any]]:
    """The options of --set by solver; None for those of all."""
    found: dict[str | None, dict[str, Any]] = {None: {}}
    for text in texts:
        key, equals, value = text.partition("=")
        solver, _, name = key.rpartition(":")
        if not equals or not name:
            raise ValueError(
                f"set={text!r}: need name=value, such as order=3, or solver:name=value, such as "
                "unipc:order=3"
            )
        found.setdefault(solver or None, {})[name] = json_value(value)
    return found


def jobs_of(
    names: Sequence[str], settings: Mapping[str | None, Mapping[str, Any]], every: bool
) -> list[Job]:
    """What to measure. The settings select among the methods if ``every`` is asked for.

    Raises ValueError for settings of a solver that is not among ``names``.
    """
    from logsnr.benchmarks.studies.solver_methods import variations

    for owner in settings:
        if owner is not None and owner not in names:
            raise ValueError(f"set={owner!r}: choose a solver of {', '.join(names)}")
    chosen = {name: {**settings[None], **settings.get(name, {})} for name in names}
    if not every:
        return list(chosen.items())
    return [
        (name, found)
        for name, wanted in chosen.items()
        for noisy in (False, True)
        for found in variations(name, noisy=noisy)
        if all(found.get(key) == value for key, value in wanted.items())
    ]


def print_table(measured: Sequence[Measured]) -> None:
    """A line a method, of methods without noise and of those with noise in two tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from logsnr.benchmarks.reports.order_table import cells, tables

    for columns, entries in tables(measured):
        table = Table(box=SIMPLE)
        for i, name in enumerate(columns):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
        for entry in entries:
            table.add_row(*cells(entry))
        Console().print(table)
