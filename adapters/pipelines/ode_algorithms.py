"""Algorithms for `run_pipeline`: adaptive steps, and a converged solution with an error bar.

Both need a finite lambda. Where a pipeline starts at alpha = 0 (flow matching, zero terminal SNR)
or ends at sigma = 0, one first-order step, exact in those limits, covers the last 1/N of the times,
N the number of training steps: from t = 1 to 1 - 1/N, and from 1/N to 0.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from torch import Tensor

from logsnr.solvers import Evaluation, Grid, Node, Plan, plan_on_grid, run
from logsnr.solvers.adaptive import adaptive as adaptive_process
from logsnr.solvers.adaptive_options import AdaptiveSteps
from logsnr.solvers.grids import node_at
from logsnr.solvers.keywords import takes

from .algorithm import Algorithm, Loop


@takes(AdaptiveSteps)
def adaptive(*, options: AdaptiveSteps) -> Algorithm:
    """Automatic steps (DPM-Solver-12, -23), as `sample_adaptive`.

    The result is (sample, `AdaptiveStats`). ``num_inference_steps`` bounds the evaluations:
    `NFELimitError` if they do not suffice.

    Parameters
    ----------
    options : those of `AdaptiveSteps`.

    Raises ValueError for values out of range.
    """

    def process(x: Tensor, loop: Loop) -> Generator[Evaluation, Tensor | None, Any]:
        first, last = finite_ends(loop)
        spent = 0
        if first != loop.nodes[0]:
            x, spent = (yield from _first_order(x, loop, loop.nodes[0], first)), 1
        to_data = last != loop.nodes[-1]
        x, stats = yield from adaptive_process(
            loop.schedule,
            x,
            loop.prediction,
            **vars(options),
            t_start=first.t,
            t_end=last.t,
            max_nfe=loop.allotted - spent - to_data,
        )
        if to_data:
            x = yield from _first_order(x, loop, last, loop.nodes[-1])
        return x, stats

    return Algorithm(process, edits=False)


def reference(
    *, nfe: int = 400, coarse: int = 300, solver: str = "unipc", order: int = 3
) -> Algorithm:
    """The converged solution of the probability-flow ODE, by ``nfe`` evaluations of a solver.

    The result is (sample, error bar): a second run, of ``coarse`` evaluations from the same start,
    gives the bar, the root mean square difference of the two over all entries. With the defaults it
    is about three times the error of the finer run at order 3, and more of it at lower orders.

    Nodes are uniform in lambda. Raises ValueError unless 10 <= coarse < nfe.
    """
    if not 10 <= coarse < nfe:
        raise ValueError(f"nfe={nfe!r}, coarse={coarse!r}: need 10 <= coarse < nfe")

    def process(x: Tensor, loop: Loop) -> Generator[Evaluation, Tensor | None, Any]:
        fine = yield from run(_converged(loop, solver, nfe, order), x, loop.prediction)
        rough = yield from run(_converged(loop, solver, coarse, order), x, loop.prediction)
        return fine, float((fine.double() - rough.double()).square().mean().sqrt())

    return Algorithm(process, iterations=nfe + coarse)


def finite_ends(loop: Loop) -> tuple[Node, Node]:
    """The loop's ends, moved inside by 1/N where lambda is infinite."""
    first, last = loop.nodes[0], loop.nodes[-1]
    step = 1 / loop.training_steps
    if first.alpha == 0:
        first = node_at(loop.schedule, 1 - step)
    if last.sigma == 0:
        last = node_at(loop.schedule, loop.schedule.t_end or step)
    if not last.t < first.t:
        raise ValueError(
            f"the pipeline begins at t={loop.nodes[0].t:g}: need more than {last.t:g}, the "
            "smallest time its network knows"
        )
    return first, last


def _first_order(
    x: Tensor, loop: Loop, start: Node, end: Node
) -> Generator[Evaluation, Tensor | None, Tensor]:
    grid = Grid(loop.schedule, start.t, end.t, explicit=(start, end))
    return (yield from run(plan_on_grid("ddim", grid, 1), x, loop.prediction))


def _converged(loop: Loop, solver: str, nfe: int, order: int) -> Plan:
    first, last = finite_ends(loop)
    before = [loop.nodes[0]] if first != loop.nodes[0] else []
    after = [loop.nodes[-1]] if last != loop.nodes[-1] else []
    steps = nfe - len(before) - len(after)
    inner = Grid(loop.schedule, first.t, last.t, spacing="logsnr").nodes(steps)
    inner[0], inner[-1] = first, last
    nodes = (*before, *inner, *after)
    grid = Grid(loop.schedule, nodes[0].t, nodes[-1].t, explicit=nodes)
    return plan_on_grid(solver, grid, nfe, order=order)
