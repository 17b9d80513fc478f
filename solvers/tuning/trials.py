"""Plans tried from common starts: each is run once, and what was spent is counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..plan import Plan
from ..schedules import NoiseSchedule
from .errors import for_samples, plan_errors
from .references import reference_plan, reference_targets

REFERENCE_NFE = 100


class Trials:
    """Errors of plans, start by start.

    Parameters
    ----------
    starts, targets : (B, *event), where runs start and the converged solutions from there.
    batch_size : starts that run at once.
    """

    def __init__(
        self,
        denoise: Denoiser | Callable[[Tensor, float], Tensor],
        starts: Tensor,
        targets: Tensor,
        batch_size: int,
    ):
        self.denoise, self.starts, self.targets = denoise, starts, targets
        self.batch_size = batch_size
        # Where runs are exact, as on data at one point, what is left is rounding.
        rounding = torch.finfo(starts.dtype).eps
        self.least = rounding * float(targets.double().square().mean().sqrt())
        self.spent = 0
        """Evaluations of one start."""
        self._found: dict[Hashable, Tensor] = {}

    def errors(self, key: Hashable, plan: Plan, count: int | None = None) -> Tensor:
        """The errors (count,) of ``plan`` from the first ``count`` starts; None is all.

        ``key`` tells plans apart; of one that was run before only further starts are run.
        """
        count = len(self.starts) if count is None else count
        known = self._found.get(key, torch.empty(0, dtype=torch.float64))
        if len(known) < count:
            rows = torch.arange(len(known), count)
            further = plan_errors(
                plan,
                for_samples(self.denoise, rows, len(self.starts)),
                self.starts[len(known) : count],
                self.targets[len(known) : count],
                batch_size=self.batch_size,
            )
            self.spent += plan.nfe * len(rows)
            self._found[key] = known = torch.cat([known, further.clamp(min=self.least)])
        return known[:count]


def converged(
    denoise: Any, starts: Tensor, schedule: NoiseSchedule, batch_size: int, **ends: Any
) -> Tensor:
    """Where a long run ends: (B, *event)."""
    plan = reference_plan(schedule, REFERENCE_NFE, **ends)
    return reference_targets(denoise, starts, plan, batch_size=batch_size)
