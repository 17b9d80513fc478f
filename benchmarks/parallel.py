"""``logsnr parallel``: sweeps, evaluations, errors and wall time of parallel-in-time sampling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from logsnr.benchmarks.parallel_findings import (
    Findings,
    equal_error_rows,
    run_tables,
    verdict,
)
from logsnr.benchmarks.parallel_report import PLOTS, REPORT, write_findings
from logsnr.benchmarks.parallel_runs import (
    DTYPES,
    MODES,
    PROBLEMS,
    RECORDS,
    SEQUENTIAL,
    Job,
    Settings,
    run_all,
)

_DEFAULTS = Settings()
Entry = TypeVar("Entry")


def parallel(
    problem: Annotated[str, typer.Option(help=f"One of {', '.join(PROBLEMS)}.")] = (
        _DEFAULTS.problem
    ),
    solvers: Annotated[
        str, typer.Option(help="Solvers with options, as in ddim:eta=1.0,unipc:order=3.")
    ] = ",".join(_DEFAULTS.solvers),
    steps: Annotated[str, typer.Option(help="N, the evaluations of the sequential run.")] = (
        ",".join(map(str, _DEFAULTS.steps))
    ),
    tolerances: Annotated[
        str, typer.Option(help="Tolerances; several give the cost at equal error.")
    ] = ",".join(map(str, _DEFAULTS.tolerances)),
    windows: Annotated[str, typer.Option(help="Evaluations in one sweep at most, or all.")] = (
        "all"
    ),
    modes: Annotated[
        str, typer.Option(help=f"Some of {', '.join(MODES)}; {SEQUENTIAL} always runs.")
    ] = ",".join(_DEFAULTS.modes),
    batch: Annotated[int, typer.Option(help="Number of samples.")] = _DEFAULTS.batch,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda, ..")] = (
        _DEFAULTS.device
    ),
    dtype: Annotated[str, typer.Option(help=f"Of network and states: {', '.join(DTYPES)}.")] = (
        _DEFAULTS.dtype
    ),
    seed: Annotated[int, typer.Option(help="Seed of the starts and the noise.")] = _DEFAULTS.seed,
    max_groups: Annotated[
        int, typer.Option(help="Points of a sweep in one network call at most.")
    ] = _DEFAULTS.max_groups,
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
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={str(out)!r}: need a folder, or a path that does not exist")
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
    except ValueError as error:
        raise _bad_parameter(error) from error
    findings = measure(settings, out)
    write_findings(findings, out)
    if json_:
        print(json.dumps(findings.as_json(), indent=2))
        return
    console = Console()
    for title, rows in run_tables(findings):
        console.print(_table(title, rows, "in brackets: predicted"))
    if equal := equal_error_rows(findings):
        console.print(_table("At equal final error: sweeps / evaluations", equal, "interpolated"))
    for line in verdict(findings):
        console.print(line, highlight=False, markup=False)
    for name in (REPORT, *PLOTS, RECORDS):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)


def measure(settings: Settings, out: Path) -> Findings:
    """`run_all` under a progress bar (on standard error, so that --json can be piped)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    found = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("throughput", total=sum(job.work for job in settings.jobs))
        ended = 0
        inside = 0

        def tick(job: Job, states: int) -> None:
            nonlocal inside
            inside = min(inside + states, job.work)
            name = f"{job.solver} {job.nfe}: {job.mode}"
            progress.update(task, completed=ended + inside, description=name)

        for job, record in run_all(settings, out, tick):
            found.append((job, record))
            if job is not None:
                # Records that were there already did not tick, and the work was a guess.
                ended, inside = ended + job.work, 0
                progress.update(task, completed=ended)
    return Findings(settings, tuple(found))


def _table(title: str, rows: list[list[str]], caption: str) -> Table:
    head, *body = rows
    table = Table(title=title, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table


def _entries(name: str, text: str, kind: Callable[[str], Entry]) -> tuple[Entry, ...]:
    try:
        return tuple(kind(entry.strip()) for entry in text.split(","))
    except ValueError:
        raise ValueError(f"{name}={text!r}: need numbers with commas between them") from None


def _bad_parameter(error: ValueError) -> typer.BadParameter:
    """The error as one of the option that its text names first."""
    name = str(error).split("=", 1)[0].replace("_", "-")
    plural = {"window": "windows", "tolerance": "tolerances"}
    return typer.BadParameter(str(error), param_hint=f"--{plural.get(name, name)}")
