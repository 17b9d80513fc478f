"""Jobs to records: what a folder does not hold yet is measured, piece by piece, and kept.

A job is cut into **shards**, pieces that are computed alone and kept each in a file of its own,
``shards/KEY/INDEX.safetensors``, as soon as it is there (KEY is the digest of the job's protocol).
Once all shards of a job are there they are put together, *in the order of their indices*, into
its record. What a shard holds depends on the job and its index alone, and numbers are added up in
one order: the record is the same bit for bit whoever made the shards, in whatever order, and
however often the work was killed. A kill costs the shard that was being computed.

With several ranks (`Ranks`) the missing shards are dealt out, one after the other, and each rank
writes the records of its share of the jobs into a file of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from logsnr.benchmarks.harness.files import load_tensors, save_tensors, tensor_names
from logsnr.benchmarks.harness.protocol import Record, finite, identity, key_of, versions
from logsnr.benchmarks.harness.records import STATUS, WRITTEN, Damage, append, load, record_file
from logsnr.solvers.processes import Ranks

J = TypeVar("J")
Watch = Callable[[J, float], None]
"""Called while a job runs with the work that was done since the last call."""

OK, DIVERGED, FAILED = "ok", "diverged", "failed"
FILES = "files"


@dataclass(frozen=True)
class Shard:
    """What one piece of a job gave: tensors to keep, and JSON values.

    ``about`` has the "status" of the piece. A shard without tensors ends its job with that status;
    "failed" ones are not kept, so they are tried again the next time.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=lambda: {STATUS: OK})

    @property
    def status(self) -> str:
        """How the piece ended: ok, diverged or failed."""
        return str(self.about[STATUS])


class Measurement(Protocol[J]):
    """What a study does with its jobs."""

    def request(self, job: J) -> Record:
        """The job's protocol."""
        ...

    def shards(self, job: J) -> int:
        """Into how many pieces the job is cut."""
        ...

    def compute(self, job: J, index: int, watch: Watch[J]) -> Shard:
        """One piece."""
        ...

    def finish(self, job: J, shards: Sequence[Shard]) -> Record:
        """What the record says beside the protocol, of all pieces or of those up to a bad one."""
        ...

    def stands(self, job: J, record: Record) -> bool:
        """Whether a kept record still says what ``finish`` would, given the same pieces."""
        ...

    def stage(self, job: J) -> int:
        """Jobs may use what those of lower stages left; one rank alone keeps the jobs' order."""
        ...

    def work(self, job: J) -> float:
        """How much there is to do, in the units of `Watch`."""
        ...


class Runner(Generic[J]):
    """Makes the records of a measurement in a folder, and finds those that are there.

    damage : told of lines that are no records and of shards that cannot be read, which are then
        done again; None raises ValueError for them.

    Give every rank the same jobs in the same order.
    """

    def __init__(
        self,
        measurement: Measurement[J],
        folder: Path,
        ranks: Ranks | None = None,
        damage: Damage | None = None,
    ) -> None:
        self.measurement = measurement
        self.folder = folder
        self.ranks = ranks or Ranks()
        self.damage = damage
        self._load()

    def _load(self, quiet: bool = False) -> None:
        damage = (lambda text: None) if quiet else self.damage
        self.done = load(self.folder, (STATUS, FILES), damage)

    def run(self, jobs: Iterable[J], watch: Watch[J] | None = None) -> Iterator[tuple[J, Record]]:
        """Each job with its record, in their order, made where the folder lacks it."""
        asked = list(jobs)
        told: Watch[J] = watch or (lambda job, amount: None)
        shared = self.ranks.size > 1
        if shared:
            self._share(asked, told)
        for job in asked:
            # What failed on the rank that had it is not tried again by all the others.
            record = self._found(job) if shared else self.kept(job)
            yield job, self._make(job, told) if record is None else record

    def kept(self, job: J) -> Record | None:
        """The job's record, if the folder has it and its files."""
        record = self._found(job)
        if record is None or record[STATUS] == FAILED:
            return None
        if not all((self.folder / name).exists() for name in record[FILES]):
            return None
        if self.damage is not None and not all(self._readable(job, n) for n in record[FILES]):
            return None  # `_piece` reports what it is, and makes it again
        return record if self.measurement.stands(job, record) else None

    def _readable(self, job: J, name: str) -> bool:
        """Whether a file is whole; of what others are measured by, all that it holds."""
        read = tensor_names if self.measurement.stage(job) > 0 else load_tensors
        try:
            read(self.folder / name)
        except ValueError:
            return False
        return True

    def _found(self, job: J) -> Record | None:
        return self.done.get(identity(self.measurement.request(job)))

    def file(self, job: J, index: int) -> str:
        """Where a piece of the job is kept, below the folder."""
        return f"shards/{key_of(self.measurement.request(job))}/{index}.safetensors"

    def _share(self, jobs: Sequence[J], watch: Watch[J]) -> None:
        """Do this rank's share of all that is missing, stage by stage."""
        rank, size = self.ranks.rank, self.ranks.size
        for stage in sorted({self.measurement.stage(job) for job in jobs}):
            self.ranks.barrier(f"stage {stage}")
            self._load(quiet=True)
            missing = [
                job
                for job in jobs
                if self.measurement.stage(job) == stage and self.kept(job) is None
            ]
            pieces = [
                (job, index)
                for job in missing
                for index in range(self.measurement.shards(job))
                if not (self.folder / self.file(job, index)).exists()
            ]
            # Nobody writes before all have seen what is missing.
            self.ranks.barrier(f"pieces of stage {stage}")
            for job, index in pieces[rank::size]:
                self.ranks.heed(f"pieces of stage {stage}")
                self._piece(job, index, watch)
            self.ranks.barrier(f"records of stage {stage}")
            for job in missing[rank::size]:
                self._make(job, watch)
        self.ranks.barrier("the end")
        self._load(quiet=True)

    def _make(self, job: J, watch: Watch[J]) -> Record:
        request = self.measurement.request(job)
        shards: list[Shard] = []
        for index in range(self.measurement.shards(job)):
            shards.append(self._piece(job, index, watch))
            if shards[-1].status != OK:
                break
        files = [self.file(job, i) for i, shard in enumerate(shards) if shard.tensors]
        about = {FILES: files, "versions": dict(versions()), WRITTEN: time.time()}
        record = finite(request | about | self.measurement.finish(job, shards))
        append(record_file(self.folder, self.ranks.rank), record)
        self.done[identity(record)] = record
        return record

    def _piece(self, job: J, index: int, watch: Watch[J]) -> Shard:
        path = self.folder / self.file(job, index)
        if path.exists():
            try:
                shard = Shard(*load_tensors(path))
                if STATUS in shard.about:
                    return shard
                raise ValueError(f"{path} is damaged (no {STATUS!r}): remove it")
            except ValueError as error:
                if self.damage is None:
                    raise
                self.damage(str(error))
        shard = self.measurement.compute(job, index, watch)
        if shard.status != FAILED:
            save_tensors(path, shard.tensors, shard.about)
        return shard


class Follow(Generic[J]):
    """The work of a run as a bar shows it: ``watch`` while a job runs, ``end`` when it has ended.

    update : called with the work that is done, and what is being done.
    name : of a job.
    ranks : processes that share the work; each of them is taken to do as much as this one.
    """

    def __init__(
        self,
        measurement: Measurement[J],
        update: Callable[[float, str], None],
        name: Callable[[J], str],
        ranks: int = 1,
    ) -> None:
        self.measurement, self.update, self.name = measurement, update, name
        self.ranks = ranks
        self.ended: set[str] = set()
        self.inside: dict[str, float] = {}
        self.past = 0.0
        self.told: float | None = None

    def watch(self, job: J, amount: float) -> None:
        """So much more was done; a guess of a job's work is not exceeded before it ends."""
        name = key_of(self.measurement.request(job))
        done = self.inside.get(name, 0.0) + self.ranks * amount
        self.inside[name] = min(done, self.measurement.work(job))
        self._tell(self.past + sum(self.inside.values()), job)

    def end(self, job: J) -> None:
        """The job's record is there. Kept ones did not pass ``watch``."""
        name = key_of(self.measurement.request(job))
        if name not in self.ended:
            self.ended.add(name)
            self.past += self.measurement.work(job)
        self.inside.pop(name, None)
        self._tell(self.past + sum(self.inside.values()), job)

    def _tell(self, done: float, job: J) -> None:
        if done != self.told:
            self.told = done
            self.update(done, self.name(job))


def followed(
    runner: Runner[J],
    jobs: Iterable[J],
    update: Callable[[float, str], None],
    name: Callable[[J], str],
) -> Iterator[tuple[J, Record]]:
    """`Runner.run` with its progress told to ``update``."""
    follow = Follow(runner.measurement, update, name)
    for job, record in runner.run(jobs, follow.watch):
        follow.end(job)
        yield job, record
