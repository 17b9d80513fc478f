"""What is compared: contenders x evaluations x seeds, each with so many samples, cut into shards.

Of a seed the samples have indices 0, 1, ..; shard k holds the indices k S .. (k + 1) S - 1, and is
one batch of the network. So results depend on the shard size, which is part of the protocol, and
on nothing else of how the work was arranged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logsnr.benchmarks.harness.contenders import Contender
from logsnr.solvers.names import nearest

REFERENCE = "reference"
MOST_SEED = 2**63


@dataclass(frozen=True)
class Job:
    """One measurement: a contender, its evaluations, a seed.

    The converged solution of a seed has neither contender nor number.
    """

    contender: Contender | None
    nfe: int | None
    seed: int

    @property
    def title(self) -> str:
        """What is running, in a line of progress."""
        if self.contender is None:
            return f"seed {self.seed}: converged solution"
        return f"seed {self.seed}: {self.contender.text}, {self.nfe} NFE"


@dataclass(frozen=True)
class Study:
    """What is compared.

    Parameters
    ----------
    contenders : each once, by its text.
    nfe : numbers of network evaluations.
    seeds : of the starts.
    reference_nfe : evaluations of the converged solution, and of the coarser one whose distance
        is its error bar.
    samples : of each seed.
    shard : samples that are computed together, and kept together.
    keep : of the samples of a seed, the states of so many are kept beside the numbers, for the
        pictures.
    reference_samples : of the samples of a seed, the first so many have a converged solution and
        distances to it: whole shards, 0 for none; None is all of them.

    Raises ValueError naming the argument that is out of range.
    """

    contenders: tuple[Contender, ...]
    nfe: tuple[int, ...] = (5, 8, 10, 20)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    reference_nfe: tuple[int, int] = (200, 150)
    samples: int = 1
    shard: int = 100
    keep: int = 10
    reference_samples: int | None = None

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
        if min(self.seeds) < 0 or max(self.seeds) >= MOST_SEED:
            raise ValueError(f"seeds={list(self.seeds)}: need whole numbers in 0..2^63 - 1")
        for name, least in (("samples", 1), ("shard", 1), ("keep", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: need at least {least}")
        self._check_referenced()
        fine, coarse = self.reference_nfe
        if not 3 <= coarse < fine:
            raise ValueError(
                f"reference_nfe={fine},{coarse}: need a fine and a coarser number, both at least 3"
            )

    @property
    def indices(self) -> list[range]:
        """The indices of each shard's samples."""
        return [
            range(first, min(first + self.shard, self.samples))
            for first in range(0, self.samples, self.shard)
        ]

    def _check_referenced(self) -> None:
        given = self.reference_samples
        if given is None or given == self.samples:
            return
        if not 0 <= given < self.samples or given % self.shard:
            raise ValueError(
                f"reference_samples={given}: need a multiple of shard={self.shard} below "
                f"samples={self.samples}, or all of them"
            )

    def numbers(self, contender: Contender) -> tuple[int, ...]:
        """The numbers of evaluations of one contender: a saved plan has its own alone."""
        return tuple(n for n in self.nfe if not contender.saved or n in contender.plans)

    @property
    def referenced(self) -> int:
        """Samples of a seed that have a converged solution."""
        return self.samples if self.reference_samples is None else self.reference_samples

    @property
    def referenced_portions(self) -> range:
        """The shards of those samples."""
        return range(-(-self.referenced // self.shard))

    @property
    def whole(self) -> bool:
        """Whether the states of all samples are kept."""
        return self.keep >= self.samples

    @property
    def evaluations(self) -> float:
        """Of all runs together, at most, of each sample."""
        return sum(work(self, job) for job in jobs(self))


def jobs(study: Study) -> list[Job]:
    """All runs, seed by seed, the reference first: an early report has complete columns."""
    return [
        job
        for seed in study.seeds
        for job in (
            *([Job(None, None, seed)] if study.referenced else []),
            *(
                Job(contender, nfe, seed)
                for contender in study.contenders
                for nfe in study.numbers(contender)
            ),
        )
    ]


def work(study: Study, job: Job) -> float:
    """Evaluations of each sample, of all that are drawn."""
    if job.nfe is not None:
        return job.nfe
    return sum(study.reference_nfe) * len(study.referenced_portions) / len(study.indices)


def chosen(given: Sequence[str], names: Sequence[str], argument: str = "solvers") -> None:
    """Raise ValueError unless all that is given are among the names, each once."""
    unknown = [name for name in given if name not in names]
    if unknown or not given:
        near = nearest(unknown[0], names) if unknown else None
        raise ValueError(
            f"{argument}={', '.join(unknown)!r}: choose some of {', '.join(names)}"
            + ("" if near is None else f"; did you mean {near!r}?")
        )
    if len(set(given)) < len(given):
        raise ValueError(f"{argument}={list(given)}: need each entry once")
