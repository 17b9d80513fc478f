"""``logsnr demo``: solvers side by side on the embedded digits model, as a table and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from logsnr.benchmarks.comparison import BATCH, METHODS, RECORDS, REFERENCE, Settings, compare
from logsnr.benchmarks.report import ERROR_PLOT, PICTURES, REPORT, rows, verdict, write_report
from logsnr.benchmarks.results import Record

_DEFAULTS = Settings()


def demo(
    samples: Annotated[int, typer.Option(help="Number of samples, at least 2.")] = (
        _DEFAULTS.samples
    ),
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = (
        ",".join(map(str, _DEFAULTS.nfe))
    ),
    solvers: Annotated[str, typer.Option(help=f"Some of {', '.join(METHODS)}.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = _DEFAULTS.seed,
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1 is off.")
    ] = _DEFAULTS.guidance,
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/demo"),
    json_: Annotated[
        bool, typer.Option("--json", help="Print the records as JSON instead of the table.")
    ] = False,
) -> None:
    """Compare solvers on the embedded model of digits, next to diffusers' own schedulers.

    All start from the same noise and are measured by their distance to the converged solution.
    A run that was killed goes on where it stopped when it is started again.

    Example: logsnr demo --samples 100 --nfe 6,12 --solvers unipc-3,stock-unipc-2 --out results/a
    """
    settings = _settings(samples, nfe, solvers, seed, guidance, out)
    records = _run(settings, out)
    write_report(out, settings, records)
    if json_:
        print(json.dumps(records, indent=2))
        return
    console = Console()
    console.print(summary(settings, records))
    console.print(verdict(settings, records), highlight=False)
    for name in (REPORT, ERROR_PLOT, PICTURES, RECORDS):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)


def summary(settings: Settings, records: Sequence[Record]) -> Table:
    """RMSE by solver and NFE, and the FID at the last NFE."""
    last = settings.nfe[-1]
    table = Table(
        title=f"RMSE to the converged solution, {settings.samples} samples",
        caption=f"FID of the converged solution: {records[0]['fid']:.1f}",
    )
    table.add_column("solver")
    for nfe in settings.nfe:
        table.add_column(f"{nfe} NFE", justify="right")
    table.add_column(f"FID at {last}", justify="right")
    errors = rows(settings, records, lambda r: f"{r['rmse']:.4f}")
    distances = rows(settings, records, lambda r: f"{r['fid']:.1f}")
    for error, distance in zip(errors, distances, strict=True):
        table.add_row(*error, distance[-1])
    return table


def _settings(
    samples: int, nfe: str, solvers: str, seed: int, guidance: float, out: Path
) -> Settings:
    """The options as `Settings`; a bad value ends the command (exit code 2) naming the option."""
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={str(out)!r}: need a folder, or a path that does not exist")
        return Settings(
            samples=samples,
            nfe=tuple(sorted(_whole_numbers(nfe))),
            solvers=tuple(METHODS if solvers == "all" else _entries(solvers)),
            seed=seed,
            guidance=guidance,
        )
    except ValueError as error:
        name, _ = str(error).split("=", 1)
        raise typer.BadParameter(str(error), param_hint=f"--{name}") from error


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",")]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(entry) for entry in _entries(text)]
    except ValueError:
        raise ValueError(f"nfe={text!r}: need whole numbers with commas, as in 5,8,10") from None


def _run(settings: Settings, out: Path) -> list[Record]:
    """`compare` under a progress bar (on standard error, so that --json can be piped)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} evaluations"),
        TimeElapsedColumn(),
    )
    batches = -(-settings.samples // BATCH)
    records = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        converged = progress.add_task("converged solution", total=None)
        solvers = progress.add_task("solvers", total=sum(n for _, n in settings.runs), start=False)

        def watch(name: str) -> None:
            progress.advance(converged if name == REFERENCE else solvers, 1 / batches)

        for record in compare(settings, out, watch):
            records.append(record)
            if record["solver"] == REFERENCE:
                count = record["nfe_counted"]
                progress.update(converged, total=count, completed=count)
                progress.start_task(solvers)
            else:
                # A record that was there already, or a run that diverged, did not pass `watch`.
                progress.update(solvers, completed=sum(r["nfe"] for r in records[1:]))
    return records
