"""``logsnr bench``: the jobs of a suite, subject by subject, in one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from logsnr.benchmarks.harness.comparison import Comparison, check_study
from logsnr.benchmarks.harness.files import claim, locked
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.records import STATUS, mend, record_files
from logsnr.benchmarks.harness.runner import FILES, Follow, Runner
from logsnr.benchmarks.harness.study import Job, jobs
from logsnr.benchmarks.harness.subjects import Subject
from logsnr.benchmarks.harness.suite import Suite, claimed
from logsnr.solvers.processes import Ranks

Update = Callable[[float, str], None]
Progress = Callable[[float], AbstractContextManager[Update]]
"""The total of the work -> what is told how much is done, and what is being done."""


@contextmanager
def quietly(total: float) -> Iterator[Update]:
    """No progress."""
    yield lambda done, text: None


def opened(suite: Suite) -> list[Subject]:
    """The subjects of the suite, in its order.

    Raises ValueError for one that cannot be opened, a contender that it cannot run, a metric that
    it does not have.
    """
    subjects = []
    for table in suite.subjects:
        table.check_metrics(suite.metrics)
        subject = table.open()
        try:
            check_study(suite.study(table), subject)
        except ValueError as error:
            raise ValueError(f"{table.key}: {error}") from error
        subjects.append(subject)
    return subjects


def measure(
    suite: Suite,
    out: Path,
    ranks: Ranks,
    progress: Progress = quietly,
    subjects: Sequence[Subject] | None = None,
) -> list[Record]:
    """Every record of the suite, in its order, made where the folder lacks it.

    ranks : the processes that share the work; all of them get all records.
    progress : shown by the first of them.
    subjects : of the suite, where they are open already.

    Raises ValueError, before a network is evaluated, for what `opened` refuses, a reference that
    cannot be read, and a folder that holds another suite or belongs to another run.
    """
    given = opened(suite) if subjects is None else subjects
    records: list[Record] = []
    shown = progress if ranks.rank == 0 else quietly
    with ranks.together("the suite"), _owned(suite, given, out, ranks) as comparisons:
        with shown(sum(comparison.study.evaluations for comparison in comparisons)) as update:
            before = 0.0
            for comparison in comparisons:
                for record in _run(comparison, ranks, before, update):
                    records.append(record)
                before += comparison.study.evaluations
    return records


def _run(comparison: Comparison, ranks: Ranks, before: float, update: Update) -> Iterator[Record]:
    name = comparison.subject.name

    def shown(done: float, text: str) -> None:
        update(before + done, f"{name}, {text}")

    follow = Follow[Job](comparison, shown, lambda job: job.title, ranks.size)
    runner = Runner(comparison, comparison.folder, ranks, _tell)
    for job, record in runner.run(jobs(comparison.study), follow.watch):
        follow.end(job)
        yield record


@contextmanager
def _owned(
    suite: Suite, subjects: Sequence[Subject], out: Path, ranks: Ranks
) -> Iterator[list[Comparison]]:
    """The folder belongs to the processes of this run, and to this suite.

    What is computed of a reference is in the folder too: the first rank makes it, the others find
    it.
    """
    if ranks.rank == 0:
        with locked(out):
            comparisons = _comparisons(suite, subjects, out)
            claim(out, claimed(suite), held=bool(record_files(out)))
            mend(out, (STATUS, FILES), _tell)
            ranks.barrier("the folder is ours")
            yield comparisons
            ranks.barrier("all is written")
    else:
        ranks.barrier("the folder is ours")
        yield _comparisons(suite, subjects, out)
        ranks.barrier("all is written")


def _comparisons(suite: Suite, subjects: Sequence[Subject], out: Path) -> list[Comparison]:
    found = []
    for table, subject in zip(suite.subjects, subjects, strict=True):
        measures = table.measures(suite.metrics, out)
        for name, least in (pair for measure in measures for pair in measure.least.items()):
            if suite.samples < least:
                raise ValueError(f"samples={suite.samples}: {name} needs at least {least}")
        found.append(Comparison(suite.study(table), subject, out, measures))
    return found


def _tell(text: str) -> None:
    print(f"{text}: it is done again", file=sys.stderr)
