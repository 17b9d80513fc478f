"""Grids fitted without gradients, and masks of caches: parts against loops, the whole by use."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from cases import MIXTURE, RANGES, SCHEDULES, normal, tensor

from logsnr.benchmarks.problems.analytic import Mixture, exact_denoiser, point_mass
from logsnr.solvers import (
    FlowMatching,
    VPLinear,
    fit_grid,
    make_plan,
    sample,
    search_mask,
    tune,
    uniform_mask,
)
from logsnr.solvers.grids import nodes_at
from logsnr.solvers.tuning.errors import plan_errors, summary
from logsnr.solvers.tuning.grid_family import GridFamily
from logsnr.solvers.tuning.lattice import dp_nodes
from logsnr.solvers.tuning.proxy import MidpointProxy
from logsnr.solvers.tuning.search import coordinate_search
from logsnr.solvers.tuning.trajectory import record

WIDE = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    6 * normal(2, 4, seed=5),
    torch.tensor([1.5, 2.5], dtype=torch.float64),
)
"""Data six times as far apart as usual: the best location is about log 6 lower."""


def wide_network(schedule):
    denoise = exact_denoiser(WIDE, schedule, "sample")

    def network(x, t):
        assert not torch.is_grad_enabled()
        return denoise(x, t)

    return network


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_default_point_is_the_default_grid(name, n):
    range_ = RANGES[name]
    family = GridFamily(range_.schedule, n, range_.t_start, range_.t_end)
    plan = make_plan("ddim", range_.schedule, nfe=n, **range_.ends)
    wanted = [row.node.t for row in plan.rows]
    torch.testing.assert_close(family.times(family.default), tensor(*wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["vp_linear_to_data", "vp_discrete_to_data", "flow_singular"])
def test_grids_fall_wherever_a_search_goes_and_can_be_anything(name):
    range_ = RANGES[name]
    family = GridFamily(range_.schedule, 7, range_.t_start, range_.t_end)
    for seed in range(20):
        point = [*normal(2, seed=seed).tolist(), *normal(4, seed=99 + seed).tolist()]
        times = family.times(point)
        assert (times.diff() < 0).all() and times[0] == range_.t_start and times[-1] == range_.t_end
        around = family.around(times)
        torch.testing.assert_close(around.times(family.default), times, rtol=1e-9, atol=1e-9)


def test_a_search_finds_the_bottom_and_asks_for_nothing_twice():
    asked = []

    def bowl(x):
        asked.append(tuple(x))
        return (x[0] - 0.7) ** 2 + 3 * (x[1] + 1.3) ** 2 + 0.5 * x[0] * x[1]

    found = coordinate_search(bowl, [0.0, 0.0], [0.5, 0.5], sweeps=12)
    # The gradient is zero at the solution of two linear equations.
    exact = torch.linalg.solve(tensor([2.0, 0.5], [0.5, 6.0]), tensor(1.4, -7.8))
    torch.testing.assert_close(tensor(*found), exact, rtol=0, atol=0.02)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching()], ids=["vp", "flow"])
def test_the_best_path_over_a_lattice_is_the_best_of_all_paths(schedule, order):
    denoise = exact_denoiser(MIXTURE, schedule, "sample")
    straight = isinstance(schedule, FlowMatching)
    trajectory = record(denoise, normal(3, 4), make_plan("unipc-3", schedule, nfe=8))
    nodes, x, data = trajectory.nodes, trajectory.states, trajectory.data

    def error(h: int | None, i: int, j: int) -> float:
        start, end = nodes[i], nodes[j]
        slope = 0.0
        if order == 2 and h is not None and straight and j < 8:
            v = [(x[k] - data[k]) / nodes[k].t for k in (h, i)]
            step = x[i] + (end.t - start.t) * (1.5 * v[1] - 0.5 * v[0])
            return float((x[j] - step).square().mean(1).sqrt().mean())
        if order == 2 and h is not None and not straight and math.isfinite(end.lam):
            ratio = (end.lam - start.lam) / (start.lam - nodes[h].lam)
            slope = ratio / 2 * (data[i] - data[h])
        a = end.sigma / start.sigma
        step = a * x[i] + (end.alpha - a * start.alpha) * (data[i] + slope)
        return float((x[j] - step).square().mean(1).sqrt().mean())

    def total(path: list[int]) -> float:
        before = [None, *path]
        return sum(error(h, i, j) for h, i, j in zip(before, path, path[1:], strict=False))

    paths = [[0, *inner, 8] for inner in combinations(range(1, 8), 3)]
    found = dp_nodes(trajectory, 4, order=order, straight=straight)
    assert total(found) == pytest.approx(min(map(total, paths)), rel=1e-9)
    assert dp_nodes(trajectory, 8) == list(range(9))


def test_the_proxy_is_the_difference_of_two_rules():
    schedule = VPLinear()
    denoise = exact_denoiser(MIXTURE, schedule, "sample")
    start = normal(3, 4)
    trajectory = record(denoise, start, make_plan("unipc-3", schedule, nfe=400, scale=1.7))
    nodes = nodes_at(schedule, [1.0, 0.6, 0.2, 0.001])
    total = 0.0
    for a, b in zip(nodes, nodes[1:], strict=False):
        tau = sum(node.sigma / (node.alpha + node.sigma) for node in (a, b)) / 2
        middle = schedule.time(torch.tensor([math.log((1 - tau) / tau)], dtype=torch.float64))
        at = []
        for t in (a.t, float(middle)):
            x = (
                start
                if t == 1
                else sample(denoise, start, make_plan("unipc-3", schedule, nfe=60, t_end=t))
            )
            at.append(denoise(x, t))
        weight = abs(b.alpha - a.alpha * b.sigma / a.sigma)
        total += weight * float((at[1] - at[0]).square().mean(1).sqrt().mean())
    assert MidpointProxy(trajectory)(nodes) == pytest.approx(math.log(total), abs=0.01)
    still = point_mass(tensor(0.7, -1.3, 0.2, 2.0))
    network = exact_denoiser(still, schedule, "sample")
    assert MidpointProxy(record(network, start, make_plan("ddim", schedule, nfe=9)))(nodes) < -30


@pytest.mark.parametrize("method", ["location", "lattice", "proxy", "search"])
@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching()], ids=["vp", "flow"])
def test_every_method_finds_better_grids_for_data_of_another_scale(schedule, method):
    network, seen = wide_network(schedule), []
    starts = normal(16, 4)
    plan = fit_grid(
        network,
        starts,
        6,
        schedule=schedule,
        method=method,
        t_end=1e-3,
        progress=lambda done, most: seen.append((done, most)),
    )
    assert plan.nfe == 6
    note = plan.options["fit"]
    assert note["method"] == method and note["starts"] == 16
    assert seen and all(done <= most for done, most in seen) and seen[-1][0] == seen[-1][1]
    default = make_plan(plan.solver, schedule, nfe=6, t_end=1e-3, **own_options(plan))
    others = normal(64, 4, seed=7)
    exact = sample(
        network,
        others,
        make_plan("unipc-3", schedule, nfe=300, scale=2.5, t_end=1e-3, location=-1.0),
    )
    errors = [plan_errors(one, network, others, exact) for one in (plan, default)]
    gain = 0.95 if method in ("lattice", "proxy") else 0.8
    assert summary(errors[0]).log_mean < gain * summary(errors[1]).log_mean


def own_options(plan):
    return {key: value for key, value in plan.options.items() if key != "fit"}


def test_methods_with_more_evaluations_a_step_and_their_ends():
    schedule = VPLinear()
    for solver, options in [("heun", {}), ("dpm-solver", {"steps": "singlestep"}), ("ddim", {})]:
        for ends in ({}, {"denoise_to_zero": True}):
            plan = fit_grid(
                exact_denoiser(MIXTURE, schedule, "sample"),
                normal(4, 4),
                8,
                schedule=schedule,
                solver=solver,
                sweeps=1,
                **options,
                **ends,
            )
            assert plan.nfe == 8 and plan.options["fit"]["after"] <= plan.options["fit"]["before"]


@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching()], ids=["vp", "flow"])
@pytest.mark.parametrize("nfe", [1, 2])
def test_very_few_evaluations(schedule, nfe):
    denoise = exact_denoiser(MIXTURE, schedule, "sample")
    for method in ("lattice", "search"):
        plan = fit_grid(denoise, normal(4, 4), nfe, schedule=schedule, method=method, sweeps=1)
        assert plan.nfe == nfe


def test_whole_training_steps():
    schedule = SCHEDULES["vp_discrete"]
    denoise = exact_denoiser(MIXTURE, schedule, "epsilon")
    plan = fit_grid(denoise, normal(4, 4), 5, sweeps=1, snap=True)
    steps = tensor(*plan.times) * 1000
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)


def test_searched_masks_are_nearer_than_even_ones():
    schedule = VPLinear()
    denoise = exact_denoiser(WIDE, schedule, "sample")
    plan = make_plan("unipc", schedule, nfe=20, order=2, location=-1.5)
    starts, others = normal(10, 4), normal(32, 4, seed=9)
    mask = search_mask(denoise, starts, plan, 8)
    assert len(mask) == 20 and sum(mask) == 8 and mask[0]
    ends = sample(denoise, others, plan)
    errors = [
        summary(plan_errors(plan.cached(m, 2), denoise, others, ends)).log_mean
        for m in (mask, uniform_mask(20, 8))
    ]
    assert errors[0] < 0.8 * errors[1]
    assert search_mask(denoise, starts, plan, 20) == (True,) * 20
    heun = make_plan("heun", schedule, nfe=9)
    assert sum(search_mask(denoise, starts, heun, 4, sweeps=1)) == 4


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "cma"}, "method='cma'"),
        ({"nfe": 0}, "nfe=0"),
        ({"sweeps": 0}, "sweeps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"measure": "mean"}, "measure='mean'"),
        ({"spacing": "karras"}, "spacing='karras'"),
        ({"location": 0.1}, "location=0.1"),
        ({"solver": "unipx"}, "unipx"),
        ({"solver": "ddim", "eta": 1.0}, "adds noise"),
        ({"targets": normal(3, 4)}, "targets has shape"),
        ({"schedule": None}, "schedule=None"),
        ({"solver": "heun", "nfe": 2, "t_end": 1e-3, "orders": 2}, "orders=2"),
    ],
)
def test_bad_options_are_refused_before_the_network_is_called(keywords, message):
    def network(x, t):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        fit_grid(network, normal(4, 4), **{"nfe": 6, "schedule": VPLinear(), **keywords})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"nfe": 9}, "nfe=9"),
        ({"order": 0}, "order=0"),
        ({"quantity": "x"}, "quantity='x'"),
        ({"sweeps": -1}, "sweeps=-1"),
        ({"targets": normal(3, 4)}, "targets has shape"),
    ],
)
def test_bad_options_of_the_search_for_masks(keywords, message):
    def network(x, t):
        raise AssertionError("called")

    plan = make_plan("unipc", VPLinear(), nfe=8)
    with pytest.raises(ValueError, match=message):
        search_mask(network, normal(4, 4), plan, **{"nfe": 4, **keywords})


def test_the_methods_are_methods_of_tune():
    """With its split of the starts, and its verdict."""
    schedule = VPLinear()
    denoise = exact_denoiser(WIDE, schedule, "sample")
    plan = tune(
        denoise,
        normal(30, 4),
        nfe=6,
        level="grid",
        method="location",
        solver="unipc",
        solver_options={"order": 2},
    )
    assert plan.nfe == 6 and plan.options["fit"]["method"] == "location"
    assert plan.options["tuned"]["accepted"] and plan.options["tuned"]["held_out"] == 10
    for keywords in ({"level": "full"}, {"level": "grid", "guidance": (1.0, 2.0)}):
        with pytest.raises(ValueError, match="method='location'"):
            tune(denoise, normal(36, 4), method="location", **keywords)
