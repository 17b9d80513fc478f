r"""``logsnr demo``: solvers side by side on an embedded model, from the same starts to one end.

Every method starts from x_T ~ N(0, 1) at the last training step and ends at the first one, where
the converged solution of the probability-flow ODE from the same x_T is the truth. A record holds
the distance to it, the MNIST-feature FID, and what the run cost.

The network embeds the time by sines of period 2 pi and more in training steps, so the ODE has a
ripple that a solver has to resolve before it converges: every multistep method does from about 300
evaluations on, while a general adaptive Runge-Kutta solver needs a thousand (`docs/demo.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from logsnr.benchmarks.embedded import EMBEDDED_MODELS, EmbeddedModel
from logsnr.benchmarks.harness.comparison import Comparison
from logsnr.benchmarks.harness.contenders import Contender
from logsnr.benchmarks.harness.feature_sources import embedded_measure
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.runner import Runner, Watch
from logsnr.benchmarks.harness.study import Job, Study, chosen, jobs
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.benchmarks.studies.demo_methods import LINEUPS, NFE, SAMPLES, TUNED, Lineup, Method
from logsnr.solvers.names import unknown

KEPT = 10  # pictures of each run that are kept: of the digits, one of each
BATCH = 100
FINE = (400, 300)
"""Evaluations of the converged solution, and of the coarser one whose distance is its error bar."""


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Parameters
    ----------
    model : one of ``LINEUPS``.
    samples : number of starts, at least 2; the labels take turns.
    nfe : numbers of network evaluations.
    solvers : names of the model's methods; none are all of them.
    seed : of the starts.
    guidance : scale of classifier-free guidance; 1 is the plain conditional network. Otherwise an
        evaluation is one network call on twice the batch.

    Raises ValueError naming the argument that is out of range, for ``nfe`` also if a solver needs
    more evaluations.
    """

    model: str = "faces"
    samples: int = SAMPLES
    nfe: tuple[int, ...] = NFE
    solvers: tuple[str, ...] = ()
    seed: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.model not in LINEUPS:
            raise unknown("model", self.model, LINEUPS)
        if not self.solvers:
            some = (name for name in self.methods if name != TUNED or self.numbers(name))
            object.__setattr__(self, "solvers", tuple(some))
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: need at least 2, or there is no FID")
        if not self.nfe or min(self.nfe) < 1 or max(self.nfe) > 1000:
            raise ValueError(f"nfe={list(self.nfe)}: need numbers in 1..1000")
        chosen(self.solvers, tuple(self.methods))
        for name in self.solvers:
            if not self.numbers(name):
                counts = self.contender(name).counts
                raise ValueError(f"nfe={list(self.nfe)}: {name} has {counts} evaluations alone")
        if len(set(self.nfe)) < len(self.nfe):
            raise ValueError(f"nfe={list(self.nfe)}: need each entry once")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: need a whole number in 0..2^63 - 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance={self.guidance}: need a finite number")
        unloaded = embedded_subject(self.embedded, self.guidance, network=self.embedded)
        for name, nfe in self.runs:
            unloaded.check(self.contender(name), nfe)

    @property
    def lineup(self) -> Lineup:
        """What is compared on this model."""
        return LINEUPS[self.model]

    @property
    def methods(self) -> Mapping[str, Method]:
        """All that can be compared on this model."""
        return self.lineup.methods

    @property
    def embedded(self) -> EmbeddedModel:
        """The model."""
        return EMBEDDED_MODELS[self.model]

    def contender(self, name: str) -> Contender:
        """A method as the harness takes it."""
        method = self.methods[name]
        return Contender(method.solver, method.options, name, method.title)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(solver, NFE) of all measurements but the reference."""
        return [(name, nfe) for name in self.solvers for nfe in self.numbers(name)]

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers of evaluations at which a method is run: cards have some alone."""
        contender = self.contender(name)
        return tuple(n for n in self.nfe if not contender.saved or n in contender.plans)

    @property
    def study(self) -> Study:
        """The same for the harness."""
        return Study(
            tuple(map(self.contender, self.solvers)),
            self.nfe,
            (self.seed,),
            FINE,
            samples=self.samples,
            shard=BATCH,
            keep=KEPT,
        )


def load_subject(settings: Settings) -> NetworkSubject:
    """The embedded model, ready to be sampled."""
    return embedded_subject(settings.embedded, settings.guidance)


def comparison(settings: Settings, folder: Path) -> Comparison:
    """What the harness measures, and keeps in ``folder``."""
    measures = (embedded_measure(settings.embedded, ("fid",)),)
    return Comparison(settings.study, load_subject(settings), folder, measures, tolerant=False)


def compare(settings: Settings, folder: Path, watch: Watch[Job] | None = None) -> Iterator[Record]:
    """Measure everything that ``settings`` asks for and ``folder`` does not hold yet.

    Yields the records: the reference first, then those of ``settings.runs``. A run that diverges
    is a record with status "diverged" and no distances.
    """
    runner = Runner(comparison(settings, folder), folder)
    for _, record in runner.run(jobs(settings.study), watch):
        yield record
