"""One fit of a plan: which of the ways is asked for, and whether what it found is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.benchmarks.harness.subjects.fitting import Fitting
from logsnr.solvers import Denoiser, Plan
from logsnr.solvers.tuning.auto import auto_plan
from logsnr.solvers.tuning.card import UNTUNED
from logsnr.solvers.tuning.errors import better, plan_errors, summary
from logsnr.solvers.tuning.fitting import fit
from logsnr.solvers.tuning.grid_fit import fit_grid
from logsnr.solvers.tuning.grid_problem import GridProblem
from logsnr.solvers.tuning.options import Tuning

AUTO = "auto"
"""The level of plans that were chosen, not fitted."""
VALIDATION = 0.25
"""The share of the starts that decides, of the fits that take no validation starts themselves."""
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


def with_gradients(
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
    asked = Tuning(
        nfe=nfe,
        level=level,
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


def without_gradients(
    method: str,
    fitted: Fitting,
    nfe: int,
    denoise: Denoiser,
    starts: Tensor,
    targets: Tensor,
    show: Show,
    batch_size: int,
    **options: Any,
) -> Outcome:
    """A grid by `fit_grid`, held against the default one over starts that it was not fitted to."""
    held = max(1, round(VALIDATION * len(starts)))
    fit, check = torch.arange(len(starts)).split([len(starts) - held, held])
    plan = fit_grid(
        denoise.for_samples(fit, len(starts)),
        starts[fit],
        nfe,
        method=method,
        targets=targets[fit],
        batch_size=batch_size,
        progress=show,
        **options,
        **fitted.ends,
    )
    default = GridProblem(fitted.schedule, None, nfe, dict(fitted.ends)).default
    old, new = (
        plan_errors(
            each,
            denoise.for_samples(check, len(starts)),
            starts[check],
            targets[check],
            batch_size=batch_size,
        )
        for each in (default, plan)
    )
    found = better(new, old)
    about = {"method": method, "starts": len(fit), "validation": held, **options}
    about["note"] = dict(plan.options.get("fit", {}))
    comparison = {**asdict(found), "better": found.better}
    if not found.better:
        before = asdict(summary(old))
        return Outcome(default, UNTUNED, before, before, comparison, about)
    return Outcome(plan, "grid", asdict(summary(old)), asdict(summary(new)), comparison, about)
