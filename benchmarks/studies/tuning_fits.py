"""One fit of a plan: which of the ways is asked for, and whether what it found is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from logsnr.benchmarks.harness.subjects.fitting import Fitting
from logsnr.solvers import Denoiser, Plan
from logsnr.solvers.tuning.auto import auto_plan
from logsnr.solvers.tuning.card import UNTUNED
from logsnr.solvers.tuning.fitting import fit
from logsnr.solvers.tuning.grid_fit import METHODS
from logsnr.solvers.tuning.options import Tuning

AUTO = "auto"
"""The level of plans that were chosen, not fitted."""
Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """A plan that is as good as can be told: what was fitted if that is better, else what was.

    level : "untuned" where nothing better was found.
    before, after, comparison : errors of validation starts, as cards have them.
    fit : how it was fitted, as JSON values.
    """

    plan: Plan
    level: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    comparison: Mapping[str, Any]
    fit: Mapping[str, Any]


def tuning(nfe: int, level: str, **options: Any) -> Tuning:
    """The options of `tune`; ValueError naming one that it does not have, or does not take.

    level : one of `LEVELS`, or a method of fitting nodes without gradients.
    """
    known = [entry.name for entry in fields(Tuning)]
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"set={f'{key}={value}'!r}: choose one of {', '.join(known)}")
    method: dict[str, Any] = {"level": level}
    if level in METHODS:
        method = {"level": "grid", "method": level}
    return Tuning(nfe=nfe, **method, **options)


def fitted_plan(
    level: str,
    fitted: Fitting,
    nfe: int,
    denoise: Denoiser,
    starts: Tensor,
    targets: Tensor,
    show: Show,
    checkpoint: Path,
    **options: Any,
) -> Outcome:
    """Nodes and coefficients by `tune`, whose own validation decides."""
    asked = tuning(
        nfe,
        level,
        targets=targets,
        checkpoint=checkpoint,
        progress=show,
        **options,
        **fitted.ends,
    )
    found = fit(denoise, starts, asked)
    report = dict(found.report)
    errors = report["errors"]
    before, accepted = errors["untuned"], report["accepted"]
    after = errors[report["rows"]] if accepted else before
    comparison = {**report["comparison"], "better": accepted}
    level = "grid" if level in METHODS else level
    return Outcome(found.plan, level if accepted else UNTUNED, before, after, comparison, report)


def by_measurement(
    fitted: Fitting,
    nfe: int,
    denoise: Denoiser,
    starts: Tensor,
    targets: Tensor,
    show: Show,
    batch_size: int,
    **options: Any,
) -> Outcome:
    """The best of all solvers and grids by `auto_plan`, whose unseen starts decide."""
    plan = auto_plan(
        denoise,
        starts,
        nfe,
        targets=targets,
        batch_size=batch_size,
        progress=show,
        **options,
        **fitted.ends,
    )
    report = dict(plan.options["auto"])
    comparison, errors = report["comparison"], report["errors"]
    before, better_one = errors["default"], comparison["better"]
    after = errors["winner"] if better_one else before
    return Outcome(plan, AUTO if better_one else UNTUNED, before, after, comparison, report)
