"""Caches as plans: the sample is that of a run whose skipped evaluations are really predicted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import (
    MIXTURE,
    RANGES,
    SCHEDULES,
    is_stochastic,
    plan_for,
    solver_cases,
    start_states,
    tensor,
)
from numpy.polynomial import Polynomial
from scipy.interpolate import lagrange
from topologies import topology_cases

from logsnr.benchmarks.problems.analytic import exact_denoiser, point_mass
from logsnr.solvers import (
    EMS,
    Plan,
    make_plan,
    run,
    sample,
    sample_parallel,
    skip_mask,
    uniform_mask,
)

MASK = (1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1)
KINDS = {
    "data": "sample",
    "noise": "epsilon",
    "velocity": "flow_prediction",
    "v_prediction": "v_prediction",
}
REGULAR = {"schedule": SCHEDULES["vp_linear"], "nfe": 12}
FROM_PURE_NOISE = {"schedule": SCHEDULES["flow"], "nfe": 12}


def place(variable: str, i: int, node: Any) -> float:
    return {"lambda": node.lam, "time": node.t, "index": i}[variable]


def extrapolated(history: list[tuple[float, torch.Tensor]], at: float, order: int) -> torch.Tensor:
    """The polynomial through the last ``order`` different finite places, by scipy."""
    used: list[tuple[float, torch.Tensor]] = []
    for where, value in reversed(history):
        if math.isfinite(where) and where not in [w for w, _ in used] and len(used) < order:
            used.append((where, value))
    if not used:
        return history[-1][1]
    values = torch.stack([value for _, value in used]).flatten(1).T
    polynomials = [lagrange([w for w, _ in used], entry.numpy()) for entry in values]
    at_once = [Polynomial(p.coef[::-1])(at) for p in polynomials]
    return torch.tensor(at_once, dtype=torch.float64).view_as(history[-1][1])


def cache_run(
    plan: Plan, x: torch.Tensor, schedule: Any, mask: Any, order: int, variable: str, quantity: str
) -> torch.Tensor:
    """A cache around the network: what is sent to the long plan at skipped evaluations is made."""
    kind = KINDS[quantity]
    network = exact_denoiser(MIXTURE, schedule, kind)
    process = run(plan, x, kind, noise=torch.Generator().manual_seed(3))
    history: list[tuple[float, torch.Tensor]] = []
    output = None
    for i in range(len(mask) + 1):
        try:
            asked = process.send(output)
        except StopIteration as stop:
            return stop.value
        where = place(variable, i, asked.node)
        if mask[i]:
            output = network.evaluate(asked.x, asked.node.t)
            history.append((where, output))
        else:
            output = extrapolated(history, where, order)
    raise AssertionError("more evaluations than the mask has entries")


def assert_same(
    plan: Plan, schedule: Any, order: int, variable: str, quantity: str, mask: Any = MASK
) -> None:
    x = start_states(schedule, plan.rows[0].node.t, batch=2)
    wanted = cache_run(plan, x, schedule, mask, order, variable, quantity)
    cached = plan.cached(mask, order, variable=variable, quantity=quantity)
    assert cached.nfe == sum(mask) and len(cached.rows) <= len(plan.rows)
    called = [t for t, real in zip(plan.times, mask, strict=True) if real]
    assert list(cached.times) == called
    network = exact_denoiser(MIXTURE, schedule, KINDS[quantity])
    noise = torch.Generator().manual_seed(3)
    got = sample(network, x, cached, noise=noise)
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_every_solver_is_the_run_with_a_cache(name, options):
    plan = plan_for(name, REGULAR, options)
    assert_same(plan, REGULAR["schedule"], 2, "lambda", "data")


@pytest.mark.parametrize("name", ["unipc", "dpm-solver", "heun", "deis"])
@pytest.mark.parametrize("quantity", KINDS)
@pytest.mark.parametrize("variable", ["lambda", "time", "index"])
def test_every_quantity_and_variable(name, quantity, variable):
    plan = make_plan(name, **REGULAR)
    for order in (1, 3):
        assert_same(plan, REGULAR["schedule"], order, variable, quantity)


@pytest.mark.parametrize("quantity", ["data", "velocity", "v_prediction"])
@pytest.mark.parametrize("name", ["unipc", "ipndm", "heun"])
def test_from_pure_noise_to_data(name, quantity):
    plan = make_plan(name, **FROM_PURE_NOISE)
    mask = (1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1)[: plan.nfe]
    assert_same(plan, FROM_PURE_NOISE["schedule"], 2, "lambda", quantity, mask)
    assert_same(plan, FROM_PURE_NOISE["schedule"], 2, "time", quantity, mask)


STOCHASTIC = [case for case in solver_cases() if is_stochastic(*case.values)]


@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
def test_plans_with_noise_keep_their_marginals(name, options):
    """The noise terms are those of the long plan; the plan is checked when it is built."""
    plan = plan_for(name, REGULAR, options)
    cached = plan.cached(MASK, 2)
    assert cached.consistent == plan.consistent and cached.nfe == sum(MASK)
    terms = {term.key for row in plan.rows for term in row.noise}
    assert {term.key for row in cached.rows for term in row.noise} == terms
    with pytest.raises(ValueError, match="quantity='noise'"):
        plan.cached(MASK, quantity="noise")


def test_statistics_of_the_model():
    """Coefficients and targets over the event shape are combined entry by entry."""
    schedule, knots, shape = SCHEDULES["vp_linear"], 21, (4,)
    lams = torch.linspace(-6, 6, knots, dtype=torch.float64)
    wave = torch.sin(lams)[:, None] * torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    ems = EMS(lams, 1 + 0.2 * wave, 0.1 * wave, 0.05 * wave)
    plan = make_plan("dpm-solver-v3", **REGULAR, ems=ems, treatment="spline")
    assert plan.rows[1].target.x.shape == shape
    for quantity in KINDS:
        assert_same(plan, schedule, 2, "lambda", quantity)


@pytest.mark.parametrize("quantity", [each for each in KINDS if each != "v_prediction"])
@pytest.mark.parametrize("name", ["unipc", "heun", "dpm-solver"])
def test_a_point_mass_is_still_met(name, quantity):
    range_ = RANGES["vp_linear_to_data"]
    plan = make_plan(name, range_.schedule, nfe=12, **range_.ends)
    cached = plan.cached(MASK, 3, quantity=quantity)
    assert cached.consistent
    problem = point_mass(tensor(0.7, -1.3, 0.2, 2.0))
    x = range_.schedule.alpha(1.0) * problem.draw(3, torch.Generator()) + 1.0
    result = sample(exact_denoiser(problem, range_.schedule, "sample"), x, cached)
    torch.testing.assert_close(result, problem.draw(3, torch.Generator()), rtol=0, atol=1e-8)


def test_a_velocity_that_turns_is_not_met_and_the_plan_says_so():
    plan = make_plan("unipc", **REGULAR)
    assert not plan.cached(MASK, 2, quantity="v_prediction").consistent
    assert plan.cached([1] * 12, 2, quantity="v_prediction").consistent


def test_higher_orders_are_nearer_to_the_long_run():
    plan = make_plan("unipc", SCHEDULES["vp_linear"], nfe=60, spacing="logsnr")
    x = start_states(SCHEDULES["vp_linear"], 1.0)
    denoise = exact_denoiser(MIXTURE, SCHEDULES["vp_linear"])
    exact, mask = sample(denoise, x, plan), [i % 2 == 0 for i in range(60)]
    gaps = [(sample(denoise, x, plan.cached(mask, n)) - exact).norm() for n in (1, 2, 3)]
    assert gaps[1] < 0.3 * gaps[0] and gaps[2] < 0.6 * gaps[1]


def test_a_cached_plan_is_a_plan(tmp_path):
    plan = make_plan("unipc", **REGULAR, order=2)
    cached = plan.cached("110100110001", 2)
    assert cached.options["cached"] == {
        "mask": "110100110001",
        "order": 2,
        "variable": "time",
        "quantity": "data",
    }
    cached.save(tmp_path / "plan.safetensors")
    again = Plan.load(tmp_path / "plan.safetensors")
    assert again.rows == cached.rows and again.options == cached.options
    x = start_states(REGULAR["schedule"], 1.0)
    denoise = exact_denoiser(MIXTURE, REGULAR["schedule"])
    swept, _ = sample_parallel(denoise, x, cached)
    torch.testing.assert_close(swept, sample(denoise, x, cached), rtol=0, atol=1e-9)
    assert plan.cached([True] * 12) is plan
    for mask in (torch.tensor(MASK).bool(), torch.tensor(MASK).numpy()):
        assert plan.cached(mask, 2).rows == plan.cached(MASK, 2).rows
    twice = cached.cached([1, 1, 1, 0, 1, 1])
    assert twice.nfe == 5 and twice.options["cached"]["of"] == cached.options["cached"]


def test_nodes_keep_their_gradients():
    times = torch.linspace(1, 0.01, 7, dtype=torch.float64, requires_grad=True)
    schedule = SCHEDULES["vp_linear"]
    x = start_states(schedule, 1.0)
    denoise = exact_denoiser(MIXTURE, schedule)

    def total(given: torch.Tensor) -> torch.Tensor:
        plan = make_plan("unipc", schedule, times=given, order=2)
        return sample(denoise, x, plan.cached([1, 1, 0, 1, 0, 1], 2)).sum()

    (slopes,) = torch.autograd.grad(total(times), times)
    for i in (2, 4):
        step = 1e-6 * torch.eye(7, dtype=torch.float64)[i]
        with torch.no_grad():
            difference = (total(times + step) - total(times - step)) / 2e-6
        torch.testing.assert_close(slopes[i], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("mask", "keywords", "message"),
    [
        ([0] + [1] * 11, {}, "the first evaluation has to be real"),
        ([1, 0, 1], {}, "mask has 3 entries: need one for each of the 12"),
        ("11011x011111", {}, "mask='11011x011111'"),
        ([1, 2] * 6, {}, "need True"),
        (7, {}, "mask=7"),
        ([], {}, r"mask=\[\]"),
        (MASK, {"order": 0}, "order=0"),
        (MASK, {"order": True}, "order=True"),
        (MASK, {"variable": "sigma"}, "variable='sigma'"),
        (MASK, {"quantity": "eps"}, "quantity='eps'"),
    ],
)
def test_bad_options(mask, keywords, message):
    plan = make_plan("unipc", **REGULAR)
    with pytest.raises(ValueError, match=message):
        plan.cached(mask, **keywords)


def test_masks():
    assert uniform_mask(6, 3) == (True, False) * 3
    assert sum(uniform_mask(30, 12)) == 12 and uniform_mask(30, 12)[0]
    assert uniform_mask(5, 5) == (True,) * 5
    mask = skip_mask(12, 2, 1, first=1, last=2)
    assert "".join("01"[m] for m in mask) == "111011011011"
    for bad in ({"calls": 0}, {"calls": 1, "skips": 0}, {"calls": 1, "first": -1}):
        with pytest.raises(ValueError, match="=(0|-1)"):
            skip_mask(8, **bad)
    with pytest.raises(ValueError, match="nfe=9"):
        uniform_mask(8, 9)
