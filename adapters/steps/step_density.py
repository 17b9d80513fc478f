"""The density of a step, for policy gradients: of the state that it drew, or of a stored one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from logsnr.solvers.scalar import Number
from logsnr.solvers.step_densities import StepDensities


class StepDensity(NamedTuple):
    """The log density of what a step drew, given the states before.

    Parameters
    ----------
    log_prob : (B,) in nats, float64, summed over the event; 0 for a step that adds no noise.
    mean, deviation : of ``prev_sample``; None unless its own noise is all that the step drew.
    """

    log_prob: Tensor
    mean: Tensor | None
    deviation: Number | None


def check_stored(
    prev_sample: Tensor, sample: Tensor, densities: StepDensities, rows: range
) -> None:
    """ValueError unless a step that fills in ``rows`` can be one to the state ``prev_sample``."""
    if not isinstance(prev_sample, Tensor) or prev_sample.shape != sample.shape:
        shape = getattr(prev_sample, "shape", None)
        found = type(prev_sample).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"prev_sample is {found}: need that of sample, {tuple(sample.shape)}")
    if densities.steps(rows) != [rows[-1]]:
        raise ValueError(
            "prev_sample: this step "
            + ("draws more than its state" if densities.steps(rows) else "adds no noise")
            + ", so that a stored state does not say what it drew"
        )
    if densities.shared(rows[-1]):
        raise ValueError(
            "prev_sample: a later step has noise of this one, which a stored state does not tell: "
            "use step_log_prob, on the whole trajectory"
        )
