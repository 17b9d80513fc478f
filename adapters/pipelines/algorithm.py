"""What runs in a pipeline's loop: an algorithm, and what the loop tells it when it begins."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logsnr.adapters.config.given_plan import check_times
from logsnr.solvers import Node, NoiseSchedule, Plan, run
from logsnr.solvers.grids import node_at
from logsnr.solvers.requests import Batch
from logsnr.solvers.running import Evaluation
from logsnr.solvers.shared_noise import NoiseSource

Process = Generator[Evaluation, Tensor | None, Any] | Generator[Batch, Tensor, Any]


@dataclass(frozen=True)
class Loop:
    """The loop of a pipeline, as an algorithm sees it when it begins.

    Attributes
    ----------
    schedule : of the pipeline's model.
    prediction : the type of the outputs that the algorithm will be sent.
    nodes : the pipeline's own nodes from the start state to the sample. The end may be sigma = 0,
        the start alpha = 0.
    training_steps : N, the resolution of the model's times: t = 1 / N is the smallest it knows.
    allotted : the iterations that the loop will make.
    inverted : whether its network is told N (1 - t), see `PlanScheduler`.
    noise : what `run_pipeline` was given, or what the call's ``generator`` draws.
    planner : makes the plan of a solver and its options, see `plan`.
    """

    schedule: NoiseSchedule
    prediction: str
    nodes: tuple[Node, ...]
    training_steps: int
    allotted: int
    inverted: bool
    noise: NoiseSource
    planner: Callable[[str, Mapping[str, Any]], Plan]

    def plan(self, solver: str, **options: Any) -> Plan:
        """The plan of ``solver`` over these nodes, one evaluation for each step.

        It is the one that `PlanScheduler` runs: what the scheduler's config says of the solver
        (its order, ``solver_type``, ...) holds, unless ``options`` say otherwise.
        """
        return self.planner(solver, options)


@dataclass(frozen=True)
class Algorithm:
    """A generator for a pipeline's loop, and what the loop has to know beforehand.

    Parameters
    ----------
    process : function of the start state x_T (B, *event) and the `Loop` that returns a generator
        of `Evaluation`, or of `Batch` if ``groups`` is given. It is sent the network's outputs,
        guidance and all, and returns its result: the sample, or a tuple that begins with it, or
        anything else (the pipeline then decodes x_T).
    iterations : the most it needs; None leaves the number to ``num_inference_steps``.
    edits : whether it heeds a state that the pipeline changed between evaluations
        (``Evaluation.x``, see there). If not, such a change is an error.
    groups : how many (x, t) pairs, each of B states, go into one iteration.
    solver : whose grid the pipeline is given, where its scheduler is one of diffusers' own; by
        default that of `PlanScheduler`'s own default.
    opening : gives the nodes of the first request, if all its states are x_T; by default the one
        where the loop begins. The pipeline makes its first iteration before the algorithm can be
        heard: if this is not what it then asks for, that iteration goes unused.

    Raises ValueError for iterations or groups < 1.
    """

    process: Callable[[Tensor, Loop], Process]
    iterations: int | None = None
    edits: bool = True
    groups: int | None = None
    solver: str | None = None
    opening: Callable[[Loop], Sequence[Node]] | None = None

    def __post_init__(self) -> None:
        if not callable(self.process):
            raise ValueError(f"process={self.process!r}: need a function (x_T, loop) -> generator")
        for name in ("iterations", "groups"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
                raise ValueError(f"{name}={value!r}: need a whole number of at least 1, or None")


def as_algorithm(value: Any) -> Algorithm:
    """The algorithm that a user named: a Plan, an `Algorithm`, or a function (x_T, loop)."""
    if isinstance(value, Algorithm):
        return value
    if isinstance(value, Plan):
        return of_plan(value)
    if callable(value) and not isinstance(value, type):
        return Algorithm(value)
    raise ValueError(
        f"algorithm={value!r}: need a Plan, an Algorithm such as adaptive() or reference(), or a "
        "function (x_T, loop) -> generator of Evaluation"
    )


def of_plan(plan: Plan) -> Algorithm:
    """``run`` of a plan that was made beforehand, on its own nodes."""

    def process(x: Tensor, loop: Loop) -> Process:
        check_fits(plan, loop)
        return run(plan, x, loop.prediction, noise=loop.noise)

    # A plan that changes the start state first (churn) has no use for an evaluation of it.
    iterations = plan.nfe + (plan.evaluated[0] != 0)
    return Algorithm(process, iterations=iterations, opening=lambda loop: called(plan)[:1])


def called(plan: Plan) -> list[Node]:
    """The nodes at which the plan calls the network."""
    return [plan.rows[k].node for k in plan.evaluated]


def check_fits(plan: Plan, loop: Loop) -> None:
    """ValueError unless the plan's nodes are on the loop's schedule and begin where it begins."""
    check_times(plan)
    for node in called(plan):
        there = node_at(loop.schedule, node.t)
        if max(abs(node.alpha - there.alpha), abs(node.sigma - there.sigma)) > 1e-6:
            raise ValueError(
                f"the plan's node at t={node.t:g} has alpha={node.alpha:g}, sigma={node.sigma:g}; "
                f"on the pipeline's schedule, {loop.schedule!r}, they are {there.alpha:g}, "
                f"{there.sigma:g}: make the plan on noise_schedule(pipe.scheduler.config)"
            )
    start, first = plan.rows[0].node, loop.nodes[0]
    if abs(start.sigma - first.sigma) > 1e-3:
        raise ValueError(
            f"the plan starts at t={start.t:g} (sigma={start.sigma:g}), the pipeline at "
            f"t={first.t:g} (sigma={first.sigma:g}): start the plan there, or let the loop make "
            "it: lambda x_T, loop: run(loop.plan('unipc'), x_T, loop.prediction)"
        )
