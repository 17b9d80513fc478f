"""``logsnr nfe``: schedulers side by side on one pipeline, with the same prompt and noise.

For every seed the truth is a converged solution of the probability-flow ODE, computed by the
pipeline itself with many evaluations; a second, coarser solution gives its error bar. Every state
is kept, so distances always belong to the reference that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from logsnr.benchmarks.harness.comparison import Comparison, check_study
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.runner import FAILED, OK, Follow, Runner, Watch
from logsnr.benchmarks.harness.study import Job, Study, jobs
from logsnr.benchmarks.harness.subjects.pipeline import PipelineSubject
from logsnr.benchmarks.studies.nfe_findings import Findings
from logsnr.benchmarks.studies.nfe_fit import fitted


class PipelineError(ValueError):
    """The pipeline cannot compute its own converged solution, so there is nothing to measure."""


def evaluations(study: Study, trial: Study | None = None) -> float:
    """Of a study, and of a fit before it, at most: references are shared, a contender joins."""
    if trial is None:
        return study.evaluations
    shared = len(trial.seeds) * sum(trial.reference_nfe)
    return study.evaluations + trial.evaluations - shared + len(study.seeds) * sum(study.nfe)


def measure(
    study: Study,
    subject: PipelineSubject,
    out: Path,
    update: Callable[[float, str], None],
    trial: Study | None = None,
) -> Findings:
    """The findings of a study, each contender tried first; progress is told to ``update``.

    trial : the runs of a fit (see `fit_study`). They come first, and `PlanScheduler` with the
        location that they tell joins the contenders.

    Raises ValueError if the pipeline cannot be driven by one of them.
    """
    follow = Follow(Comparison(study, subject, out), update, lambda job: job.title)
    for job in try_contenders(study, subject, out, follow.watch):
        follow.end(job)

    def findings_of(study: Study) -> Findings:
        records: list[tuple[Job, Record]] = []
        for job, record in measure_all(study, subject, out, follow.watch):
            records.append((job, record))
            follow.end(job)
        return Findings(study, subject.about, tuple(records), out)

    if trial is None:
        return findings_of(study)
    fit = fitted(findings_of(trial), subject)
    joined = fit.joins(study.contenders)
    return replace(findings_of(replace(study, contenders=joined)), fit=fit)


def measure_all(
    study: Study, subject: PipelineSubject, folder: Path, watch: Watch[Job] | None = None
) -> Iterator[tuple[Job, Record]]:
    """Make every run that ``folder`` does not hold yet; yields each job with its record.

    A run in which the pipeline fails is recorded with status "failed" and its message, and is
    tried again the next time; a state that is not finite has status "diverged".

    Raises `PipelineError` if the pipeline fails, or diverges, on the reference.
    """
    check_study(study, subject)
    for job, record in Runner(Comparison(study, subject, folder), folder).run(jobs(study), watch):
        if job.contender is None and record["status"] != OK:
            raise PipelineError(
                f"the pipeline {record['status']} on the reference: {record['note']}"
            )
        yield job, record


def try_contenders(
    study: Study, subject: PipelineSubject, folder: Path, watch: Watch[Job] | None = None
) -> Iterator[Job]:
    """Make the shortest run of every contender, which `measure_all` will find kept.

    Raises `PipelineError` at the end, naming those with which the pipeline fails.
    """
    check_study(study, subject)
    first = [Job(contender, min(study.nfe), study.seeds[0]) for contender in study.contenders]
    failed = []
    for job, record in Runner(Comparison(study, subject, folder), folder).run(first, watch):
        if record["status"] == FAILED and job.contender is not None:
            failed.append(f"{job.contender.text} ({record['note']})")
        yield job
    if failed:
        raise PipelineError(
            f"solvers: {type(subject.pipe).__name__} cannot be run with {', '.join(failed)}; leave "
            f"{'it' if len(failed) == 1 else 'them'} out"
        )
