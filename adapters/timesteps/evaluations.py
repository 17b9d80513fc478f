"""The evaluations that ``set_timesteps`` lays out: their nodes, and what the network is told.

A solver with several evaluations a step is told a time several times, or one between two nodes, so
the evaluations of a run are those of its plan, not the nodes of the `Layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, Node, NoiseSchedule, Plan
from logsnr.solvers.prediction import to_data
from logsnr.solvers.registry import find_solver

from ..config.description import Description
from ..plans import nfe_through, plan_for, steps_spent
from .layout import Layout, layout
from .plan_layout import plan_layout
from .statistics_checks import check_fits

# Their schedulers in diffusers lay out steps of two evaluations.
STEPS_OF_TWO = ("heun", "dpm2")


@dataclass(frozen=True)
class Evaluations:
    """What is evaluated from the first timestep on.

    Attributes
    ----------
    layout : the nodes, one for every evaluation and the end.
    whole : those that a run from the first of them goes through.
    nodes : of the evaluations.
    """

    description: Description
    layout: Layout
    whole: Layout
    nodes: tuple[Node, ...]

    @property
    def nfe(self) -> int:
        return len(self.nodes)

    @property
    def schedule(self) -> NoiseSchedule:
        return self.description.model.schedule

    def told(self, nodes: Sequence[Node]) -> Tensor:
        """What the network is told at ``nodes``, whole numbers if it is told no others."""
        steps = self.description.model.training_steps
        told = torch.tensor(self.whole.told(nodes, self.schedule, steps), dtype=torch.float64)
        whole = isinstance(self.schedule, DiscreteVP) and self.layout.whole
        return told.to(torch.int64 if whole else torch.float32)

    def levels(self, nodes: Sequence[Node]) -> Tensor:
        """What diffusers calls sigmas, float32."""
        return torch.tensor(self.layout.levels(nodes, self.schedule), dtype=torch.float32)

    @property
    def takes_eta(self) -> bool:
        """Whether the plan depends on the eta of a step."""
        solver = self.description.solver.name
        return self.description.plan is None and "eta" in find_solver(solver).defaults

    @property
    def end(self) -> Node:
        return self.layout.nodes[-1]

    def plan(self, begin: int, nodes: Sequence[Node], eta: float) -> Plan:
        """The plan of the evaluations that remain where those of the run are at ``nodes``.

        Raises ValueError for a part of a plan that was given.
        """
        if (given := self.description.plan) is not None:
            check_whole(begin)
            return given
        remaining = self._remaining(begin, nodes)
        return plan_through(self.description, remaining, self.nfe, self.nfe - begin, eta)

    def _remaining(self, begin: int, nodes: Sequence[Node]) -> tuple[Node, ...]:
        if begin == 0:
            return self.whole.nodes
        grid, start = self.layout.nodes, nodes[begin]
        in_two = self.description.solver.name in STEPS_OF_TWO
        if not (in_two or len(nodes) >= len(grid)) and start == grid[begin]:
            return grid[begin:]
        # Every second slice of steps of two goes on with them; the others need nodes between, or,
        # after the last one, an evaluation that changes nothing.
        steps = (len(nodes) - begin) // 2 + 1
        later = [node for node in self.whole.nodes if node.lam > start.lam]
        if len(later) < steps:
            later = [node for node in grid if node.lam > start.lam]
        idle = max(0, steps - len(later)) if in_two else 0
        return (*[start] * (1 + idle), *later)


def plan_through(
    description: Description,
    nodes: tuple[Node, ...],
    n: int,
    nfe: int,
    eta: float = 0.0,
) -> Plan:
    """The plan of the last ``nfe`` of n evaluations, through ``nodes``."""
    solver = description.solver
    options = solver.options(n, nfe, eta)
    changes = solver.table_changes(options, begin=n - nfe)
    return plan_for(description.model.schedule, solver.name, nodes, nfe, options, **changes)


def lay_out(
    description: Description,
    n: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Evaluations:
    """``n`` evaluations, or those that are listed; see `layout`.

    Raises ValueError naming the argument or the key of the config that is wrong.
    """
    solver = description.solver
    if description.cards is not None:
        raise ValueError(
            f"num_inference_steps is missing: plan={description.cards!r} has several, of which it "
            "picks one"
        )
    if (plan := description.plan) is not None:
        result = plan_layout(description.model, plan, n, timesteps, sigmas)
        return Evaluations(description, result, result, called(plan))
    result = layout(description, n, timesteps=timesteps, sigmas=sigmas, mu=mu)
    if solver.name not in STEPS_OF_TWO or timesteps is not None or sigmas is not None:
        return evaluations_through(description, result)
    _check(description, result)
    n = len(result.timesteps)
    schedule, options = description.model.schedule, solver.options(n, n, 0.0)
    steps = steps_spent(schedule, solver.name, result.nodes, n, options)
    # Steps near pure noise may be of one evaluation, so that it can take more of them.
    for count in range(steps, n + 1):
        whole = layout(description, count, mu=mu)
        try:
            return evaluations_through(description, result, whole)
        except ValueError:
            if count == n:
                raise
    raise AssertionError("a run has at least as many evaluations as steps")


def evaluations_through(
    description: Description, result: Layout, whole: Layout | None = None
) -> Evaluations:
    """Those through the nodes of ``result``, or by ``whole`` from the first of them."""
    check_no_plan(description)
    _check(description, result)
    whole, n, solver = whole or result, len(result.timesteps), description.solver
    if result.listed is not None:
        options = solver.options(n, n, 0.0)
        try:
            n = nfe_through(description.model.schedule, solver.name, result.nodes, options)
        except ValueError as error:
            raise ValueError(
                f"{result.listed} lists {n} evaluations, and solver={solver.name!r} does not go "
                f"through all of them: {error}"
            ) from error
    plan = plan_through(description, whole.nodes, n, n)
    return Evaluations(description, result, whole, called(plan))


def evaluations_of_training(description: Description, timesteps: Sequence[float]) -> Evaluations:
    """Those through all ``timesteps`` of training, one at each of them.

    It is a rule, not a list of the user: solvers with several evaluations a step take larger ones.
    """
    check_no_plan(description)
    result = replace(layout(description, None, timesteps=timesteps), listed=None)
    return Evaluations(description, result, result, result.nodes[:-1])


def check_whole(begin: int) -> None:
    """ValueError for a run of a given plan from another evaluation than the first."""
    if begin:
        raise ValueError(
            f"begin_index={begin}: a plan that was given is run from its start; a strength or a "
            "split schedule needs plan=None"
        )


def check_no_plan(description: Description) -> None:
    """ValueError for times of a caller's own beside a plan."""
    given = description.plan or description.cards
    if given is not None:
        raise ValueError(f"timesteps and sigmas are those of plan={given!r}: others need plan=None")


def _check(description: Description, result: Layout) -> None:
    try:
        to_data(description.model.prediction, result.nodes[0])
    except ValueError as error:
        raise ValueError(f"prediction_type: {error}") from error
    if description.solver.ems is not None:
        check_fits(description.solver.ems, description.model.schedule, result)


def called(plan: Plan) -> tuple[Node, ...]:
    """The nodes at which ``plan`` calls the network."""
    return tuple(plan.rows[k].node for k in plan.evaluated)
