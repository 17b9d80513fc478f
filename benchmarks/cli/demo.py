"""``logsnr demo``: solvers side by side on the embedded digits model, as a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logsnr.benchmarks.cli.command_line import folder, numbers, options, progress, working, wrote
from logsnr.benchmarks.studies.demo_methods import LINEUPS, NAMES, NFE, SAMPLES

if TYPE_CHECKING:
    from logsnr.benchmarks.harness.protocol import Record
    from logsnr.benchmarks.studies.demo import Settings


def demo(
    model: Annotated[
        str, typer.Option(help=f"The embedded model: {' or '.join(LINEUPS)}.")
    ] = "faces",
    samples: Annotated[int, typer.Option(help="Number of samples, at least 2.")] = SAMPLES,
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = (
        ",".join(map(str, NFE))
    ),
    solvers: Annotated[str, typer.Option(help=f"Some of {', '.join(NAMES)}.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = 0,
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1 is off.")
    ] = 1.0,
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/demo"),
    json_: Annotated[
        bool, typer.Option("--json", help="Print the records as JSON instead of the table.")
    ] = False,
) -> None:
    """Compare solvers on an embedded model, next to diffusers' own schedulers.

    All start from the same noise and are measured by their distance to the converged solution.
    A run that was killed goes on where it stopped when it is started again.

    Example: logsnr demo --samples 100 --nfe 6,12 --solvers unipc-3,stock-unipc-2 --out results/a
    """
    from logsnr.benchmarks.harness.records import RECORDS
    from logsnr.benchmarks.reports.demo_page import (
        ERROR_PLOT,
        PICTURES,
        REPORT,
        verdict,
        write_report,
    )
    from logsnr.benchmarks.studies.demo import Settings
    from logsnr.solvers.names import as_spelled

    asked = () if solvers == "all" else map(str.strip, solvers.split(","))
    names = (as_spelled(name, NAMES) or name for name in asked)
    with options():
        settings = Settings(
            model=model,
            samples=samples,
            nfe=tuple(sorted(numbers("nfe", nfe))),
            solvers=tuple(names),
            seed=seed,
            guidance=guidance,
        )
        folder(out)
    with working(kept=out):
        records = measure(settings, out)
        write_report(out, settings, records)
    if json_:
        typer.echo(json.dumps(records, indent=2))
        return
    print_summary(settings, records)
    typer.echo(verdict(settings, records))
    wrote(out, (REPORT, ERROR_PLOT, PICTURES, RECORDS))


def measure(settings: Settings, out: Path) -> list[Record]:
    """All records, the reference first, with the progress on standard error."""
    from logsnr.benchmarks.harness.files import locked
    from logsnr.benchmarks.harness.runner import Runner, followed
    from logsnr.benchmarks.harness.study import Job, jobs
    from logsnr.benchmarks.studies.demo import comparison

    def title(job: Job) -> str:
        return "converged solution" if job.contender is None else job.contender.text

    study = settings.study
    with locked(out), progress(study.evaluations, "evaluations") as update:
        runner = Runner(comparison(settings, out), out)
        return [record for _, record in followed(runner, jobs(study), update, title)]


def print_summary(settings: Settings, records: list[Record]) -> None:
    """Errors of the median sample and of all, by solver and NFE, and the FID at the last NFE."""
    from rich.console import Console
    from rich.table import Table

    from logsnr.benchmarks.reports.demo_page import rows

    said = f"to the converged solution, {settings.samples} samples"
    distances = rows(settings, records, lambda r: f"{r['fid']:.1f}")
    shown = {"rmse_median": f"RMSE of the median sample {said}", "rmse": f"RMSE {said}"}
    for key, title in shown.items():
        table = Table(title=title)
        table.add_column("solver")
        for nfe in settings.nfe:
            table.add_column(f"{nfe} NFE", justify="right")
        errors = rows(settings, records, lambda r: f"{r[key]:.4f}")  # noqa: B023
        if key == "rmse":
            table.caption = f"FID of the converged solution: {records[0]['fid']:.1f}"
            table.add_column(f"FID at {settings.nfe[-1]}", justify="right")
            errors = [[*row, last[-1]] for row, last in zip(errors, distances, strict=True)]
        for row in errors:
            table.add_row(*row)
        Console().print(table)
