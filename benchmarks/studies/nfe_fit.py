"""The location of the default grid fitted to a pipeline, by short runs of the pipeline itself.

The fit is a study of its own: `PlanScheduler` at some locations, with few evaluations, on the seeds
and against the converged solutions of the study that it is for. So its runs are kept like all
others, and what is learnt from them is computed from the states that they left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.location import location_of
from logsnr.adapters.config.model import model_of
from logsnr.adapters.config.resolution_shift import resolution_shift
from logsnr.benchmarks.harness.comparison import check_study
from logsnr.benchmarks.harness.contenders import PASTED, Contender
from logsnr.benchmarks.harness.study import Study
from logsnr.benchmarks.harness.subjects.pipeline import PipelineSubject
from logsnr.benchmarks.studies.nfe_findings import Findings
from logsnr.solvers import FittedLocation
from logsnr.solvers.location_fit import LOCATIONS, NFE, lowest

SEEDS = 8
"""More do not tell the location better than the valley is flat."""
DECIMALS = 2
LEAST = 1e-300  # of a distance that has a logarithm


@dataclass(frozen=True)
class PipelineFit:
    """A fitted location, and the one that `PlanScheduler` has where nobody names one.

    ``rule`` is None where the resolution decides it at each call (dynamic shift).
    """

    found: FittedLocation
    rule: float | None
    seeds: int

    @property
    def location(self) -> float:
        """The fitted location as it is written: more digits would say nothing."""
        return round(self.found.location, DECIMALS) + 0.0  # never -0.0

    def joins(self, contenders: tuple[Contender, ...]) -> tuple[Contender, ...]:
        """The contenders with `PlanScheduler` at the fitted location, which may be there."""
        joined = Contender(PASTED, {"location": self.location})
        there = any(entry.text == joined.text for entry in contenders)
        return contenders if there else (*contenders, joined)

    @property
    def line(self) -> str:
        """What to paste."""
        return f"PlanScheduler.from_config(pipe.scheduler.config, location={self.location})"

    @property
    def text(self) -> str:
        """A sentence about it, and the line."""
        rule = "that of the shift" if self.rule is None else f"{self.rule:.{DECIMALS}f}"
        edge = "; it is the last that was tried, the best may lie beyond"
        return (
            f"Fitted location {self.location}, the rule's is {rule} ({self.found.evaluations} "
            f"evaluations, {self.seeds} seed{'s' if self.seeds > 1 else ''}"
            f"{edge if self.found.at_an_end else ''}):\n    {self.line}"
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "location": self.location,
            "rule": self.rule,
            "tried": list(self.found.tried),
            "errors": list(self.found.errors),
            "evaluations": self.found.evaluations,
            "line": self.line,
        }


def with_pasted(contenders: tuple[Contender, ...]) -> tuple[Contender, ...]:
    """The contenders with `PlanScheduler` as it is, which a fitted one is to be compared with."""
    there = any(entry.name == PASTED and not entry.options for entry in contenders)
    return contenders if there else (*contenders, Contender(PASTED, {}))


def fit_study(study: Study, subject: PipelineSubject) -> Study:
    """The runs of the fit for a study, on its first seeds.

    Raises ValueError if the reference is too short for it, or the config has a grid of its own.
    """
    trials = tuple(Contender(PASTED, {"location": c}) for c in LOCATIONS)
    try:
        trial = replace(study, contenders=trials, nfe=NFE, seeds=study.seeds[:SEEDS])
        check_study(trial, subject)
    except ValueError as error:
        raise ValueError(f"fit: with {NFE[0]} and {NFE[1]} evaluations, {error}") from error
    return trial


def fitted(trial: Findings, subject: PipelineSubject) -> PipelineFit:
    """The location at which the runs of ``trial`` are most accurate, see `fit_location`.

    Raises ValueError if no location has all of its runs.
    """
    study = trial.study
    logs = [_log_error(trial, contender) for contender in study.contenders]
    spent = len(study.seeds) * len(LOCATIONS) * sum(NFE)
    errors = tuple(math.exp(log) for log in logs)
    found = FittedLocation(lowest(LOCATIONS, logs), LOCATIONS, errors, spent)
    return PipelineFit(found, rule_of(subject.pipe.scheduler.config), len(study.seeds))


def _log_error(trial: Findings, contender: Contender) -> float:
    """The mean of the logarithm, infinite where a run did not come to an end."""
    logs: list[float] = []
    for nfe in trial.study.nfe:
        if trial.cells[contender.text, nfe].note is not None:
            return math.inf
        logs += [math.log(max(d, LEAST)) for d in trial.distances(contender, nfe)]
    return sum(logs) / len(logs)


def rule_of(config: Any) -> float | None:
    """The location of `PlanScheduler` for a pipeline with this config."""
    own = PlanScheduler.from_config(config).config
    if own.get("location") is not None:
        return float(own["location"])
    shift = resolution_shift(own)
    if shift is None:
        return location_of(model_of(own))
    return None if shift.dynamic else location_of(model_of(own), shift.factor(None))
