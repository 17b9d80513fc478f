"""``logsnr nfe``: schedulers on the user's own diffusers pipeline, against a converged solution."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from logsnr.benchmarks.contenders import default_contenders, parse_contender
from logsnr.benchmarks.pipeline_findings import Findings
from logsnr.benchmarks.pipeline_report import (
    ERROR_PLOT,
    PICTURES,
    REPORT,
    best,
    cell_text,
    notes,
    write_findings,
)
from logsnr.benchmarks.pipeline_runs import DTYPES, EMBEDDED, Subject, open_pipeline
from logsnr.benchmarks.pipeline_study import (
    RECORDS,
    REFERENCE,
    Job,
    PipelineError,
    Study,
    check_study,
    measure_all,
)

OPTIONS = {
    "call_args": "call-args",
    "guidance_scale": "guidance-scale",
    "reference_nfe": "reference-nfe",
}


def nfe(
    pipeline: Annotated[
        str,
        typer.Option(help="Folder of save_pretrained, ID on the Hub, or the embedded digits."),
    ] = EMBEDDED,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt; a digit for the embedded model.")
    ] = None,
    solvers: Annotated[
        str | None,
        typer.Option(
            help="Solvers with options as in unipc:order=3:karras, 'stock' for the pipeline's own "
            "scheduler, schedulers of diffusers as UniPCMultistep. Default: some of each."
        ),
    ] = None,
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "5,8,10,20",
    seeds: Annotated[str, typer.Option(help="Seeds of the starting noise.")] = "0-3",
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/nfe"),
    height: Annotated[int | None, typer.Option(help="Height of the picture.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the picture.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance.")
    ] = None,
    call_args: Annotated[
        str, typer.Option(help="More arguments of the pipeline's call, as a JSON object.")
    ] = "{}",
    dtype: Annotated[str, typer.Option(help=f"Weights: {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="Default: cuda where there is one, else cpu.")
    ] = None,
    reference_nfe: Annotated[
        str,
        typer.Option(help="Evaluations of the converged solution, and of its error bar."),
    ] = "200,150",
    json_: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of the table.")
    ] = False,
) -> None:
    """Compare solvers on your own pipeline: how far are they from the converged solution?

    The pipeline runs as it is, only its scheduler is exchanged. A run that was killed goes on where
    it stopped when it is started again.

    Example: logsnr nfe --pipeline ./my-model --prompt "a red fox" --nfe 5,10,20 --out results/fox
    """
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={str(out)!r}: need a folder, or a path that does not exist")
        # Everything that can be checked without the weights comes first.
        chosen = None if solvers is None else tuple(map(parse_contender, solvers.split(",")))
        counts = tuple(sorted(numbers("nfe", nfe)))
        picked = numbers("seeds", seeds)
        accuracy = numbers("reference_nfe", reference_nfe)
        if len(accuracy) != 2:
            raise ValueError(f"reference_nfe={reference_nfe!r}: need two numbers, as in 200,150")
        subject = open_pipeline(
            pipeline,
            prompt=prompt,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            dtype=dtype,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            call_args=json_object(call_args),
        )
        contenders = chosen or default_contenders(subject.pipe.scheduler)
        study = Study(contenders, counts, picked, (accuracy[0], accuracy[1]))
        check_study(study, subject)
    except ValueError as error:
        raise bad_parameter(error) from error
    try:
        findings = measure(study, subject, out)
    except PipelineError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    write_findings(findings, out)
    if json_:
        print(json.dumps(findings.as_json(), indent=2))
        return
    console = Console()
    console.print(summary(findings))
    for line in notes(findings):
        console.print(line, highlight=False, markup=False)
    for name in (REPORT, ERROR_PLOT, PICTURES, RECORDS):
        if (out / name).exists():
            console.print(f"  {out / name}", highlight=False, soft_wrap=True)


def summary(findings: Findings) -> Table:
    """RMSE by scheduler and NFE, the least of each column in bold."""
    study = findings.study
    count = len(study.seeds)
    table = Table(
        title=f"RMSE to the converged solution, {count} seed{'s' if count > 1 else ''}",
        caption=f"error bar {findings.error_bar:.1e}",
    )
    table.add_column("scheduler", no_wrap=True)
    for nfe in study.nfe:
        table.add_column(f"{nfe} NFE", justify="right")
    least = {nfe: best(findings, nfe) for nfe in study.nfe}
    for contender in study.contenders:
        cells = [findings.cells[contender.text, nfe] for nfe in study.nfe]
        texts = [
            f"[bold]{cell_text(findings, cell)}[/bold]"
            if cell.rmse is not None and cell.rmse == least[cell.nfe]
            else cell_text(findings, cell)
            for cell in cells
        ]
        table.add_row(contender.text, *texts)
    return table


def measure(study: Study, subject: Subject, out: Path) -> Findings:
    """`measure_all` under a progress bar (on standard error, so that --json can be piped)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    records = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=study.evaluations)
        ended = 0

        def tick(job: Job) -> None:
            name = REFERENCE if job.contender is None else job.contender.text
            progress.update(task, advance=1, description=f"seed {job.seed}: {name}, {job.nfe} NFE")

        for job, record in measure_all(study, subject, out, tick):
            records.append((job, record))
            ended += job.nfe
            # A run that was kept, or that failed, did not pass `tick`.
            progress.update(task, completed=ended)
    return Findings(study, subject.problem, tuple(records), out)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers written as in 0-3,7; ValueError naming the option."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise ValueError(f"{name}={text!r}: need whole numbers, as in 5,8,10 or 0-3") from None
        if high < low:
            raise ValueError(f"{name}={text!r}: {part!r} is an empty range")
        found += range(low, high + 1)
    return tuple(found)


def json_object(text: str) -> Mapping[str, Any]:
    """The arguments of a call that are given as JSON; ValueError for anything but an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"call_args={text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"call_args={text!r}: need a JSON object, as in '{{\"eta\": 0}}'")
    return value


def bad_parameter(error: ValueError) -> typer.BadParameter:
    """The error as one of the option that its text names first."""
    name = str(error).split("=", 1)[0].split(":", 1)[0]
    hint = f"--{OPTIONS.get(name, name)}" if name.isidentifier() else None
    return typer.BadParameter(str(error), param_hint=hint)
