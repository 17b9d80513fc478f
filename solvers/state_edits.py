r"""What a change of the state between two evaluations means for the rest of a run.

The caller changes the state x of an evaluated row by d. Two things follow.

*Other states.* Those that later rows start from (the corrected state of a predictor-corrector, the
start of a singlestep block) move along: see `transport`.

*The corrector.* With the evaluation at the changed state it computes x + c, where c measures how
far the network's answer is from what the history predicts. After an edit c is mostly the answer to
the edit, and would undo a part of it or overshoot. So c is taken as far as it exceeds the edit,
element by element:

    x + c c^2 / (c^2 + d^2).

Where nothing was edited that is the corrector, where much was edited the predictor alone. The
history stays as it is: to drop it too is better after one large edit, but makes a run that is
edited at every step (inpainting) a run of first order. docs/architecture.md has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import Coefficient, Plan


def version(x: Tensor) -> int:
    """A count of the in-place changes of x (none is kept under torch.inference_mode)."""
    return 0 if x.is_inference() else x._version


@dataclass(frozen=True)
class Edit:
    """The ``state`` that a row was changed to before its correction, by ``difference``."""

    state: Tensor
    difference: Tensor

    def temper(self, corrected: Tensor) -> Tensor:
        """The state after the corrector, of which this much is left."""
        edit, correction = self.difference.square(), (corrected - self.state).square()
        tiny = torch.finfo(edit.dtype).tiny
        return torch.lerp(corrected, self.state, edit / (edit + correction + tiny))


def corrects(plan: Plan, k: int) -> bool:
    """Whether row k is the correction of row k - 1, made with the evaluation there."""
    if not 0 < k < len(plan.rows) - 1:
        return False
    row, last = plan.rows[k], plan.rows[k - 1]
    return last.evaluated and not row.evaluated and row.node == last.node


def transport(plan: Plan, k: int, j: int) -> Coefficient:
    """How a difference of the state of row k carries to the state of row j.

    Along the linear part of the plan's own rows: sigma_j / sigma_k where data predictions are
    combined, alpha_j / alpha_k for noise predictions.
    """
    target, here, there = plan.rows[k].target, plan.rows[k].node, plan.rows[j].node
    assert target is not None
    if isinstance(target.x, Tensor) or target.x != 0:
        # The linear part of DPM-Solver-v3 is its own: undo the step from j.
        along = dict(plan.rows[k].states)
        if j in along:
            return 1 / along[j]
    signal = not isinstance(target.eps, Tensor) and (target.eps, target.data) == (1.0, 0.0)
    by_signal = here.sigma == 0 or (signal and here.alpha > 0)
    return there.alpha / here.alpha if by_signal else there.sigma / here.sigma
