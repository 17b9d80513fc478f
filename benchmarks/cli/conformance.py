"""``logsnr conformance DIR``: our solvers against recorded runs of official implementations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logsnr.benchmarks.cli.command_line import file, options, progress, working

if TYPE_CHECKING:
    from rich.console import Console

    from logsnr.benchmarks.official.compare import Comparison, Summary


def conformance(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of reference cases.")],
    family: Annotated[
        list[str] | None, typer.Option(help="Only this family (repeat for several).")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every case that is not matched.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Compare our solvers with recorded runs of the official implementations.

    Every case of DIR is run with our solver of the same configuration, in float64 on the exact
    model of the folder. It is matched if the result agrees within 1e-9 and the network was called
    at the same times. The exit status is 1 if a case that is not matched has no explanation.

    Example: logsnr conformance reference/ --family unipc --family deis -v
    """
    from logsnr.benchmarks.official.compare import TOLERANCE, compare, load_folder, summarise

    with options():
        model, cases = load_folder(folder, family or None)
        file(out)
    comparisons = []
    with working(), progress(len(cases), "cases") as update:
        for case in cases:
            comparisons.append(compare(case, model))
            update(len(comparisons), case.family)
    summaries = summarise(comparisons)
    record = {
        "tolerance": TOLERANCE,
        "families": [asdict(summary) for summary in summaries],
        "cases": [asdict(comparison) for comparison in comparisons],
    }
    if out is not None:
        with working():
            out.write_text(json.dumps(record, indent=1) + "\n")
    if json_:
        typer.echo(json.dumps(record, indent=1))
    else:
        _print(summaries, [c for c in comparisons if c.status != "matched"] if verbose else [])
    if any(summary.unexplained for summary in summaries):
        raise typer.Exit(1)


def _print(summaries: Sequence[Summary], listed: Sequence[Comparison]) -> None:
    # Reasons are sentences: do not let a narrow terminal fold the table's numbers.
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    _print_table(console, summaries)
    for summary in summaries:
        for status, reasons in summary.reasons.items():
            for reason, count in reasons.items():
                console.print(f"{summary.family}: {count} {status}: {reason}", markup=False)
    for entry in listed:
        error = "" if entry.error is None else f" (error {entry.error:.1e})"
        console.print(
            f"{entry.id} {entry.name}: {entry.status}: {entry.reason}{error}", markup=False
        )


def _print_table(console: Console, summaries: Sequence[Summary]) -> None:
    from rich.table import Table

    from logsnr.benchmarks.official.compare import STATUSES

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("family", no_wrap=True)
    for heading in ("cases", *STATUSES, "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        counts = (getattr(summary, key) for key in ("cases", *STATUSES))
        table.add_row(summary.family, *map(str, counts), _error(summary.worst_error))
    total: Any = [sum(getattr(s, key) for s in summaries) for key in ("cases", *STATUSES)]
    table.add_section()
    worst = max((s.worst_error for s in summaries if s.worst_error is not None), default=None)
    table.add_row("all", *map(str, total), _error(worst))
    console.print(table)


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
