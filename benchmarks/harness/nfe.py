"""Schedulers on a user's pipeline: from the options of ``logsnr nfe`` to findings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.table import Table

from logsnr.benchmarks.cli.command_line import numbers, progress
from logsnr.benchmarks.harness.contenders import Contender, parse_contender
from logsnr.benchmarks.harness.old_records import Record
from logsnr.benchmarks.harness.pipeline_findings import Findings
from logsnr.benchmarks.harness.pipeline_fit import fitted
from logsnr.benchmarks.harness.pipeline_runs import Subject
from logsnr.benchmarks.harness.pipeline_study import (
    REFERENCE,
    Job,
    Study,
    measure_all,
    try_contenders,
)
from logsnr.benchmarks.reports.pipeline_page import best, cell_text


def contenders_of(solvers: str | None) -> tuple[Contender, ...] | None:
    """The contenders of the option ``--solvers``, None for those that suit the pipeline."""
    return None if solvers is None else tuple(map(parse_contender, solvers.split(",")))


def accuracy_of(reference_nfe: str) -> tuple[int, int]:
    """The two numbers of the option ``--reference-nfe``."""
    given = numbers("reference_nfe", reference_nfe)
    if len(given) != 2:
        raise ValueError(f"reference_nfe={reference_nfe!r}: need two numbers, as in 200,150")
    return given[0], given[1]


def measure(study: Study, subject: Subject, out: Path, trial: Study | None = None) -> Findings:
    """`measure_all` with progress on standard error, each contender tried first.

    trial : the runs of a fit (see `fit_study`). They come first, and `PlanScheduler` with the
        location that they tell joins the contenders.

    Raises ValueError if the pipeline cannot be driven by one of them.
    """
    ended: set[Job] = set()
    inside = 0
    total = study.evaluations if trial is None else _evaluations_with(study, trial)

    with progress(total, "evaluations") as update:

        def tick(job: Job) -> None:
            nonlocal inside
            inside += 1
            name = REFERENCE if job.contender is None else job.contender.text
            update(done() + inside, f"seed {job.seed}: {name}, {job.nfe} NFE")

        def done() -> int:
            return sum(job.nfe for job in ended)

        def end(job: Job) -> None:
            # A run that was kept, or that failed, did not pass `tick`.
            nonlocal inside
            ended.add(job)
            inside = 0
            update(done(), f"seed {job.seed}")

        def findings_of(study: Study) -> Findings:
            records: list[tuple[Job, Record]] = []
            for job, record in measure_all(study, subject, out, tick):
                records.append((job, record))
                end(job)
            return Findings(study, subject.problem, tuple(records), out)

        for job in try_contenders(study, subject, out, tick):
            end(job)
        if trial is None:
            return findings_of(study)
        fit = fitted(findings_of(trial), subject)
        joined = fit.joins(study.contenders)
        return replace(findings_of(replace(study, contenders=joined)), fit=fit)


def _evaluations_with(study: Study, trial: Study) -> int:
    """Of a study, of the runs of a fit, and of the contender that joins; references once."""
    shared = len(trial.seeds) * sum(trial.reference_nfe)
    return study.evaluations + trial.evaluations - shared + len(study.seeds) * sum(study.nfe)


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
