"""Plans fitted to an analytic mixture, whose solutions are known."""

import json
import math

import pytest
import torch

from logsnr.benchmarks.problems.analytic import Mixture
from logsnr.solvers import (
    ClassifierFree,
    Denoiser,
    FlowMatching,
    Plan,
    VPLinear,
    make_plan,
    sample,
    tune,
)
from logsnr.solvers.tuning.bases import Base
from logsnr.solvers.tuning.curvature import forward, gradient_by_differences
from logsnr.solvers.tuning.errors import better, plan_errors, summary
from logsnr.solvers.tuning.family import Family
from logsnr.solvers.tuning.objective import gradient, losses, passes_gradients
from logsnr.solvers.tuning.options import Tuning
from logsnr.solvers.tuning.presets import PRESETS
from logsnr.solvers.tuning.problem import Part, Parts
from logsnr.solvers.tuning.references import reference_plan, reference_targets
from logsnr.solvers.tuning.regression import paths_of, regressed
from logsnr.solvers.tuning.relaxed import RelaxedStarts
from logsnr.solvers.tuning.tables import table_of

MIXTURE = Mixture(
    [0.3, 0.5, 0.2],
    [[1.0, 0.5, 0.0], [-0.8, 0.3, 0.6], [0.2, -1.1, -0.4]],
    [0.1, 0.2, 0.15],
)
POINT = torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)
VP, FLOW = VPLinear(), FlowMatching()
ENDS = {"t_end": 1e-3}


def denoiser(schedule):
    def network(x, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        eps, x0 = MIXTURE.predict(x, alpha, sigma)
        return eps - x0 if schedule is FLOW else eps

    kind = "flow_prediction" if schedule is FLOW else "epsilon"
    return Denoiser(network, schedule, kind)


def starts(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=rng, dtype=torch.float64)


def family(schedule, *, nfe=4, consistent=False, told=True, **ends):
    base = Base("unipc", {"order": 2}, {**ends})
    plan = base.plan(schedule, nfe)
    return Family(schedule, plan, base.remaking(schedule), True, consistent, told)


def drawn(size, scale=0.05, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(size, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VP, FLOW])
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("unipc", {"order": 3}),
        ("dpm-solver++", {"order": 2, "steps": "singlestep"}),
        ("deis", {"order": 2}),
        ("heun", {}),
    ],
)
@pytest.mark.parametrize("ends", [ENDS, {"t_end": 0.0}])
def test_a_table_is_the_plan_that_it_was_made_of(schedule, solver, options, ends):
    plan = make_plan(solver, schedule, nfe=5, **ends, **options)
    table = table_of(plan)
    denoise, x = denoiser(schedule), starts(3)
    assert table.times.tolist() == pytest.approx(list(plan.times))
    again = sample(denoise, x, table.plan(consistent=True))
    assert torch.allclose(again, sample(denoise, x, plan), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_nodes_are_in_order_and_consistent_rows_exact_on_a_point_whatever_the_numbers(schedule):
    own = family(schedule, consistent=True)
    for scale in (0.1, 1.0, 4.0):
        plan = own.plan(drawn(own.size, scale))
        assert plan.consistent  # which Plan checks
        assert all(a > b for a, b in zip(plan.times, plan.times[1:], strict=False))
        exact = Denoiser(lambda x, t: POINT.expand_as(x), schedule, "sample")
        x, end = starts(5), plan.rows[-1].node
        eps = (x - plan.rows[0].node.alpha * POINT) / plan.rows[0].node.sigma
        wanted = end.alpha * POINT + end.sigma * eps
        assert torch.allclose(sample(exact, x, plan), wanted, atol=1e-9)


def test_rows_in_t_are_consistent_to_the_last_digit_at_the_data():
    options = {"order": 2, "variable": "time", "corrector": True, "relaxation": 0.9}
    for nfe in (3, 5, 8, 10):
        plan = make_plan("ipndm", FLOW, nfe=nfe, lower_order_final=True, **options)
        again = table_of(plan).plan(consistent=True)
        assert not again.rows[-1].states


def test_no_numbers_are_the_base():
    own = family(VP)
    zero = torch.zeros(own.size, dtype=torch.float64)
    assert torch.allclose(own.table(zero).weights, table_of(own.base).weights)
    assert own.plan(zero).times == own.base.times


def test_free_rows_can_begin_where_consistent_ones_ended():
    consistent, free = family(FLOW, consistent=True), family(FLOW)
    theta = drawn(consistent.size)
    wanted, found = consistent.table(theta), free.table(free.freed(theta))
    assert torch.allclose(found.weights, wanted.weights, atol=1e-14)
    assert found.nodes == wanted.nodes
    rows = table_of(free.base).weights + 0.1 * wanted.weights
    rows[0] = table_of(free.base).weights[0]
    assert torch.allclose(free.table(free.theta_of(rows)).weights, rows, atol=1e-14)


@pytest.mark.parametrize(
    ("schedule", "consistent", "objective"),
    [(VP, False, "log"), (VP, True, "huber"), (FLOW, False, "mse")],
)
def test_the_gradient_is_that_of_differences(schedule, consistent, objective):
    own = family(schedule, consistent=consistent)
    theta = drawn(own.size)
    x = starts(4)
    part = Part(denoiser(schedule), x, 0.9 * x)
    value, found, _ = gradient(own, theta, part, objective, 0.1)
    assert math.isfinite(value)
    kept = gradient(own, theta, part, objective, 0.1, save_memory=False)
    assert torch.allclose(kept.theta, found, rtol=1e-12)
    for i in range(own.size):
        step = torch.zeros_like(theta)
        step[i] = 1e-5
        above, below = (value_at(own, theta + s, part, objective) for s in (step, -step))
        assert float(found[i]) == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-6)


def test_the_gradient_of_a_network_that_is_only_called_is_near():
    own, x = family(VP), starts(6)
    theta, part = drawn(own.size), Part(denoiser(VP), x, 0.9 * x)
    found = gradient_by_differences(own, theta, part, "huber", 0.3)
    wanted = gradient(own, theta, part, "huber", 0.3).theta
    assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())


def test_a_network_without_gradients_is_fitted():
    inner = denoiser(VP)
    called = Denoiser(torch.no_grad()(inner.network), VP)
    assert passes_gradients(Part(inner, starts(2), starts(2)))
    plan = tune(called, starts(40), nfe=3, iterations=8, rows="consistent", **ENDS)
    report = plan.options["tuned"]
    assert report["options"]["gradients"] == "differences" and report["accepted"]
    begun = tune(called, starts(40), nfe=3, iterations=0, rows="consistent", **ENDS)
    errors = [each.options["tuned"]["errors"]["consistent"]["log_mean"] for each in (plan, begun)]
    assert errors[0] < errors[1]


def value_at(own, theta, part, objective):
    errors = plan_errors(own.plan(theta), part.denoise, part.starts, part.targets)
    return float(losses(objective, errors.square(), 0.1).mean())


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_the_tangents_are_the_derivatives_of_the_sample(schedule):
    own = family(schedule)
    theta = drawn(own.size)
    part = Part(denoiser(schedule), starts(2), starts(2))
    *_, (x, tangents) = forward(part, own.table(theta), own.slope(theta), own)
    assert torch.allclose(x, sample(part.denoise, part.starts, own.plan(theta)), atol=1e-12)
    for i in range(own.size):
        step = torch.zeros_like(theta)
        step[i] = 1e-5
        above, below = (
            sample(part.denoise, part.starts, own.plan(theta + s)) for s in (step, -step)
        )
        assert torch.allclose(tangents[i], (above - below) / 2e-5, rtol=0.02, atol=5e-3)


@pytest.mark.parametrize("level", ["grid", "coefficients", "full"])
def test_a_fitted_plan_is_better_on_unseen_starts(level):
    denoise = denoiser(VP)
    plan = tune(denoise, starts(64), nfe=4, level=level, iterations=40, **ENDS)
    unseen = starts(64, 1)
    targets = reference_targets(denoise, unseen, reference_plan(VP, 200, **ENDS))
    untuned = plan_errors(make_plan("unipc", VP, nfe=4, order=2, **ENDS), denoise, unseen, targets)
    tuned = plan_errors(plan, denoise, unseen, targets)
    found = better(tuned, untuned)
    assert found.better and found.ratio < {"grid": 0.7, "coefficients": 0.5, "full": 0.4}[level]
    assert plan.nfe == 4 and plan.numeric and plan.options["tuned"]["accepted"]
    before = plan.options["tuned"]["errors"]["untuned"]["log_mean"]
    assert before == pytest.approx(summary(untuned).log_mean, rel=0.5)


@pytest.mark.parametrize("schedule", [VP, FLOW])
@pytest.mark.parametrize("level", ["grid", "coefficients", "full"])
def test_one_evaluation_can_be_fitted(schedule, level):
    """One from pure noise to data has no node between; its nodes are the two ends."""
    plan = tune(denoiser(schedule), starts(12), nfe=1, level=level, iterations=1, reference_nfe=12)
    assert plan.nfe == 1 and plan.times[0] == 1.0


def test_with_eight_starts_the_untuned_plan_comes_back():
    plan = tune(denoiser(VP), starts(8), nfe=4, iterations=5, **ENDS)
    untuned = make_plan("unipc", VP, nfe=4, order=2, **ENDS)
    assert plan.times == untuned.times and plan.solver == "unipc"
    assert torch.equal(plan.coefficients(), untuned.coefficients())
    report = plan.options["tuned"]
    assert not report["accepted"] and "the untuned plan is kept" in report["reason"]


def test_a_fit_that_was_killed_goes_on_to_the_same_plan(tmp_path):
    denoise, x = denoiser(VP), starts(24)
    options = {"nfe": 3, "iterations": 12, "batch_size": 8, **ENDS}
    whole = tune(denoise, x, **options)

    class Killed(Exception):
        pass

    def kill_at(count):
        def show(done, total):
            if done == count:
                raise Killed

        return show

    file = tmp_path / "state.safetensors"
    for count in (5, 17):  # in the first fit, and in the second
        with pytest.raises(Killed):
            tune(denoise, x, **options, checkpoint=file, seconds=1e-9, progress=kill_at(count))
    again = tune(denoise, x, **options, checkpoint=file)
    assert torch.equal(again.coefficients(), whole.coefficients())
    assert [row.node for row in again.rows] == [row.node for row in whole.rows]
    with pytest.raises(ValueError, match="is of another fit: options was"):
        tune(denoise, x, **{**options, "iterations": 13}, checkpoint=file)


def test_the_report_is_saved_with_the_plan(tmp_path):
    plan = tune(denoiser(VP), starts(24), nfe=2, iterations=2, **ENDS)
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert json.loads(json.dumps(loaded.options["tuned"])) == plan.options["tuned"]


def test_a_network_that_breaks_under_a_step_is_survived():
    calls = []

    def network(x, t):
        calls.append(1)
        if x.requires_grad and len(calls) % 3 == 0:
            return x * math.nan
        return 0.5 * x

    plan = tune(Denoiser(network, VP), starts(12), nfe=2, iterations=6, **ENDS)
    assert plan.nfe == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "all"}, "level='all': choose one of 'grid'"),
        ({"nfe": 0}, "nfe=0: need a whole number of at least 1"),
        ({"nfe": 200}, "reference_nfe=100: need more than nfe=200"),
        ({"confidence": 1.0}, r"confidence=1.0: need a number in \(0.5, 1\)"),
        ({"solver": "unipk"}, "unipk"),
        ({"solver": "unipc", "solver_options": {"older": 2}}, "older=2 is not an option"),
        ({"solver_options": {"order": 2}}, "were given without a solver"),
        ({"solver": "unipc", "solver_options": 3}, "solver_options=3: need a mapping"),
        ({"checkpoint": 3}, "checkpoint=3: need the path"),
        ({"guidance": (1, 7)}, "denoise has no ClassifierFree guidance"),
        ({"guidance": (7, 1)}, r"guidance=\(7, 1\): need \(low, high\)"),
        ({"targets": torch.zeros(3)}, r"targets=\(3,\): need the shape of starts"),
        ({"rate": -1.0}, "rate=-1.0: need a positive number"),
        ({"average": 1.0}, r"average=1.0: need a number in \[0, 1\)"),
        ({"intermediate": -0.1}, "intermediate=-0.1: need a number of at least 0"),
        ({"intermediate": math.nan}, "intermediate=nan: need a number of at least 0"),
        ({"intermediate": math.inf}, "intermediate=inf: need a number of at least 0"),
        ({"intermediate": "much"}, "intermediate='much': need a number"),
        (
            {"intermediate": 0.1, "level": "grid", "method": "search"},
            "intermediate=0.1: needs method='gradient', not 'search'",
        ),
        ({"solver": "ddpm"}, "solver='ddpm' adds noise"),
        ({"solver": "ddim", "solver_options": {"eta": 0.5}}, "solver='ddim' adds noise"),
    ],
)
def test_bad_input_is_named_before_the_network_is_called(options, message):
    def network(x, t):
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match=message):
        tune(Denoiser(network, VP), starts(20), **options)


def test_too_few_starts_and_no_denoiser():
    with pytest.raises(ValueError, match="starts has 3 entries: need at least 4"):
        tune(denoiser(VP), starts(3))
    with pytest.raises(ValueError, match="need a Denoiser"):
        tune(lambda x, t: x, starts(8))


@pytest.mark.parametrize("name", PRESETS)
def test_published_ways_are_bundles_of_options(name):
    options = Tuning.preset(name, nfe=3, iterations=2, **ENDS)
    for key, value in PRESETS[name].items():
        assert key == "iterations" or getattr(options, key) == value
    plan = tune(denoiser(VP), starts(16), options=options)
    assert plan.options["tuned"]["options"]["level"] == PRESETS[name]["level"]


def test_an_unknown_preset_is_told_its_neighbour():
    with pytest.raises(ValueError, match="preset='gaz': choose one of .*did you mean 'gas'"):
        Tuning.preset("gaz")


def first(x):
    return x[:, :1]


def test_features_are_what_distances_are_taken_of():
    denoise, x = denoiser(VP), starts(20)
    own = family(VP)
    theta = drawn(own.size)
    targets = reference_targets(denoise, x, reference_plan(VP, **ENDS))
    elsewhere = targets + torch.tensor([0.0, 5.0, 5.0])
    found, wanted = (
        gradient(own, theta, Part(denoise, x, each, first), "mse", 0.1)
        for each in (elsewhere, targets)
    )
    assert torch.equal(found.theta, wanted.theta)
    plan = tune(denoise, x, features=first, targets=targets, nfe=3, iterations=1, **ENDS)
    report = plan.options["tuned"]
    assert report["options"]["features"] == "first"
    untuned = make_plan("unipc", VP, nfe=3, order=2, **ENDS)
    held = slice(-report["held_out"], None)
    errors = plan_errors(untuned, denoise, x[held], targets[held], features=first)
    assert report["errors"]["untuned"]["rmse"] == pytest.approx(summary(errors).rmse)


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_rows_by_regression_find_the_combination_that_there_is(schedule, consistent):
    """On a Gaussian every row can be exact, and a regression has to find it."""
    end = {} if schedule is FLOW else ENDS
    mean, spread = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64), 0.3

    def network(x, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    denoise = Denoiser(network, schedule, "sample")
    x = starts(24)
    targets = reference_targets(denoise, x, reference_plan(schedule, 200, **end))
    plan = make_plan("unipc", schedule, nfe=5, order=2, **end)
    paths = paths_of(Parts((Part(denoise, x, targets),)), reference_plan(schedule, 60, **end))
    table, errors = regressed(table_of(plan), paths, consistent=consistent)
    before = plan_errors(plan, denoise, x, targets)
    after = plan_errors(table.plan(consistent=consistent), denoise, x, targets)
    assert torch.allclose(after, errors, rtol=1e-4, atol=1e-7)
    assert summary(after).rmse < 0.2 * summary(before).rmse


def test_relaxed_starts_stay_in_their_balls_and_come_nearer():
    own, x = family(VP), starts(6)
    theta = drawn(own.size)
    near = x * torch.tensor([1.03, 0.97, 1.02], dtype=torch.float64)
    parts = Parts((Part(denoiser(VP), x, sample(denoiser(VP), near, own.plan(theta))),))
    relaxed = RelaxedStarts(parts, 0.05)
    batch = parts.batch(0, 6, seed=0)
    losses_seen = []
    for _ in range(12):
        moved = relaxed.moved(batch)
        found = gradient(own, theta, moved, "mse", 0.1, by_starts=True)
        losses_seen.append(found.loss)
        relaxed.follow(batch, found.starts)
    sizes = x.square().mean(1).sqrt()
    assert (relaxed.offsets[0].square().mean(1).sqrt() <= 0.05 * sizes * (1 + 1e-9)).all()
    assert losses_seen[-1] < 0.5 * losses_seen[0]


def test_a_plan_for_a_range_of_guidance_is_noted_as_one():
    schedule = VP

    def network(x, t, shift):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return MIXTURE.predict(x - alpha * shift, alpha, sigma)[0]

    shift = torch.linspace(0, 0.4, 32, dtype=torch.float64)[:, None]
    guidance = ClassifierFree(3.0, {"shift": shift}, {"shift": torch.zeros_like(shift)})
    denoise = Denoiser(network, schedule, guidance=guidance)
    plan = tune(denoise, starts(32), nfe=3, iterations=20, guidance=(1, 5), **ENDS)
    assert plan.options["tuned"]["accepted"]
    assert plan.options["fitted_to"]["guidance"] == [1.0, 5.0]
    assert denoise.guidance.scale == 3.0
