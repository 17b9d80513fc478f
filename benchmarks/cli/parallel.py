"""``logsnr parallel``: sweeps, evaluations, errors and wall time of parallel-in-time sampling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from logsnr.benchmarks.cli.command_line import folder, options, progress, working, wrote

if TYPE_CHECKING:
    from logsnr.benchmarks.studies.parallel import Settings
    from logsnr.benchmarks.studies.parallel_findings import Findings

Entry = TypeVar("Entry")


def parallel(
    problem: Annotated[str, typer.Option(help="One of embedded, mixture.")] = "embedded",
    solvers: Annotated[
        str, typer.Option(help="Solvers with options, as in ddim:eta=1.0,unipc:order=3.")
    ] = "ddim,dpm-solver++",
    steps: Annotated[str, typer.Option(help="N, the evaluations of the sequential run.")] = "25,50",
    tolerances: Annotated[
        str, typer.Option(help="Tolerances; several give the cost at equal error.")
    ] = "0.1,0.01,0.001",
    windows: Annotated[str, typer.Option(help="Evaluations in one sweep at most, or all.")] = (
        "all"
    ),
    modes: Annotated[
        str,
        typer.Option(help="Some of published, literal, semilinear, ours; sequential always runs."),
    ] = "published,ours",
    batch: Annotated[int, typer.Option(help="Number of samples.")] = 2,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda, ..")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of network and states: float32, float64, bfloat16.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the starts and the noise.")] = 0,
    max_groups: Annotated[
        int, typer.Option(help="Points of a sweep in one network call at most.")
    ] = 64,
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/parallel"),
    json_: Annotated[
        bool, typer.Option("--json", help="Print the records as JSON instead of the tables.")
    ] = False,
) -> None:
    """Measure parallel-in-time sampling: what does it cost, and when does it pay?

    Every run is compared with the sequential run of the same plan, and with the prediction of the
    cost model. A command that was killed goes on where it stopped when it is started again.

    Example: logsnr parallel --solvers ddim --steps 50,100 --windows 20,all --out results/ddim
    """
    from logsnr.benchmarks.harness.records import RECORDS
    from logsnr.benchmarks.reports.parallel_page import PLOTS, REPORT, write_findings
    from logsnr.benchmarks.studies.parallel import SEQUENTIAL, Settings
    from logsnr.benchmarks.studies.parallel_findings import verdict

    with options({"window": "windows", "tolerance": "tolerances"}):
        settings = Settings(
            problem=problem,
            solvers=_entries("solvers", solvers, str),
            steps=tuple(sorted(_entries("steps", steps, int))),
            tolerances=tuple(sorted(_entries("tolerances", tolerances, float), reverse=True)),
            windows=_entries("windows", windows, lambda w: None if w == "all" else int(w)),
            modes=tuple(m for m in _entries("modes", modes, str) if m != SEQUENTIAL),
            batch=batch,
            seed=seed,
            device=device,
            dtype=dtype,
            max_groups=max_groups,
        )
        folder(out)
    with working(kept=out):
        findings = measure(settings, out)
        write_findings(findings, out)
    if json_:
        typer.echo(json.dumps(findings.as_json(), indent=2))
        return
    print_tables(findings)
    for line in verdict(findings):
        typer.echo(line)
    wrote(out, (REPORT, *PLOTS, RECORDS))


def measure(settings: Settings, out: Path) -> Findings:
    """The findings, with progress on standard error."""
    from logsnr.benchmarks.harness.files import locked
    from logsnr.benchmarks.harness.runner import Runner, followed
    from logsnr.benchmarks.studies.parallel_findings import Findings
    from logsnr.benchmarks.studies.parallel_runs import Asked, Parallel

    def title(job: Asked) -> str:
        return "throughput" if job is None else f"{job.solver} {job.nfe}: {job.mode}"

    jobs: list[Asked] = [None, *settings.jobs]
    work = sum(job.work for job in settings.jobs)
    with locked(out), progress(work, "evaluations, about") as update:
        runner = Runner(Parallel(settings, out), out)
        return Findings(settings, tuple(followed(runner, jobs, update, title)))


def print_tables(findings: Findings) -> None:
    """Sweeps and evaluations of every run, and at equal final error."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from logsnr.benchmarks.studies.parallel_findings import equal_error_rows, run_tables

    def show(title: str, rows: list[list[str]], caption: str) -> None:
        head, *body = rows
        table = Table(
            title=title, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
        )
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in body:
            table.add_row(*row)
        Console().print(table)

    for title, rows in run_tables(findings):
        show(title, rows, "in brackets: predicted")
    if equal := equal_error_rows(findings):
        show("At equal final error: sweeps / evaluations", equal, "interpolated")


def _entries(name: str, text: str, kind: Callable[[str], Entry]) -> tuple[Entry, ...]:
    try:
        return tuple(kind(entry.strip()) for entry in text.split(","))
    except ValueError:
        raise ValueError(f"{name}={text!r}: need numbers with commas between them") from None
