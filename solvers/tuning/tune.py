r"""`tune`: the plan fitted to a network. docs/tuning.md has the method and its cost."""

from __future__ import annotations

from torch import Tensor

from ..denoiser import Denoiser
from ..keywords import takes
from ..plan import Plan
from .fitting import fit
from .options import Tuning


@takes(Tuning)
def tune(denoise: Denoiser, starts: Tensor, options: Tuning) -> Plan:
    """A plan fitted to ``denoise``: the smallest error that ``nfe`` evaluations leave.

    It minimises the mean over starts i of the objective of

        e_i = root mean square of x(plan, x_T,i) - x*(x_T,i)

    with x* the converged solution of the probability-flow ODE, over nodes, coefficients and the
    times that the network is told. Two thirds of the starts are fitted to; the others choose the
    best iterate and kind of rows, and must show with confidence that the result is better than the
    untuned plan, which otherwise is returned. ``plan.options["tuned"]`` says which, and how.

    Parameters
    ----------
    denoise : a `Denoiser`; its schedule is the schedule. A network that lets no gradient pass
        to its input is fitted by differences, which costs more.
    starts : (B, *event) start states, see `Plan.start`; a hundred or more. Conditions of the
        denoiser may have one entry a start.
    options : see `Tuning`.

    Returns a `Plan`. Raises ValueError for bad input before the network is called.
    """
    return fit(denoise, starts, options).plan
