r"""Solvers side by side on the embedded model: same network, same starts, same end, counted NFE.

Every method starts from x_T ~ N(0, 1) at the last training step and ends at the first one
(`stock` says why), where the converged solution of the probability-flow ODE from the same x_T is
the truth. A record holds the distance to it, the MNIST-feature FID, and what the run cost.

The network embeds the time by sines of period 2 pi and more in training steps, so the ODE has a
ripple that a solver has to resolve before it converges: every multistep method does from about 300
evaluations on, while a general adaptive Runge-Kutta solver needs a thousand (`docs/demo.md`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from logsnr.benchmarks.embedded import (
    EMS_FILE,
    MODEL_FOLDER,
    NULL_LABEL,
    load_ems,
    load_feature_network,
    load_reference_statistics,
    load_scheduler,
    load_scheduler_config,
    load_unet,
)
from logsnr.benchmarks.harness import old_records as results
from logsnr.benchmarks.harness.methods import GRID, METHODS, NFE, SAMPLES, V3
from logsnr.benchmarks.harness.old_records import Record
from logsnr.benchmarks.harness.parts import counted, forget, kept_part
from logsnr.benchmarks.harness.stock import sample_stock, stock_scheduler
from logsnr.benchmarks.metrics.distances import psnr, rmse
from logsnr.benchmarks.metrics.frechet import fid
from logsnr.solvers import (
    ClassifierFree,
    Denoiser,
    DiscreteVP,
    Plan,
    make_plan,
    sample,
)
from logsnr.solvers.names import nearest

DIGITS = 10
KEPT = 10  # pictures of each run that are kept: one of each digit
BATCH = 100
REFERENCE = "reference"
FINE = (400, 300)
"""Evaluations of the converged solution, and of the coarser one whose distance is its error bar."""
RECORDS = "records.jsonl"
WEIGHTS = MODEL_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"

Watch = Callable[[str], None]
"""Called with the name of the running measurement after each call of the network."""


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Parameters
    ----------
    samples : number of starts, at least 2; the labels 0..9 take turns.
    nfe : numbers of network evaluations.
    solvers : keys of ``METHODS``.
    seed : of the starts.
    guidance : scale of classifier-free guidance; 1 is the plain conditional network. Otherwise an
        evaluation is one network call on twice the batch.

    Raises ValueError naming the argument that is out of range, for ``nfe`` also if a solver needs
    more evaluations.
    """

    samples: int = SAMPLES
    nfe: tuple[int, ...] = NFE
    solvers: tuple[str, ...] = tuple(METHODS)
    seed: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: need at least 2, or there is no FID")
        if not self.nfe or min(self.nfe) < 1 or max(self.nfe) > 1000:
            raise ValueError(f"nfe={list(self.nfe)}: need numbers in 1..1000")
        unknown = [name for name in self.solvers if name not in METHODS]
        if unknown or not self.solvers:
            near = nearest(unknown[0], METHODS) if unknown else None
            raise ValueError(
                f"solvers={', '.join(unknown)!r}: choose some of {', '.join(METHODS)}"
                + ("" if near is None else f"; did you mean {near!r}?")
            )
        for name in ("nfe", "solvers"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name}={list(given)}: need each entry once")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: need a whole number in 0..2^63 - 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance={self.guidance}: need a finite number")
        for name, nfe in self.runs:
            if not METHODS[name].scheduler:
                plan_of(name, nfe)

    @property
    def batches(self) -> int:
        """The number of portions in which the starts are run."""
        return -(-self.samples // BATCH)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(solver, NFE) of all measurements but the reference."""
        return [(name, nfe) for name in self.solvers for nfe in self.nfe]


def schedule() -> DiscreteVP:
    """The noise schedule of the embedded model, from the same table that diffusers uses."""
    return DiscreteVP(load_scheduler().alphas_cumprod)


def plan_of(name: str, nfe: int) -> Plan:
    """The plan of one of our ``METHODS``. Raises ValueError if the solver needs more than ``nfe``.

    The grids are those of the module's text; they end at the schedule's t_end, training step 0.
    """
    method = METHODS[name]
    options = dict(method.options)
    if method.solver == V3:
        options["ems"] = load_ems()
    try:
        return make_plan(method.solver, schedule(), nfe=nfe, **options)
    except ValueError as error:
        raise ValueError(f"nfe={nfe}: not possible for {name} ({error})") from error


def solution(denoise: Denoiser, x_T: Tensor, nfe: int) -> Tensor:
    """The solution of the probability-flow ODE from x_T (B, *event) with ``nfe`` evaluations."""
    plan = make_plan("unipc", denoise.schedule, nfe=nfe, order=3, spacing=GRID)
    return sample(denoise, x_T, plan)


def converged(denoise: Denoiser, x_T: Tensor) -> tuple[Tensor, float]:
    """The solution of the probability-flow ODE from x_T (B, *event), and its error bar.

    The bar is the root mean square distance to a coarser solution, of which it is the error.
    """
    fine, coarse = (solution(denoise, x_T, nfe) for nfe in FINE)
    return fine, rmse(fine, coarse)


@dataclass(frozen=True)
class Problem:
    """The network, its noise schedule, and the starts with their labels."""

    network: torch.nn.Module
    schedule: DiscreteVP
    x_T: Tensor
    labels: Tensor
    guidance: float

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """(starts, labels) in portions that keep the network's memory small."""
        return list(zip(self.x_T.split(BATCH), self.labels.split(BATCH), strict=True))

    def denoiser(self, labels: Tensor, **options: Any) -> Denoiser:
        """The (guided) network for samples of these labels."""
        condition = {"class_labels": labels}
        null = {"class_labels": torch.full_like(labels, NULL_LABEL)}
        guidance = ClassifierFree(self.guidance, condition, null)
        return Denoiser(self.network, self.schedule, "epsilon", guidance=guidance, **options)


def load_problem(settings: Settings) -> Problem:
    """The embedded model, ready to be solved from the starts of ``settings``."""
    rng = torch.Generator().manual_seed(settings.seed)
    return Problem(
        network=load_unet(),
        schedule=schedule(),
        x_T=torch.randn(settings.samples, 1, 28, 28, generator=rng),
        labels=torch.arange(settings.samples) % DIGITS,
        guidance=settings.guidance,
    )


def compare(settings: Settings, folder: Path, watch: Watch = lambda name: None) -> Iterator[Record]:
    """Measure everything that ``settings`` asks for and ``folder`` does not hold yet.

    Writes a line into ``folder/records.jsonl`` and the first samples into ``folder/samples`` as
    soon as a run ends. Yields the records: the reference first, then those of ``settings.runs``.
    A run that diverges is a record with status "diverged" and no distances.
    """
    done = results.load(folder / RECORDS, ("status", "file"))
    model = _digest(WEIGHTS)
    problem = load_problem(settings)
    jobs: list[tuple[str, int | None]] = [(REFERENCE, None), *settings.runs]
    reference = torch.empty(0)
    for name, nfe in jobs:
        wanted = _request(name, nfe, settings, model)
        record = done.get(results.identity(wanted))
        if record is None or not (record["file"] is None or (folder / record["file"]).exists()):
            parts = folder / "reference" / _short(wanted)
            record, x = (
                measure_reference(problem, parts, watch)
                if nfe is None
                else measure(name, nfe, problem, reference, watch)
            )
            record = wanted | record | {"file": None}
            if x is not None:
                record["file"] = _keep(folder, record, x if name == REFERENCE else x[:KEPT])
            results.append(folder / RECORDS, record)
            forget(parts)
        if name == REFERENCE:
            reference = kept_samples(folder, record)
        yield record


def kept_samples(folder: Path, record: Record) -> Tensor:
    """The samples (B, 1, 28, 28) that were kept of a run: all of the reference, else the first."""
    return results.load_tensor(folder / record["file"], "samples")


def measure_reference(problem: Problem, parts: Path, watch: Watch) -> tuple[Record, Tensor]:
    """The converged solution of all starts, with its error bar and what it cost.

    Each portion of the starts is solved with both numbers of `FINE`; a solution is kept in the
    folder ``parts`` as soon as it is there, so that a killed run goes on with the next one.
    """
    solved = {
        nfe: [
            kept_part(
                parts / f"{nfe}-{i}.safetensors",
                lambda: solution(problem.denoiser(labels), x_T, nfe),  # noqa: B023  (called here)
                problem.network,
                lambda: watch(REFERENCE),
            )
            for i, (x_T, labels) in enumerate(problem.batches)
        ]
        for nfe in FINE
    }
    fine, coarse = (solved[nfe] for nfe in FINE)
    x = torch.cat([part.x for part in fine])
    both = [*fine, *coarse]
    return {
        "status": "ok",
        "fid": fid(x, load_feature_network(), load_reference_statistics()).value,
        "error_bar": max(rmse(a.x, b.x) for a, b in zip(fine, coarse, strict=True)),
        "nfe_counted": sum(part.calls for part in both) / len(fine),
        "seconds": sum(part.seconds for part in both),
    }, x


def measure(
    name: str, nfe: int, problem: Problem, reference: Tensor, watch: Watch
) -> tuple[Record, Tensor | None]:
    """Run one method over all starts: what it cost, how far it is from ``reference``.

    Returns (measurements, samples); samples is None if the run diverged.
    """
    run = _runner(name, nfe, problem)
    x: Tensor | None = None
    note = None
    began = time.perf_counter()
    with counted(problem.network, lambda: watch(name)) as calls:
        try:
            x = torch.cat([run(*batch) for batch in problem.batches])
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            note = str(error)
    seconds = time.perf_counter() - began
    cost = {"nfe_counted": calls[0] / len(problem.batches), "seconds": seconds}
    if x is not None and not x.isfinite().all():
        x, note = None, "the samples have values that are not finite"
    if x is None:
        return {"status": "diverged", "note": note, **cost}, None
    return {
        "status": "ok",
        "fid": fid(x, load_feature_network(), load_reference_statistics()).value,
        "rmse": rmse(x, reference),
        "psnr": psnr(x, reference),
        **cost,
    }, x


def _runner(name: str, nfe: int, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """(x_T, labels) -> samples."""
    method = METHODS[name]
    if not method.scheduler:
        plan = plan_of(name, nfe)
        return lambda x_T, labels: sample(problem.denoiser(labels), x_T, plan)
    scheduler = stock_scheduler(method.solver, load_scheduler_config(), **method.options)

    def drive(x_T: Tensor, labels: Tensor) -> Tensor:
        # These schedulers count training steps themselves, so the network's time is taken as is.
        network = problem.denoiser(labels, network_time=lambda index: index).evaluate
        return sample_stock(network, x_T, scheduler, nfe)

    return drive


def _request(name: str, nfe: int | None, settings: Settings, model: str) -> Record:
    """The part of a record that says what is measured."""
    options: dict[str, Any] = {"evaluations": list(FINE)}
    if nfe is not None:
        options = dict(METHODS[name].options)
        if METHODS[name].solver == V3:
            options["ems"] = _digest(EMS_FILE)
    problem = {"model": model, "samples": settings.samples, "guidance": settings.guidance}
    return {
        "solver": name,
        "options": options,
        "nfe": nfe,
        "seed": settings.seed,
        "problem": problem,
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _short(record: Record) -> str:
    return hashlib.sha256(results.identity(record).encode()).hexdigest()[:8]


def _keep(folder: Path, record: Record, x: Tensor) -> str:
    file = f"samples/{record['solver']}-{record['nfe'] or 'ode'}-{_short(record)}.safetensors"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    save_file({"samples": x.contiguous()}, folder / file)
    return file
