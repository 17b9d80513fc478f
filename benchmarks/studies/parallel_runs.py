r"""Parallel-in-time runs beside the sequential one: the same plan, network, starts and noise.

A run is a plan (solver, N evaluations), a mode, a window and a tolerance. Its error is

    |x - x_seq| / |x_seq|,

the largest over the batch, where x_seq is the result of ``sample`` with the same plan: it is what
the tolerance costs, not how well the plan solves the ODE. A record also holds the largest residual
of each sweep, the error of the newest sample after each sweep that reached the end of the plan,
the wall time, and what the cost model predicted from a throughput that is measured once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from logsnr.benchmarks.embedded import DIGITS
from logsnr.benchmarks.harness.files import load_tensor, load_tensors
from logsnr.benchmarks.harness.protocol import Record, key_of
from logsnr.benchmarks.harness.records import STATUS
from logsnr.benchmarks.harness.runner import DIVERGED, OK, Runner, Shard, Watch
from logsnr.benchmarks.harness.subjects.analytic import analytic, six_gaussians
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.benchmarks.harness.subjects.network import NOT_FINITE
from logsnr.benchmarks.studies.parallel import (
    DTYPES,
    MODES,
    SEQUENTIAL,
    THROUGHPUT,
    Job,
    Settings,
    plan_of,
)
from logsnr.solvers import Denoiser, sample
from logsnr.solvers.parallel import Sweep, sample_parallel
from logsnr.solvers.parallel.cost import measure_throughput, predict

SIZES = (1, 2, 4, 8, 16, 32)
"""Groups in a network call whose time is measured."""


@dataclass(frozen=True)
class Start:
    """The network and the starts x_T (B, *event), with one seed a sample for the noise."""

    name: str
    denoise: Denoiser
    x_T: Tensor
    noise: list[int]
    about: Mapping[str, Any]

    def throughput(self) -> dict[int, float]:
        """Groups -> seconds of a network call, measured here and now."""
        return measure_throughput(self.denoise, self.x_T, 0.5, sizes=SIZES)


def load_start(settings: Settings) -> Start:
    """The embedded model with labels 0..9 in turn, or a mixture of 6 Gaussians in R^8."""
    place: dict[str, Any] = {"device": settings.device, "dtype": DTYPES[settings.dtype]}
    if settings.problem == "mixture":
        data = six_gaussians(settings.device)
        subject = analytic(data, DIGITS.schedule, stream=True, **place)
    else:
        subject = embedded_subject(DIGITS, **place)
    samples = range(settings.batch)
    return Start(
        name=settings.problem,
        denoise=subject.denoiser(samples),
        x_T=subject.starts(settings.seed, samples),
        noise=[settings.seed + i for i in samples],
        about={**subject.about, "batch": settings.batch},
    )


Asked = Job | None
"""A run; None is the throughput, which is measured once."""


@dataclass(frozen=True)
class Parallel:
    """What the harness does with the jobs: a run is one piece, and its record says it all."""

    settings: Settings
    folder: Path

    @cached_property
    def start(self) -> Start:
        """Called once before it is handed out, so that nothing is allocated while clocks run."""
        start = load_start(self.settings)
        start.denoise(start.x_T, 0.5)
        return start

    def request(self, job: Asked) -> Record:
        """The job's protocol."""
        options: dict[str, Any] = {"sizes": list(SIZES)}
        if job is not None:
            options = {"mode": job.mode, "window": job.window, "tolerance": job.tolerance}
            options |= MODES.get(job.mode, {})
        return {
            "solver": THROUGHPUT if job is None else job.solver,
            "options": options,
            "nfe": None if job is None else job.nfe,
            "seed": self.settings.seed,
            "model": self.start.name,
            "problem": dict(self.start.about),
        }

    def shards(self, job: Asked) -> int:
        """One: sweeps depend on each other."""
        return 1

    def compute(self, job: Asked, index: int, watch: Watch[Asked]) -> Shard:
        """The throughput, a sequential run, whose result is kept, or a parallel one."""
        if job is None:
            seconds = list(self.start.throughput().values())
            return Shard({}, {STATUS: OK, "seconds": seconds})
        if job.mode == SEQUENTIAL:
            return sequential(job, self.start, watch)
        exact = load_tensor(self._file(Job(job.solver, job.nfe))).to(self.start.x_T.device)
        about = load_tensors(self._file(None))[1]
        throughput = dict(zip(SIZES, about["seconds"], strict=True))
        return Shard({}, parallel(job, self.start, exact, throughput, self.settings, watch))

    def finish(self, job: Asked, shards: Sequence[Shard]) -> Record:
        """What the run said."""
        return dict(shards[0].about)

    def stands(self, job: Asked, record: Record) -> bool:
        """Always; the sample of a sequential run has to be whole, for others are compared to it."""
        if job is not None and job.mode == SEQUENTIAL:
            load_tensor(self._file(job))
        return True

    def stage(self, job: Asked) -> int:
        """Throughput, sequential runs, parallel runs."""
        return 0 if job is None else 1 if job.mode == SEQUENTIAL else 2

    def work(self, job: Asked) -> float:
        """A rough number of evaluations."""
        return 0 if job is None else job.work

    def _file(self, job: Asked) -> Path:
        return self.folder / "shards" / key_of(self.request(job)) / "0.safetensors"


def run_all(
    settings: Settings, folder: Path, watch: Watch[Asked] | None = None
) -> Iterator[tuple[Asked, Record]]:
    """Measure what ``settings`` asks for and ``folder`` does not hold yet.

    Yields the throughput (job None), then the runs in the order of ``settings.jobs``.
    """
    yield from Runner(Parallel(settings, folder), folder).run([None, *settings.jobs], watch)


def sequential(job: Job, start: Start, watch: Watch[Asked]) -> Shard:
    """Run ``sample``."""
    began = time.perf_counter()
    x = sample(
        start.denoise,
        start.x_T,
        plan_of(job.solver, job.nfe),
        noise=start.noise,
        callback=lambda step: watch(job, 1),
    ).cpu()
    return Shard({"x": x}, {STATUS: OK, "seconds": time.perf_counter() - began})


def parallel(
    job: Job,
    start: Start,
    exact: Tensor,
    throughput: Mapping[int, float],
    settings: Settings,
    watch: Watch[Asked],
) -> Record:
    """Run `sample_parallel`: what it took, how far it is from ``exact``, and the prediction."""
    plan = plan_of(job.solver, job.nfe)
    tolerance = float(job.tolerance or 0.0)
    mode = MODES[job.mode]
    cost = predict(plan, job.window, tolerance, throughput=throughput, **mode)
    predicted = {
        "sweeps": cost.sweeps,
        "evaluations": cost.evaluations,
        "seconds": cost.parallel_time,
        "speedup": cost.speedup,
        "bound": cost.bound,
    }
    errors: list[float | None] = []

    def note(sweep: Sweep) -> None:
        reached = sweep.window[1] == plan.nfe
        errors.append(relative_error(sweep.x, exact) if reached else None)
        watch(job, sweep.window[1] - sweep.window[0])

    began = time.perf_counter()
    try:
        x, stats = sample_parallel(
            start.denoise,
            start.x_T,
            plan,
            job.window,
            tolerance,
            noise=start.noise,
            max_groups=settings.max_groups,
            callback=note,
            **mode,
        )
    except ValueError as error:
        if NOT_FINITE not in str(error):
            raise
        return {STATUS: DIVERGED, "note": str(error), "predicted": predicted}
    return {
        STATUS: OK,
        "sweeps": stats.sweeps,
        "evaluations": stats.evaluations,
        "error": relative_error(x, exact),
        "seconds": time.perf_counter() - began,
        "rows_held": stats.rows_held,
        "predicted": predicted,
        "residuals": list(stats.residuals),
        "errors": errors,
        "windows": [list(window) for window in stats.windows],
    }


def relative_error(x: Tensor, exact: Tensor) -> float:
    """|x - exact| / |exact|, the largest over the batch."""
    off, size = (part.double().flatten(1).norm(dim=1) for part in (x - exact, exact))
    return float((off / size).max())
