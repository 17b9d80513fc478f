"""States on the way as a part of what a plan is fitted to."""

import pytest
import torch
from solvers.test_tune import ENDS, FLOW, VP, denoiser, drawn, starts

from logsnr.solvers import Denoiser, make_plan, sample, tune
from logsnr.solvers.tuning.bases import Base
from logsnr.solvers.tuning.curvature import curvature, gradient_by_differences
from logsnr.solvers.tuning.family import Family
from logsnr.solvers.tuning.objective import gradient
from logsnr.solvers.tuning.problem import Part, Parts
from logsnr.solvers.tuning.references import reference_plan, reference_targets
from logsnr.solvers.tuning.regression import along_the_way

WEIGHT, SCALE = 0.7, 0.3
OBJECTIVES = {
    "mse": lambda squares: squares / SCALE**2,
    "log": lambda squares: torch.log(squares + (0.01 * SCALE) ** 2) / 2,
}


def family(schedule, level, solver="unipc"):
    base = Base(solver, {"order": 2} if solver == "unipc" else {}, ENDS)
    moves, rows = level != "coefficients", level != "grid"
    remade = base.remaking(schedule) if moves else None
    return Family(schedule, base.plan(schedule, 4), remade, rows, level == "grid", level == "full")


def part_along(schedule, count=3, weight=WEIGHT):
    x, denoise = starts(count), denoiser(schedule)
    long = reference_plan(schedule, 200, **ENDS)
    parts = Parts((Part(denoise, x, reference_targets(denoise, x, long)),))
    return along_the_way(parts, long, schedule, weight).each[0]


def restated(schedule, part, plan, objective):
    """By the states that `sample` passes through, and a converged run to each of their times."""
    seen = []
    end = sample(part.denoise, part.starts, plan, callback=seen.append)
    squares = (end - part.targets).square().mean(1)
    for step in seen[1:]:
        long = reference_plan(schedule, 80, t_end=float(step.node.t))
        wanted = sample(part.denoise, part.starts, long)
        squares = squares + WEIGHT * (step.x - wanted).square().mean(1) / (plan.nfe - 1)
    return float(OBJECTIVES[objective](squares).mean())


@pytest.mark.parametrize(
    ("schedule", "level", "objective"),
    [
        (VP, "grid", "mse"),
        (VP, "full", "log"),
        (FLOW, "coefficients", "log"),
        (FLOW, "grid", "mse"),
    ],
)
def test_the_objective_and_its_gradient_are_those_of_the_definition(schedule, level, objective):
    own, part = family(schedule, level), part_along(schedule)
    theta = drawn(own.size)
    loss, found, _ = gradient(own, theta, part, objective, SCALE)
    assert loss == pytest.approx(restated(schedule, part, own.plan(theta), objective), rel=1e-3)
    for step in (drawn(own.size, 1e-3, 2), drawn(own.size, 1e-3, 3)):
        above, below = (
            restated(schedule, part, own.plan(theta + s), objective) for s in (step, -step)
        )
        size = float(found.norm() * step.norm())
        assert float(found @ step) == pytest.approx((above - below) / 2, abs=0.01 * size)


@pytest.mark.parametrize("level", ["grid", "full"])
@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_differences_and_curvature_see_the_states_on_the_way(schedule, level):
    own, part = family(schedule, level), part_along(schedule, 6)
    theta = drawn(own.size)
    wanted = gradient(own, theta, part, "mse", SCALE).theta
    found = gradient_by_differences(own, theta, part, "mse", SCALE)
    assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())
    # Gauss-Newton matrices of sums of squares add.
    both = curvature(own, theta, Parts((part,)), "mse", SCALE)
    alone = curvature(own, theta, Parts((part_along(schedule, 6, 0.0),)), "mse", SCALE)
    added = torch.linalg.eigvalsh(both - alone)
    assert added.min() > -1e-8 * added.max() and added.max() > 0


def test_stages_count_as_other_states():
    own, part = family(VP, "coefficients", "heun"), part_along(VP)
    theta = drawn(own.size)
    loss = gradient(own, theta, part, "mse", SCALE).loss
    assert loss == pytest.approx(restated(VP, part, own.plan(theta), "mse"), rel=1e-3)


def way_off(plan, denoise, x):
    """The mean over the nodes of the log of the states' distance from the solution."""
    seen, logs = [], []
    sample(denoise, x, plan, callback=seen.append)
    for step in seen[1:]:
        wanted = sample(denoise, x, reference_plan(VP, 40, t_end=float(step.node.t)))
        logs.append((step.x - wanted).square().mean(1).sqrt().log().mean())
    return float(torch.stack(logs).mean().exp())


@pytest.mark.parametrize("gradients", ["reverse", "differences"])
def test_a_fit_with_a_weight_stays_nearer_on_the_way(gradients):
    denoise, x, unseen = denoiser(VP), starts(32), starts(24, 1)
    options = {"nfe": 3, "iterations": 25, "rows": "consistent", "gradients": gradients, **ENDS}
    plans = [tune(denoise, x, intermediate=weight, **options) for weight in (0.0, 100.0)]
    assert all(plan.options["tuned"]["accepted"] for plan in plans)
    assert plans[1].options["tuned"]["options"]["intermediate"] == 100.0
    alone, along = (way_off(plan, denoise, unseen) for plan in plans)
    assert along < alone


def test_one_evaluation_has_no_state_on_the_way():
    plans = [
        tune(denoiser(VP), starts(16), nfe=1, iterations=3, intermediate=weight, **ENDS)
        for weight in (0.0, 5.0)
    ]
    assert torch.equal(plans[0].coefficients(), plans[1].coefficients())


def test_networks_in_float32_and_ends_of_their_own():
    inner = denoiser(VP)
    denoise = Denoiser(lambda x, t: inner.network(x.double(), t.double()).float(), VP)
    plan = tune(
        denoise, starts(16).float(), nfe=3, iterations=3, intermediate=0.5, t_start=0.9, t_end=1e-2
    )
    assert plan.nfe == 3 and plan.times[0] == make_plan("ddim", VP, nfe=3, t_start=0.9).times[0]
