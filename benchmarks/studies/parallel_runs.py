r"""Parallel-in-time runs beside the sequential one: the same plan, network, starts and noise.

A run is a plan (solver, N evaluations), a mode, a window and a tolerance. Its error is

    |x - x_seq| / |x_seq|,

the largest over the batch, where x_seq is the result of ``sample`` with the same plan: it is what
the tolerance costs, not how well the plan solves the ODE. A record also holds the largest residual
of each sweep, the error of the newest sample after each sweep that reached the end of the plan,
the wall time, and what the cost model predicted from a throughput that is measured once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from logsnr.benchmarks.embedded import NULL_LABEL, load_scheduler, load_unet
from logsnr.benchmarks.harness import old_records as results
from logsnr.benchmarks.harness.comparison import DIGITS, WEIGHTS
from logsnr.benchmarks.harness.contenders import parse_contender
from logsnr.benchmarks.harness.old_records import Record
from logsnr.benchmarks.problems.analytic import Mixture, exact_denoiser
from logsnr.solvers import ClassifierFree, Denoiser, DiscreteVP, Plan, make_plan, sample
from logsnr.solvers.parallel import Sweep, sample_parallel
from logsnr.solvers.parallel.cost import measure_throughput, predict
from logsnr.solvers.parallel.options import check_options

SEQUENTIAL, THROUGHPUT = "sequential", "throughput"
MODES: dict[str, dict[str, Any]] = {
    "published": {"update": "literal", "published": True},
    "literal": {"update": "literal"},
    "semilinear": {"update": "semilinear", "acceleration": None},
    "ours": {"update": "semilinear", "acceleration": "secant"},
}
"""Options of `sample_parallel`: Shih et al. (2023) to the letter, then each idea on top of the one
before: our guesses and acceptance, the linear part of the network, the secants. "ours" are the
defaults."""
GRID = {"spacing": "trailing", "t_start": 1.0, "t_end": 0.0}
"""Of the plans, unless a solver's options say otherwise."""
PROBLEMS = ("embedded", "mixture")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SIZES = (1, 2, 4, 8, 16, 32)
"""Groups in a network call whose time is measured."""
RECORDS = "records.jsonl"


class Job(NamedTuple):
    """One run. The sequential one has neither window nor tolerance; window None is all rows."""

    solver: str
    nfe: int
    mode: str = SEQUENTIAL
    window: int | None = None
    tolerance: float | None = None

    @property
    def work(self) -> int:
        """A rough number of evaluations, for the time that is left."""
        return self.nfe if self.mode == SEQUENTIAL else 4 * self.nfe


Watch = Callable[[Job, int], None]
"""Called with the running job and a number of states, after each network call on so many."""


@dataclass(frozen=True)
class Settings:
    """What is measured: every mode with every window and tolerance, for every solver and N.

    Parameters
    ----------
    problem : one of ``PROBLEMS``.
    solvers : as on the command line: ``"ddim"``, ``"unipc:order=3"``, ``"ddim:eta=1.0"``, with
        options of the solver and its grid.
    steps : N, numbers of evaluations of the sequential run.
    tolerances, windows : of `sample_parallel`; window None is all rows.
    modes : of ``MODES``.
    batch : samples, B.
    seed : of the starts and of the noise of stochastic plans.
    device, dtype : of the network and the states, as torch names them.
    max_groups : at most so many points of a sweep in one network call, to bound its memory.

    Raises ValueError naming the argument that is out of range.
    """

    problem: str = "embedded"
    solvers: tuple[str, ...] = ("ddim", "dpm-solver++")
    steps: tuple[int, ...] = (25, 50)
    tolerances: tuple[float, ...] = (0.1, 1e-2, 1e-3)
    windows: tuple[int | None, ...] = (None,)
    modes: tuple[str, ...] = ("published", "ours")
    batch: int = 2
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    max_groups: int = 64

    def __post_init__(self) -> None:
        for name, choices in (("problem", PROBLEMS), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")
        unknown = [name for name in self.modes if name not in MODES]
        if unknown:
            raise ValueError(f"modes={', '.join(unknown)!r}: choose some of {', '.join(MODES)}")
        for name in ("solvers", "steps", "tolerances", "windows", "modes"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={list(given)}: need at least one, and each entry once")
        for window in self.windows:
            check_options(window, 0.0, "literal", None, 1.0)
        for tolerance in self.tolerances:
            check_options(None, tolerance, "literal", None, 1.0)
        for name in ("batch", "max_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: need a whole number in 0..2^63 - 1")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device!r}: not here ({error})") from error
        for solver, nfe in self.plans:
            plan_of(solver, nfe)

    @property
    def plans(self) -> list[tuple[str, int]]:
        """(solver, N) of all plans."""
        return [(solver, nfe) for solver in self.solvers for nfe in self.steps]

    @property
    def jobs(self) -> list[Job]:
        """All runs, for each plan the sequential one first. A window of N or more is all rows."""
        return [
            job
            for solver, nfe in self.plans
            for job in (
                Job(solver, nfe),
                *(
                    Job(solver, nfe, mode, window, tolerance)
                    for window in dict.fromkeys(
                        None if w is None or w >= nfe else w for w in self.windows
                    )
                    for tolerance in self.tolerances
                    for mode in self.modes
                ),
            )
        ]


@cache
def schedule() -> DiscreteVP:
    """The noise schedule of the embedded model, for both problems."""
    return DiscreteVP(load_scheduler().alphas_cumprod)


@cache
def plan_of(solver: str, nfe: int) -> Plan:
    """The plan of a solver written as in ``Settings.solvers``; ValueError if there is none."""
    contender = parse_contender(solver)
    if not contender.ours:
        raise ValueError(
            f"solvers={solver!r}: need a solver of this library, as logsnr order lists"
        )
    try:
        return make_plan(contender.name, schedule(), nfe=nfe, **{**GRID, **contender.options})
    except (ValueError, TypeError) as error:
        raise ValueError(f"steps={nfe}: not possible for {solver} ({error})") from error


@dataclass(frozen=True)
class Subject:
    """The network and the starts x_T (B, *event), with one seed a sample for the noise."""

    denoise: Denoiser
    x_T: Tensor
    noise: list[int]
    about: Mapping[str, Any]

    @cached_property
    def throughput(self) -> dict[int, float]:
        """Groups -> seconds of a network call, measured here and now."""
        return measure_throughput(self.denoise, self.x_T, 0.5, sizes=SIZES)


def load_subject(settings: Settings) -> Subject:
    """The embedded model with labels 0..9 in turn, or a mixture of 6 Gaussians in R^8."""
    rng = torch.Generator().manual_seed(settings.seed)
    place: dict[str, Any] = {"device": settings.device, "dtype": DTYPES[settings.dtype]}
    about = {"name": settings.problem}
    about |= {key: getattr(settings, key) for key in ("batch", "dtype", "device")}
    if settings.problem == "mixture":
        data = _mixture(settings.device)
        shape: tuple[int, ...] = (data.dimension,)
        denoise = exact_denoiser(data, schedule())
    else:
        labels = torch.arange(settings.batch, device=settings.device) % DIGITS
        null = torch.full_like(labels, NULL_LABEL)
        guidance = ClassifierFree(1.0, {"class_labels": labels}, {"class_labels": null})
        denoise = Denoiser(load_unet(**place), schedule(), "epsilon", guidance=guidance)
        shape = (1, 28, 28)
        about["model"] = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]
    x_T = torch.randn(settings.batch, *shape, generator=rng).to(**place)
    noise = [settings.seed + i for i in range(settings.batch)]
    return Subject(denoise, x_T, noise, about)


def _mixture(device: str) -> Mixture:
    """Six Gaussians of deviation 0.15 to 0.4 around means drawn once from N(0, 1)."""
    means = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    scales = torch.linspace(0.15, 0.4, 6, dtype=torch.float64)
    return Mixture(weights.to(device), means.to(device), scales.to(device))


def run_all(
    settings: Settings, folder: Path, watch: Watch = lambda job, states: None
) -> Iterator[tuple[Job | None, Record]]:
    """Measure what ``settings`` asks for and ``folder`` does not hold yet.

    Every record becomes a line of ``folder/records.jsonl`` as soon as its run ends. Yields the
    throughput (job None), then the runs in the order of ``settings.jobs``.
    """
    done = results.load(folder / RECORDS, ("file",))
    subject = load_subject(settings)
    warm = False

    def kept_or(wanted: Record, measure: Callable[..., Record], *args: Any) -> Record:
        nonlocal warm
        record = done.get(results.identity(wanted))
        if record is None or not (record["file"] is None or (folder / record["file"]).exists()):
            if not warm:  # nothing is allocated or compiled while the clock runs
                subject.denoise(subject.x_T, 0.5)
                warm = True
            record = wanted | {"file": None} | measure(*args)
            results.append(folder / RECORDS, record)
        return record

    wanted = _request(settings, subject, THROUGHPUT, None, {"sizes": list(SIZES)})
    record = kept_or(wanted, lambda: {"seconds": list(subject.throughput.values())})
    throughput = dict(zip(SIZES, record["seconds"], strict=True))
    yield None, record
    exact = torch.empty(0)
    for job in settings.jobs:
        options = {"mode": job.mode, "window": job.window, "tolerance": job.tolerance}
        options |= MODES.get(job.mode, {})
        wanted = _request(settings, subject, job.solver, job.nfe, options)
        if job.mode == SEQUENTIAL:
            file = f"samples/{hashlib.sha256(results.identity(wanted).encode()).hexdigest()[:12]}"
            target = folder / f"{file}.safetensors"
            record = kept_or(wanted, sequential, job, subject, target, folder, watch)
            exact = results.load_tensor(folder / record["file"]).to(subject.x_T.device)
        else:
            record = kept_or(wanted, parallel, job, subject, exact, throughput, settings, watch)
        yield job, record


def _request(
    settings: Settings, subject: Subject, solver: str, nfe: int | None, options: Record
) -> Record:
    """The part of a record that says what is measured."""
    measured = {"options": options, "nfe": nfe, "seed": settings.seed}
    return {"solver": solver, **measured, "problem": dict(subject.about)}


def sequential(job: Job, subject: Subject, target: Path, folder: Path, watch: Watch) -> Record:
    """Run ``sample``, and keep its result in ``target``."""
    began = time.perf_counter()
    plan = plan_of(job.solver, job.nfe)
    x = sample(
        subject.denoise,
        subject.x_T,
        plan,
        noise=subject.noise,
        callback=lambda step: watch(job, 1),
    ).cpu()
    seconds = time.perf_counter() - began
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": x.contiguous()}, target)
    return {"file": str(target.relative_to(folder)), "status": "ok", "seconds": seconds}


def parallel(
    job: Job,
    subject: Subject,
    exact: Tensor,
    throughput: Mapping[int, float],
    settings: Settings,
    watch: Watch,
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
            subject.denoise,
            subject.x_T,
            plan,
            job.window,
            tolerance,
            noise=subject.noise,
            max_groups=settings.max_groups,
            callback=note,
            **mode,
        )
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return {"status": "diverged", "note": str(error), "predicted": predicted}
    return {
        "status": "ok",
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
