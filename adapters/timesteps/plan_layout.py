"""The evaluations of a plan that was given: its nodes, and what the network is told there."""

from __future__ import annotations

from collections.abc import Sequence

from logsnr.solvers import DiscreteVP, Node, Plan
from logsnr.solvers.grids import node_at

from ..config.model import Model
from ..config.sigma_models import SigmaModel
from .discrete import nearest_step
from .layout import Layout, told_at
from .pipeline_sigmas import sent_unasked

ON_SCHEDULE = 1e-6  # of alpha and sigma, which may come from float32


def plan_layout(
    model: Model,
    plan: Plan,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> Layout:
    """The nodes at which ``plan`` calls the network, and its end.

    As everywhere but for listed timesteps, a model of training steps is told the nearest of them;
    of a node that tells the network another time than its own, that time as it is.

    Raises ValueError for a plan of another model, and where n evaluations, or others, are asked
    for. The list that a flow pipeline sends by itself asks for none.
    """
    if sigmas is not None and sent_unasked(sigmas):
        n, sigmas = len(sigmas), None
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is not None:
            raise ValueError(f"{name}={list(values)} was given beside {plan!r}, which has its own")
    if n is not None and n != plan.nfe:
        raise ValueError(
            f"num_inference_steps={n!r}: the plan has {plan.nfe} evaluations, no more and no less"
        )
    check_on_schedule(model, plan)
    nodes = tuple(plan.rows[k].node for k in plan.evaluated)
    told = [_told(model, node) for node in nodes]
    return Layout((*nodes, plan.rows[-1].node), tuple(told), model.inverted)


def _told(model: Model, node: Node) -> float:
    schedule = model.schedule
    if isinstance(schedule, DiscreteVP) and node.told is None:
        return nearest_step(schedule, node)
    return told_at(schedule, float(node.call[0]), model.training_steps, model.inverted)


def check_on_schedule(model: Model, plan: Plan) -> None:
    """ValueError unless the rows of ``plan`` that matter are on the model's noise schedule.

    They are those at which the network is called, and the end.
    """
    for k in (*plan.evaluated, len(plan.rows) - 1):
        node = plan.rows[k].node
        there = _node_of(model, node.t, last=k + 1 == len(plan.rows))
        if max(abs(node.alpha - there.alpha), abs(node.sigma - there.sigma)) > ON_SCHEDULE:
            raise ValueError(
                f"plan={plan!r} has row {k} at t={node.t:g} with alpha={node.alpha:g}, "
                f"sigma={node.sigma:g}; on the schedule of this model, {model.schedule!r}, they "
                f"are {there.alpha:g}, {there.sigma:g}"
            )


def _node_of(model: Model, t: float, last: bool) -> Node:
    schedule = model.schedule
    if isinstance(schedule, SigmaModel):
        sigma = t * schedule.sigma_data
        return schedule.last(sigma) if last else schedule.at(sigma)
    return node_at(schedule, t)
