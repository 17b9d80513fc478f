"""Plans fitted to a subject, as ``logsnr tune`` and ``logsnr auto`` ask for them.

Two stages. The converged solutions of the starts are computed shard by shard, each kept as soon as
it is there, and shared over the ranks of torchrun. Then one rank fits a plan for each number of
evaluations, and writes its card. All of it depends on the request alone: who is killed and started
again makes the same cards, bit for bit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.benchmarks.harness.files import claim, load_tensor, save_tensors
from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.subjects.fitting import Fitting
from logsnr.benchmarks.studies.tuning_fits import (
    AUTO,
    Outcome,
    Show,
    by_measurement,
    fitted_plan,
    tuning,
)
from logsnr.solvers import Card, Cards, Denoiser, Plan, sample
from logsnr.solvers.checks import check_choice
from logsnr.solvers.processes import Ranks
from logsnr.solvers.tuning.auto import LEAST_STARTS
from logsnr.solvers.tuning.card import card_file
from logsnr.solvers.tuning.grid_fit import METHODS
from logsnr.solvers.tuning.options import LEVELS
from logsnr.solvers.whole_files import write_whole

WORK = "work"
"""Where converged solutions are kept, below the folder of the cards."""
TIMING = "timing.json"
SHARD = 32
LINUX = sys.platform == "linux"  # which counts memory in kB
Update = Callable[[float, str], None]
Progress = Callable[[float, str], AbstractContextManager[Update]]
"""(total, unit) -> what is told how much is done, and what is being done."""


@contextmanager
def quietly(total: float, unit: str) -> Iterator[Update]:
    """No progress."""
    yield lambda done, text: None


@dataclass(frozen=True)
class Request:
    """What is fitted.

    Parameters
    ----------
    nfe : numbers of network evaluations, one card each.
    level : "auto" chooses among what is known; "grid", "coefficients" and "full" fit with
        gradients; "location", "lattice", "proxy" and "search" fit the nodes without.
    starts : start states, with the validation's among them.
    seed : of the starts.
    reference_nfe : evaluations of the converged solution.
    batch_size : starts that run at once.
    options : more for the fit.

    Raises ValueError naming the argument that is out of range.
    """

    nfe: tuple[int, ...]
    level: str = "full"
    starts: int = 256
    seed: int = 1000
    reference_nfe: int = 200
    batch_size: int = SHARD
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("level", self.level, (AUTO, *LEVELS, *METHODS))
        if not self.nfe or len(set(self.nfe)) < len(self.nfe) or min(self.nfe) < 1:
            raise ValueError(f"nfe={list(self.nfe)}: need whole numbers of at least 1, each once")
        if self.level != AUTO:
            for n in self.nfe:
                tuning(n, self.level, batch_size=self.batch_size, **self.options)
        few = LEAST_STARTS if self.level == AUTO else 8
        for name, least in (("starts", few), ("batch_size", 1), ("reference_nfe", 10), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: need at least {least}")

    def asked(self, fitted: Fitting) -> dict[str, Any]:
        """What the converged solutions depend on, as JSON values."""
        return {
            "model": fitted.model.to_json(),
            "about": dict(fitted.about),
            "ends": dict(fitted.ends),
            "seed": self.seed,
            "reference_nfe": self.reference_nfe,
            "shard": SHARD,
        }

    def identity(self, fitted: Fitting, nfe: int) -> str:
        """A digest of all that a card depends on."""
        own = {**asdict(self), "nfe": nfe, "options": dict(self.options)}
        return digest({**own, "references": self.asked(fitted)})

    @property
    def shards(self) -> list[range]:
        """The indices of the starts of each shard."""
        return [range(k, min(k + SHARD, self.starts)) for k in range(0, self.starts, SHARD)]


def references(
    request: Request, fitted: Fitting, out: Path, here: Ranks, progress: Progress = quietly
) -> Tensor:
    """The converged solutions (N, *event) of the starts, on every rank; kept in ``out``.

    Raises ValueError if ``out`` holds those of something else.
    """
    folder = out / WORK
    asked = request.asked(fitted)
    if here.rank == 0:
        held = any(folder.glob("*.safetensors"))
        claim(folder, asked, "references.json", held, "converged solutions of something else")
    here.barrier("converged solutions")
    # The last shard may be a part: another number of starts has another, and all the others.
    files = [folder / f"{part.start}-{part.stop}.safetensors" for part in request.shards]
    missing = [k for k, file in enumerate(files) if not _whole(file)]
    here.barrier("what is missing")  # nobody writes before all have looked
    plan = fitted.solution(request.reference_nfe)
    left = sum(len(request.shards[k]) for k in missing)
    of_rank = progress if here.rank == 0 else quietly
    with of_rank(plan.nfe * request.starts, "evaluations") as update:
        for k in missing[here.rank :: here.size]:
            update(plan.nfe * (request.starts - max(0, left)), "converged solutions")
            here.heed("converged solutions")
            part = request.shards[k]
            x = sample(fitted.denoiser(part), fitted.starts(request.seed, part), plan)
            save_tensors(files[k], {"x": x.detach().cpu()})
            left -= here.size * len(part)  # the others are taken to do as much
        update(plan.nfe * request.starts, "converged solutions")
    here.barrier("the end of the converged solutions")
    return torch.cat([load_tensor(file) for file in files])


def _whole(file: Path) -> bool:
    """Whether a shard is there and can be read."""
    try:
        return file.exists() and load_tensor(file) is not None
    except ValueError:
        return False


def fit_cards(
    request: Request,
    fitted: Fitting,
    out: Path,
    targets: Tensor,
    progress: Progress = quietly,
) -> Cards:
    """A card for each number of evaluations, written into ``out``; those that are there are kept.

    What each took is in ``timing.json``, apart from the cards, which are the same each time.
    """
    indices = range(request.starts)
    starts, denoise = fitted.starts(request.seed, indices), fitted.denoiser(indices)
    targets = targets.to(starts.device)
    found = []
    for nfe in request.nfe:
        identity = request.identity(fitted, nfe)
        card = kept(out, nfe, identity)
        if card is None:
            began = time.perf_counter()
            with shown(progress, f"{nfe} evaluations") as show:
                checkpoint = out / WORK / f"fit-{nfe}-{identity}"
                outcome = fit(request, fitted, nfe, denoise, starts, targets, show, checkpoint)
            about = {**outcome.fit, "seed": request.seed, "request": identity}
            card = Card(
                told_exactly(outcome.plan),
                outcome.level,
                fitted.model,
                outcome.before,
                outcome.after,
                outcome.comparison,
                about,
            )
            card.save(out)
            checkpoint.unlink(missing_ok=True)
            if card.listed:
                write_sigmas(card, out)
            note(out, nfe, time.perf_counter() - began)
        found.append(card)
    return Cards(found)


def fit(
    request: Request,
    fitted: Fitting,
    nfe: int,
    denoise: Denoiser,
    starts: Tensor,
    targets: Tensor,
    show: Show,
    checkpoint: Path,
) -> Outcome:
    """The plan of one number of evaluations, by the way that the level names."""
    given, size = (fitted, nfe, denoise, starts, targets, show), request.batch_size
    if request.level == AUTO:
        return by_measurement(*given, size, **request.options)
    own = {"batch_size": min(size, request.starts), **request.options}
    return fitted_plan(request.level, *given, checkpoint, **own)


def told_exactly(plan: Plan) -> Plan:
    """The plan that tells the network the times of its nodes as they are.

    A scheduler tells a model of training steps the nearest of them, and a fitted plan was fitted to
    what lies between.
    """
    rows = [
        replace(row, node=row.node._replace(told=row.node.call[0])) if row.evaluated else row
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows))


def write_sigmas(card: Card, out: Path) -> None:
    """The noise levels of the nodes as text, for programs that read such lists."""
    text = ", ".join(f"{level:.9g}" for level in card.sigmas())
    path = out / f"sigmas-{card.nfe}.txt"
    write_whole(path, lambda part: part.write_text(text + "\n"))


def kept(out: Path, nfe: int, identity: str) -> Card | None:
    """The card of an earlier run of the same request; None if it is not there, or damaged."""
    path = card_file(out, nfe)
    try:
        card = Card.load(path) if path.exists() else None
    except ValueError:
        return None
    return card if card is not None and card.fit.get("request") == identity else None


@contextmanager
def shown(progress: Progress, title: str) -> Iterator[Show]:
    """What a fit tells its progress to, in whatever units it has."""
    with ExitStack() as stack:
        update: Update | None = None

        def show(done: int, total: int) -> None:
            nonlocal update
            if update is None:
                update = stack.enter_context(progress(total, "steps"))
            update(done, title)

        yield show


def note(out: Path, nfe: int, seconds: float) -> None:
    """Seconds and the most memory so far, in MB, of the card of so many evaluations."""
    path = out / TIMING
    try:
        said = dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        said = {}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if LINUX else 1024**2)
    entry = {"seconds": round(seconds, 1), "memory_mb": round(memory)}
    if torch.cuda.is_available():
        entry["cuda_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1024**2)
    said[str(nfe)] = entry
    write_whole(path, lambda part: part.write_text(json.dumps(said, indent=2) + "\n"))
