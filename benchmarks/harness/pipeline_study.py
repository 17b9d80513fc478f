r"""Schedulers side by side on one pipeline: same prompt, same noise, counted evaluations.

For every seed the truth is a converged solution of the probability-flow ODE, computed by the
pipeline itself with many evaluations; a second, coarser solution gives its error bar. A record is
written as soon as a run ends, with the last state and the picture in files beside it. Distances
are computed from those files, so they always belong to the reference that is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.benchmarks.harness import old_records as results
from logsnr.benchmarks.harness.contenders import Contender, reference_scheduler, steps_for
from logsnr.benchmarks.harness.old_records import Record
from logsnr.benchmarks.harness.pipeline_runs import Subject, run_pipeline_once
from logsnr.solvers import DiscreteVP

REFERENCE = "reference"
RECORDS = "records.jsonl"


class PipelineError(ValueError):
    """The pipeline cannot compute its own converged solution, so there is nothing to measure."""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Parameters
    ----------
    contenders : the schedulers, each once.
    nfe : numbers of network evaluations.
    seeds : of the starting noise, one sample each.
    reference_nfe : evaluations of the converged solution, and of the coarser one that gives its
        error bar.

    Raises ValueError naming the argument that is out of range.
    """

    contenders: tuple[Contender, ...]
    nfe: tuple[int, ...] = (5, 8, 10, 20)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    reference_nfe: tuple[int, int] = (200, 150)

    def __post_init__(self) -> None:
        listed = {
            "solvers": [contender.text for contender in self.contenders],
            "nfe": self.nfe,
            "seeds": self.seeds,
        }
        for name, given in listed.items():
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={list(given)}: need at least one entry, and each once")
        if min(self.nfe) < 1:
            raise ValueError(f"nfe={list(self.nfe)}: need numbers of at least 1")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**63:
            raise ValueError(f"seeds={list(self.seeds)}: need whole numbers in 0..2^63 - 1")
        fine, coarse = self.reference_nfe
        if not max(3, max(self.nfe)) < coarse < fine:
            raise ValueError(
                f"reference_nfe={fine},{coarse}: need a fine and a coarser number, both above the "
                f"largest of nfe, {max(self.nfe)}"
            )

    @property
    def evaluations(self) -> int:
        """Of all runs together, at most."""
        return len(self.seeds) * (len(self.contenders) * sum(self.nfe) + sum(self.reference_nfe))


@dataclass(frozen=True)
class Job:
    """One run: a contender (None for the reference), evaluations, seed."""

    contender: Contender | None
    nfe: int
    seed: int


def jobs(study: Study) -> list[Job]:
    """All runs, seed by seed, the reference first: an early report has complete columns."""
    return [
        job
        for seed in study.seeds
        for job in [
            *(Job(None, nfe, seed) for nfe in study.reference_nfe),
            *(Job(contender, nfe, seed) for contender in study.contenders for nfe in study.nfe),
        ]
    ]


def check_study(study: Study, subject: Subject) -> dict[tuple[str, int], int]:
    """``num_inference_steps`` of every (contender, NFE), found without calling the network.

    Raises ValueError for a scheduler that refuses the pipeline's config or a number of steps.
    """
    own = subject.pipe.scheduler
    try:
        for nfe in study.reference_nfe:
            steps_for(reference_scheduler(own), nfe)
    except ValueError as error:
        raise ValueError(f"pipeline={subject.problem['pipeline']!r}: {error}") from error
    steps = {}
    for contender in study.contenders:
        for nfe in study.nfe:
            try:
                steps[contender.text, nfe] = steps_for(contender.scheduler(own), nfe)
            except (ValueError, TypeError) as error:
                raise ValueError(f"solvers={contender.text!r}, nfe={nfe}: {error}") from error
    return steps


def measure_all(
    study: Study, subject: Subject, folder: Path, tick: Callable[[Job], None] = lambda job: None
) -> Iterator[tuple[Job, Record]]:
    """Make every run that ``folder`` does not hold yet; yields each job with its record.

    A run in which the pipeline fails is recorded with status "failed" and its message, and is
    tried again the next time; a state that is not finite has status "diverged". ``tick`` is called
    after each evaluation.

    Raises `PipelineError` if the pipeline fails, or diverges, on the reference.
    """
    for job, record in _kept_or_made(jobs(study), study, subject, folder, tick):
        if job.contender is None and record["status"] != "ok":
            why = record["note"] or "its state is not finite; try a wider --dtype"
            raise PipelineError(f"the pipeline {record['status']} on the reference: {why}")
        yield job, record


def try_contenders(
    study: Study, subject: Subject, folder: Path, tick: Callable[[Job], None] = lambda job: None
) -> Iterator[Job]:
    """Make the shortest run of every contender, which `measure_all` will find kept.

    Raises `PipelineError` at the end, naming those with which the pipeline fails.
    """
    first = [Job(contender, min(study.nfe), study.seeds[0]) for contender in study.contenders]
    failed = []
    for job, record in _kept_or_made(first, study, subject, folder, tick):
        if record["status"] == "failed" and job.contender is not None:
            failed.append(f"{job.contender.text} ({record['note']})")
        yield job
    if failed:
        raise PipelineError(
            f"solvers: {type(subject.pipe).__name__} cannot be run with {', '.join(failed)}; leave "
            f"{'it' if len(failed) == 1 else 'them'} out"
        )


def _kept_or_made(
    wanted_jobs: list[Job],
    study: Study,
    subject: Subject,
    folder: Path,
    tick: Callable[[Job], None],
) -> Iterator[tuple[Job, Record]]:
    steps = check_study(study, subject)
    done = results.load(folder / RECORDS, ("status", "file"))
    for job in wanted_jobs:
        wanted = _request(job, subject)
        record = done.get(results.identity(wanted))
        if record is None or not _complete(record, folder):
            count = job.nfe if job.contender is None else steps[job.contender.text, job.nfe]
            record = wanted | _measured(job, count, subject, folder, wanted, tick)
            results.append(folder / RECORDS, record)
        yield job, record


def _request(job: Job, subject: Subject) -> Record:
    contender = job.contender
    return {
        "solver": REFERENCE if contender is None else contender.name,
        "options": {} if contender is None else dict(contender.options),
        "nfe": job.nfe,
        "seed": job.seed,
        "problem": dict(subject.problem),
    }


def _complete(record: Record, folder: Path) -> bool:
    if record["status"] == "failed":
        return False
    return record["file"] is None or (folder / record["file"]).exists()


def _measured(
    job: Job,
    steps: int,
    subject: Subject,
    folder: Path,
    wanted: Record,
    tick: Callable[[Job], None],
) -> Record:
    own = subject.pipe.scheduler
    scheduler = reference_scheduler(own) if job.contender is None else job.contender.scheduler(own)
    record: Record = {"status": "ok", "note": None, "file": None, "picture": None}
    try:
        outcome = run_pipeline_once(subject, scheduler, steps, job.seed, lambda: tick(job))
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        note = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        return record | {"status": "failed", "note": note[:300]}
    record |= {
        "steps": steps,
        "nfe_counted": outcome.evaluations,
        "network_calls": outcome.network_calls,
        "seconds": outcome.seconds,
        "stochastic": outcome.stochastic,
        "rounding": told_rounding(scheduler),
    }
    if not outcome.x.isfinite().all():
        return record | {"status": "diverged"}
    name = hashlib.sha256(results.identity(wanted).encode()).hexdigest()[:16]
    for kind in ("states", "pictures"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if outcome.picture is not None:
        record["picture"] = f"pictures/{name}.png"
        outcome.picture.save(folder / record["picture"])
    record["file"] = f"states/{name}.safetensors"
    save_file({"x": outcome.x.contiguous()}, folder / record["file"])
    return record


def told_rounding(scheduler: Any) -> float | None:
    """How far the times that the network is told are from the nodes, in training steps, at most.

    None where it cannot be said: for other models than those of whole training steps, and for
    schedulers that do not list their noise levels sigma / alpha.
    """
    ratios, told = getattr(scheduler, "sigmas", None), scheduler.timesteps
    try:
        schedule = noise_schedule(scheduler.config)
    except (ValueError, KeyError):
        return None
    if not isinstance(schedule, DiscreteVP) or ratios is None or len(ratios) != len(told) + 1:
        return None
    levels = ratios[: len(told)].detach().to("cpu", torch.float64)
    inside = (levels > 0) & levels.isfinite()
    if not inside.any():
        return None
    index = schedule.network_time(schedule.time(-torch.log(levels[inside])))
    # Noise levels are listed in float32, whose rounding is far below a hundredth of a step.
    return float((index - told.detach().to("cpu", torch.float64)[inside]).abs().max())
