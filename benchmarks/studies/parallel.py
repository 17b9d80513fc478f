"""What ``logsnr parallel`` measures: plans, each sequentially and in several modes of sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from logsnr.benchmarks.embedded import DIGITS
from logsnr.benchmarks.harness.contenders import parse_contender
from logsnr.solvers import SOLVERS, Plan, make_plan
from logsnr.solvers.parallel.options import Picard

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
            Picard(window)
        for tolerance in self.tolerances:
            Picard(tolerance=tolerance)
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
def plan_of(solver: str, nfe: int) -> Plan:
    """The plan of a solver written as in ``Settings.solvers``, on the schedule of the digits.

    ValueError if there is none.
    """
    contender = parse_contender(solver)
    if contender.name not in SOLVERS:
        raise ValueError(
            f"solvers={solver!r}: need a solver of this library, as logsnr order lists"
        )
    try:
        return make_plan(contender.name, DIGITS.schedule, nfe=nfe, **{**GRID, **contender.options})
    except (ValueError, TypeError) as error:
        raise ValueError(f"steps={nfe}: not possible for {solver} ({error})") from error
