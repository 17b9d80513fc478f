"""Plans fitted to a subject, as ``logsnr tune`` and ``logsnr auto`` ask for them.

Two stages. The converged solutions of the starts are computed shard by shard, each kept as soon as
it is there, and shared over the ranks of torchrun. Then one rank fits a plan for each number of
evaluations, and writes its card. All of it depends on the request alone: who is killed and started
again makes the same cards, bit for bit.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.benchmarks.harness.files import claim, load_tensor, save_tensors
from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.subjects.fitting import Fitting
from logsnr.solvers import Card, sample
from logsnr.solvers.processes import Ranks

WORK = "work"
"""Where converged solutions are kept, below the folder of the cards."""
SHARD = 32
Tick = Callable[[int], None]
"""Called with the evaluations that a shard took."""


@dataclass(frozen=True)
class Request:
    """What is fitted.

    Parameters
    ----------
    nfe : numbers of network evaluations, one card each.
    level : "auto", "grid", "coefficients" or "full".
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
        if not self.nfe or len(set(self.nfe)) < len(self.nfe) or min(self.nfe) < 1:
            raise ValueError(f"nfe={list(self.nfe)}: need whole numbers of at least 1, each once")
        for name, least in (("starts", 8), ("batch_size", 1), ("reference_nfe", 10), ("seed", 0)):
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
    request: Request, fitted: Fitting, out: Path, here: Ranks, tick: Tick = lambda amount: None
) -> Tensor:
    """The converged solutions (N, *event) of the starts, on every rank; kept in ``out``.

    Raises ValueError if ``out`` holds those of something else.
    """
    folder = out / WORK
    asked = request.asked(fitted)
    if here.rank == 0:
        claim(folder, asked, "references.json", held=any(folder.glob("*.safetensors")))
    here.barrier("converged solutions")
    # The last shard may be a part: another number of starts has another, and all the others.
    files = [folder / f"{part.start}-{part.stop}.safetensors" for part in request.shards]
    missing = [k for k, file in enumerate(files) if not _whole(file)]
    here.barrier("what is missing")  # nobody writes before all have looked
    plan = fitted.solution(request.reference_nfe)
    tick(plan.nfe * (request.starts - sum(len(request.shards[k]) for k in missing)))
    for k in missing[here.rank :: here.size]:
        here.heed("converged solutions")
        part = request.shards[k]
        x = sample(fitted.denoiser(part), fitted.starts(request.seed, part), plan)
        save_tensors(files[k], {"x": x.detach().cpu()})
        tick(plan.nfe * len(part) * here.size)
    here.barrier("the end of the converged solutions")
    return torch.cat([load_tensor(file) for file in files])


def _whole(file: Path) -> bool:
    """Whether a shard is there and can be read."""
    try:
        return file.exists() and load_tensor(file) is not None
    except ValueError:
        return False
