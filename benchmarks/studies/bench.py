"""``logsnr bench``: the jobs of a suite, subject by subject, in one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from logsnr.benchmarks.harness.comparison import Comparison, check_study
from logsnr.benchmarks.harness.files import claim, locked
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.records import mend
from logsnr.benchmarks.harness.runner import Follow, Runner
from logsnr.benchmarks.harness.study import Job, jobs
from logsnr.benchmarks.harness.suite import Suite, claimed
from logsnr.solvers.processes import Ranks

Update = Callable[[float, str], None]
Progress = Callable[[float], AbstractContextManager[Update]]
"""The total of the work -> what is told how much is done, and what is being done."""


@contextmanager
def quietly(total: float) -> Iterator[Update]:
    """No progress."""
    yield lambda done, text: None


def measure(suite: Suite, out: Path, ranks: Ranks, progress: Progress = quietly) -> list[Record]:
    """Every record of the suite, in its order, made where the folder lacks it.

    ranks : the processes that share the work; all of them get all records.
    progress : shown by the first of them.

    Raises ValueError, before a network is evaluated, for a subject that cannot be opened, a
    contender that it cannot run, and a folder that holds another suite or belongs to another run.
    """
    comparisons = []
    for table in suite.subjects:
        subject, study = table.open(), suite.study(table)
        check_study(study, subject)
        measures = table.measures(suite.metrics, out)
        for name, least in (pair for measure in measures for pair in measure.least.items()):
            if suite.samples < least:
                raise ValueError(f"samples={suite.samples}: {name} needs at least {least}")
        comparisons.append(Comparison(study, subject, out, measures))
    total = sum(comparison.study.evaluations for comparison in comparisons)
    records: list[Record] = []
    shown = progress if ranks.rank == 0 else quietly
    with ranks.together("the suite"), _owned(suite, out, ranks), shown(total) as update:
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

    follow = Follow[Job](comparison, shown, lambda job: job.title)
    runner = Runner(comparison, comparison.folder, ranks, _tell)
    for job, record in runner.run(jobs(comparison.study), follow.watch):
        follow.end(job)
        yield record


@contextmanager
def _owned(suite: Suite, out: Path, ranks: Ranks) -> Iterator[None]:
    """The folder belongs to the processes of this run, and to this suite."""
    if ranks.rank == 0:
        with locked(out):
            claim(out, claimed(suite))
            mend(out, _tell)
            ranks.barrier("the folder is ours")
            yield
            ranks.barrier("all is written")
    else:
        ranks.barrier("the folder is ours")
        yield
        ranks.barrier("all is written")


def _tell(text: str) -> None:
    print(f"{text}: it is done again", file=sys.stderr)
