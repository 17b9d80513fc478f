r"""How far plans end from the converged solution, start by start, and which of two is nearer.

The error of start i is the root mean square over its numbers, e_i. Two plans are run from the same
starts, so what is compared are pairs. Under the hypothesis that neither is better, new and old of
every pair could change places: the share of all such exchanges that look at least as good for the
new plan as what was seen is its p-value (the randomisation test of Fisher and Pitman). It assumes
nothing of the errors' distribution, and with few starts it never is confident: four of four pairs
that are better have p = 1/16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_kind
from ..denoiser import Denoiser
from ..plan import Plan
from ..requests import drive, single
from ..running import run

MEASURES = ("log", "median", "rmse")
EXACT = 12
DRAWS = 4000
"""Exchanges and resamples that are drawn where all would be too many: 4000 of each."""


@dataclass(frozen=True)
class Summary:
    """Errors of many starts in three numbers.

    ``median`` is the typical sample's; ``rmse``, the root mean square of the errors, is decided by
    the few samples that end at another image; ``log_mean`` is the geometric mean; of ``count``
    starts.
    """

    median: float
    rmse: float
    log_mean: float
    count: int

    def of(self, measure: str) -> float:
        """The one that ``measure`` names: "log", "median" or "rmse"."""
        check_choice("measure", measure, MEASURES)
        return {"log": self.log_mean, "median": self.median, "rmse": self.rmse}[measure]


@dataclass(frozen=True)
class Comparison:
    """Two plans from the same starts.

    Parameters
    ----------
    ratio : new error over old, below 1 where the new plan is nearer.
    low, high : the interval that holds the ratio with the confidence asked for on either side.
    p_value : how probable so good a result is if the new plan is no better.
    better : whether 1 - p_value reaches the confidence, and the ratio is below 1.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    confidence: float
    measure: str
    count: int

    @property
    def better(self) -> bool:
        return self.ratio < 1 and self.p_value <= 1 - self.confidence


Features = Callable[[Tensor], Tensor]
"""(B, *event) samples -> (B, ...) what a distance is taken of: a network's features, say."""


def distances(x: Tensor, target: Tensor, features: Features | None = None) -> Tensor:
    """(B,) float64 root mean squares of x - target (B, *event); inf where x is not finite.

    With ``features``, those of the differences of what that makes of both.
    """
    a, b = x.detach(), target.to(x.device)
    if features is not None:
        a, b = features(a), features(b)
    gaps = (a.double() - b.double()).flatten(1).square().mean(1).sqrt()
    return torch.where(torch.isfinite(gaps), gaps, math.inf).cpu()


@torch.no_grad()
def plan_errors(
    plan: Plan,
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    targets: Tensor,
    *,
    batch_size: int = 64,
    noise: Any = None,
    features: Features | None = None,
) -> Tensor:
    """The error of every start: (B,) float64; inf for a run that did not stay finite.

    Parameters
    ----------
    starts, targets : (B, *event), the start states and the converged solutions from them.
    batch_size : starts that run at once. Conditions with one entry a start are divided with them.
    noise : of plans that add noise, see `sample`.
    features : what distances are taken of, see `distances`.
    """
    found = []
    for rows in torch.arange(len(starts)).split(batch_size):
        part = for_samples(denoise, rows, len(starts))
        x = run_finite(plan, part, starts[rows.to(starts.device)], noise)
        found.append(distances(x, targets[rows.to(targets.device)], features))
    return torch.cat(found)


def for_samples(denoise: Any, rows: Tensor, batch: int) -> Any:
    """A denoiser for some samples of a batch; a plain function has no conditions to divide."""
    return denoise.for_samples(rows, batch) if isinstance(denoise, Denoiser) else denoise


def run_finite(plan: Plan, denoise: Any, x: Tensor, noise: Any = None) -> Tensor:
    """The sample, not finite where the run was not: one bad start does not end the others'."""
    prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
    return drive(run(plan, x, prediction, noise=noise), single(denoise, plan), finite=False)


def summary(errors: Tensor) -> Summary:
    """The three numbers of errors (B,)."""
    e = _checked("errors", errors)
    log_mean = math.exp(float(_logs(e).mean()))
    return Summary(float(e.quantile(0.5)), float(e.square().mean().sqrt()), log_mean, len(e))


def better(
    new: Tensor, old: Tensor, confidence: float = 0.95, *, measure: str = "log"
) -> Comparison:
    """Whether the errors ``new`` (B,) are below ``old`` (B,) of the same starts, with confidence.

    Parameters
    ----------
    measure : what is compared. "log": the geometric means; "median": the medians, tested by the
        number of pairs that are better; "rmse": the root mean squares.
    confidence : in (0.5, 1). With fewer starts than log2(1 / (1 - confidence)), five at 0.95,
        nothing is ever better.

    The same input gives the same answer, everywhere: nothing is drawn from a global generator.
    Raises ValueError for bad input.
    """
    check_choice("measure", measure, MEASURES)
    check_kind("confidence", confidence, 0.0)
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: need a number in (0.5, 1)")
    a, b = _checked("new", new), _checked("old", old)
    if len(a) != len(b):
        raise ValueError(f"new has {len(a)} errors, old {len(b)}: need those of the same starts")
    gains = {
        "log": lambda: _logs(b) - _logs(a),
        "median": lambda: (b - a).sign().nan_to_num(),
        "rmse": lambda: _squares(b, b) - _squares(a, b),
    }[measure]()
    p_value = _exchanged(gains)
    ratio = _ratio(a, b, measure)
    low, high = _interval(a, b, measure, confidence)
    return Comparison(ratio, low, high, p_value, confidence, measure, len(a))


def _checked(name: str, errors: Tensor) -> Tensor:
    if not isinstance(errors, Tensor) or errors.ndim != 1 or not len(errors):
        raise ValueError(f"{name}={errors!r}: need a tensor of one error a start, (B,)")
    e = errors.detach().cpu().double()
    return torch.where(torch.isnan(e), math.inf, e)


def _logs(e: Tensor) -> Tensor:
    """Logarithms that stay finite: an exact run and a run that broke are both very far."""
    return e.clamp(1e-30, 1e30).log()


def _squares(e: Tensor, old: Tensor) -> Tensor:
    """Squares in units of the largest old error, so that they can be added."""
    finite = old[torch.isfinite(old)]
    unit = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    return (e / unit).clamp(max=1e12).square()


def _exchanged(gains: Tensor) -> float:
    """The share of exchanges of pairs whose total gain is at least the one that was seen."""
    n = len(gains)
    if n <= EXACT:
        bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
        signs = 1 - 2 * bits.double()
        extra = 0
    else:
        signs = torch.randint(2, (DRAWS, n), generator=_generator()).double() * 2 - 1
        extra = 1  # what was seen is one of the exchanges
    seen = float(gains.sum())
    reached = signs @ gains >= seen - 1e-12 * float(gains.abs().sum())
    return (int(reached.sum()) + extra) / (len(signs) + extra)


def _interval(a: Tensor, b: Tensor, measure: str, confidence: float) -> tuple[float, float]:
    """The bootstrap percentiles of the ratio, pairs drawn with replacement."""
    drawn = torch.randint(len(a), (DRAWS, len(a)), generator=_generator())
    ratios = _ratio(a[drawn], b[drawn], measure)
    ends = torch.tensor([1 - confidence, confidence], dtype=torch.float64)
    low, high = torch.quantile(ratios.nan_to_num(nan=1.0), ends).tolist()
    return low, high


def _ratio(a: Tensor, b: Tensor, measure: str) -> Any:
    if measure == "log":
        ratio = (_logs(a) - _logs(b)).mean(-1).exp()
    elif measure == "median":
        ratio = a.quantile(0.5, -1) / b.quantile(0.5, -1)
    else:
        ratio = (a.square().mean(-1) / b.square().mean(-1)).sqrt()
    return ratio if ratio.ndim else float(ratio.nan_to_num(nan=1.0))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
