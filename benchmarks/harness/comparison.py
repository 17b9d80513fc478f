r"""Contenders against the converged solution of the same starts: what the jobs of a `Study` do.

The truth of a seed is a solution of the probability-flow ODE with many evaluations, kept shard by
shard like all results; a coarser one is its error bar. A run is a record with the distances to it,
what other measures say (`measures`), and what it cost. Its shards keep the sufficient statistics
of every measure, and the states of the first samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from logsnr.benchmarks.harness.files import load_tensors, tensor_names
from logsnr.benchmarks.harness.measures import Measure, distances, mean_squares, rmse_of
from logsnr.benchmarks.harness.protocol import Record, key_of
from logsnr.benchmarks.harness.records import STATUS
from logsnr.benchmarks.harness.runner import DIVERGED, FAILED, OK, Shard, Watch
from logsnr.benchmarks.harness.study import REFERENCE, Job, Study, work
from logsnr.benchmarks.harness.subjects import Diverged, Outcome, Subject
from logsnr.benchmarks.harness.subjects.subject import NOT_FINITE
from logsnr.solvers.whole_files import write_whole

FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""What code that is not ours raises: networks, pipelines, schedulers, sampler functions."""


@dataclass(frozen=True)
class Comparison:
    """The jobs of a study on a subject, kept in a folder.

    measures : beside the distances to the converged solution.
    tolerant : a run that raises becomes a record with status "failed", and is tried again the next
        time; otherwise it ends the command.
    """

    study: Study
    subject: Subject
    folder: Path
    measures: tuple[Measure, ...] = ()
    tolerant: bool = True
    _truths: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def request(self, job: Job) -> Record:
        """The job's protocol.

        Where the states of all samples are kept, distances are computed from them and belong to
        whatever reference is asked for; else the reference is part of the protocol.
        """
        study, subject = self.study, self.subject
        problem: dict[str, Any] = dict(subject.about)
        problem |= {"samples": study.samples, "shard": study.shard, "keep": study.keep}
        if study.referenced != study.samples:
            problem["reference_samples"] = study.referenced
        for measure in self.measures:
            problem |= dict(measure.about)
        if study.referenced and not study.whole:
            problem["reference"] = list(study.reference_nfe)
        solver, options = REFERENCE, {"evaluations": list(study.reference_nfe)}
        if job.contender is not None:
            solver, options = job.contender.solver, subject.described(job.contender)
        return {
            "solver": solver,
            "options": options,
            "nfe": job.nfe,
            "seed": job.seed,
            "model": subject.name,
            "problem": problem,
        }

    def stage(self, job: Job) -> int:
        """The converged solutions come first."""
        return 0 if job.contender is None else 1

    def work(self, job: Job) -> float:
        """Evaluations of each sample."""
        return work(self.study, job)

    def shards(self, job: Job) -> int:
        """Of a reference, each portion of the samples has two pieces: the fine and the coarse."""
        if job.contender is None:
            return 2 * len(self.study.referenced_portions)
        return len(self.study.indices)

    def compute(self, job: Job, index: int, watch: Watch[Job]) -> Shard:
        """One portion of the samples."""
        study, portions = self.study, len(self.study.indices)
        portion, coarse = divmod(index, 2) if job.contender is None else (index, 0)
        indices = study.indices[portion]
        outcome = self._outcome(job, coarse, indices, lambda: watch(job, 1 / portions))
        if isinstance(outcome, Shard):
            return outcome
        kept: dict[str, Tensor] = {}
        if not coarse:
            exact = None
            known = portion in study.referenced_portions
            if job.contender is not None and known and not study.whole:
                exact = self.exact(job.seed, portion)
                if exact is not None:
                    kept["squares"] = mean_squares(outcome.x, exact)
            try:
                for measure in self.measures:
                    kept |= measure.of(outcome.images, exact)
            except FAILURES as error:  # finite samples, with features that are not
                return _failed(error, DIVERGED if NOT_FINITE in str(error) else FAILED)
        x = outcome.x if job.contender is None else outcome.x[: max(0, study.keep - indices[0])]
        if len(x):
            kept["x"] = x.clone()
        pictures = [] if coarse else self._pictures(job, indices, outcome)
        return Shard(kept, {STATUS: OK, "note": None, "pictures": pictures, **outcome.cost})

    def finish(self, job: Job, shards: Sequence[Shard]) -> Record:
        """What the record says: status, distances, what the measures say, cost."""
        last = shards[-1]
        if last.status != OK:
            return {STATUS: last.status, "note": last.about["note"], "pictures": []}
        record: Record = {STATUS: OK, "note": None}
        first = shards
        if job.contender is None:
            first, coarse = shards[0::2], shards[1::2]
            pairs = zip(first, coarse, strict=True)
            squares = [mean_squares(a.tensors["x"], b.tensors["x"]) for a, b in pairs]
            record["error_bar"] = rmse_of(squares)
        else:
            record |= self._distances(job, shards)
        if job.contender is not None or self.study.referenced == self.study.samples:
            # fewer samples are another measure of a distribution
            try:
                for measure in self.measures:
                    record |= measure.metrics([shard.tensors for shard in first])
            except FAILURES as error:
                note = _failed(error, FAILED).about["note"]
                return {STATUS: FAILED, "note": note, "pictures": []}
        return record | self._cost(shards, first)

    def stands(self, job: Job, record: Record) -> bool:
        """Whether its distances are to the reference that is asked for."""
        if job.contender is None or record[STATUS] != OK:
            return True
        return bool(record.get("against") == self._against(job))

    def exact(self, seed: int, portion: int) -> Tensor | None:
        """The converged solution of one portion of the samples; None where there is none.

        Raises ValueError for a file that is damaged.
        """
        name = self._exact_file(seed, portion)
        if name not in self._truths and (self.folder / name).exists():
            self._truths.clear()  # one at a time: a shard can be large
            tensors, _ = load_tensors(self.folder / name)
            if "x" in tensors:  # a solution that diverged left a file without states
                self._truths[name] = tensors["x"]
        return self._truths.get(name)

    def _exact_file(self, seed: int, portion: int) -> str:
        key = key_of(self.request(Job(None, None, seed)))
        return f"shards/{key}/{2 * portion}.safetensors"

    def _against(self, job: Job) -> str | None:
        """What the distances are taken to, None while it is not there."""
        portions = self.study.referenced_portions
        files = [self.folder / self._exact_file(job.seed, portion) for portion in portions]
        if not files or not all(file.exists() and "x" in tensor_names(file) for file in files):
            return None
        return key_of(self.request(Job(None, None, job.seed)))

    def _outcome(self, job: Job, coarse: int, indices: Sequence[int], tick: Any) -> Outcome | Shard:
        try:
            if job.contender is None or job.nfe is None:
                nfe = self.study.reference_nfe[coarse]
                return self.subject.converged(nfe, job.seed, indices, tick)
            return self.subject.run(job.contender, job.nfe, job.seed, indices, tick)
        except Diverged as error:
            return Shard({}, {STATUS: DIVERGED, "note": str(error)})
        except FAILURES as error:
            if not self.tolerant:
                raise
            return _failed(error, FAILED)

    def _distances(self, job: Job, shards: Sequence[Shard]) -> Record:
        """To the converged solution; None of a stochastic run, which does not solve the ODE."""
        against = self._against(job)
        if against is None or any(shard.about["stochastic"] for shard in shards):
            return {"against": against}
        squares, low, high = [], [], []
        for portion, shard in zip(self.study.referenced_portions, shards, strict=False):
            exact = self.exact(job.seed, portion)
            if exact is None:
                return {"against": None}
            kept = shard.tensors.get("squares")
            squares.append(mean_squares(shard.tensors["x"], exact) if kept is None else kept)
            low.append(float(exact.min()))
            high.append(float(exact.max()))
        span = self.subject.data_range or max(high) - min(low)
        return {"against": against, **distances(squares, span)}

    def _cost(self, shards: Sequence[Shard], first: Sequence[Shard]) -> Record:
        """Evaluations of each sample; calls and seconds of all together."""
        portions = len(first)
        about = [shard.about for shard in shards]
        rounding = [entry["rounding"] for entry in about if entry["rounding"] is not None]
        return {
            "nfe_counted": _plain(sum(entry["nfe_counted"] for entry in about) / portions),
            "network_rows": _plain(sum(entry["network_rows"] for entry in about) / portions),
            "network_calls": sum(entry["network_calls"] for entry in about),
            "seconds": sum(entry["seconds"] for entry in about),
            "stochastic": any(entry["stochastic"] for entry in about),
            "grid": about[0]["grid"],
            "steps": about[0]["steps"],
            "rounding": max(rounding, default=None),
            "pictures": [name for shard in first for name in shard.about["pictures"]],
        }

    def _pictures(self, job: Job, indices: Sequence[int], outcome: Outcome) -> list[str]:
        """Files of the pictures that the subject made of the first samples."""
        key = key_of(self.request(job))
        names = []
        for index, picture in zip(indices, outcome.pictures, strict=False):
            if index < self.study.keep:
                name = f"pictures/{key}.png" if index == 0 else f"pictures/{key}-{index}.png"
                write_whole(self.folder / name, lambda part: picture.save(part))  # noqa: B023
                names.append(name)
        return names


def _failed(error: Exception, status: str) -> Shard:
    note = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return Shard({}, {STATUS: status, "note": note[:300]})


def _plain(number: float) -> float:
    """A whole number as such."""
    return int(number) if number == int(number) else number


def check_study(study: Study, subject: Subject) -> None:
    """Raise ValueError, without a network evaluation, for what the subject cannot run.

    Nor is a reference of use that has no more evaluations than what it is to judge.
    """
    fine, coarse = study.reference_nfe
    if coarse <= max(study.nfe):
        raise ValueError(
            f"reference_nfe={fine},{coarse}: need a fine and a coarser number, both above the "
            f"largest of nfe, {max(study.nfe)}"
        )
    for nfe in study.reference_nfe:
        subject.check_converged(nfe)
    for contender in study.contenders:
        if not study.numbers(contender):
            raise ValueError(
                f"nfe={list(study.nfe)}: {contender.text} is a plan of {contender.counts} "
                "evaluations, and has no others"
            )
        for nfe in study.numbers(contender):
            subject.check(contender, nfe)


def load_picture(folder: Path, name: str) -> Image.Image:
    """A picture of a record."""
    return Image.open(folder / name).convert("RGB")


def kept_states(folder: Path, record: Record) -> Tensor:
    """The states (B, *event) that were kept of a run; all samples' of a converged solution."""
    names = record["files"][0::2] if record["solver"] == REFERENCE else record["files"]
    kept = (load_tensors(folder / name)[0].get("x") for name in names)
    return torch.cat([x for x in kept if x is not None])
