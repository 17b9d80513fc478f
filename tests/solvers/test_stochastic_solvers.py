"""SDE-DPM-Solver++, SEEDS, RES and gradient estimation: marginals, limits, gradients, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal
from torch import Tensor

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    BrownianPath,
    Plan,
    VarianceExploding,
    VPLinear,
    make_plan,
    sample,
    sample_parallel,
)
from logsnr.solvers.identities import marginal_deviations
from logsnr.solvers.noise import draws
from logsnr.solvers.noise_terms import covariance

VP, FLOW, VE = (SCHEDULES[name] for name in ("vp_linear", "flow", "edm"))
X = normal(3, 4)
TIMES = {
    "vp_linear": [1.0, 0.8, 0.55, 0.3, 0.15, 0.02],
    "flow": [1.0, 0.85, 0.6, 0.35, 0.1, 0.0],
    "edm": [80.0, 20.0, 5.0, 1.0, 0.2, 0.0],
}
ETAS = (0.3, 1.0, [0.0, 1.0, 0.4, 0.0, 1.0], lambda t: min(1.0, t))
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sde-dpm-solver++", {"order": 1}),
    ("sde-dpm-solver++", {}),
    ("sde-dpm-solver++", {"solver_type": "heun", "keep_first": False}),
    ("sde-dpm-solver++", {"order": 3, "weights": "taylor"}),
    ("sde-dpm-solver++", {"steps": "singlestep", "r": 0.3}),
    ("seeds", {"order": 1}),
    ("seeds", {"order": 2, "solver_type": "phi_2", "r": 1.0}),
    ("seeds", {"order": 3}),
    ("res", {}),
]


def denoise(x: Tensor, t: Any) -> Tensor:
    """A data prediction that is none of a Gaussian's."""
    return torch.sin(2 * x) + 0.1 * x


# marginals


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_marginals_are_those_of_the_forward_process(name, options, eta, schedule):
    plan = make_plan(name, SCHEDULES[schedule], times=TIMES[schedule], eta=eta, **options)
    assert plan.stochastic and plan.consistent
    for deviation, row in zip(marginal_deviations(plan.rows), plan.rows, strict=True):
        assert deviation == pytest.approx(row.node.sigma, rel=1e-12, abs=1e-15)


def test_other_amplitudes_and_the_noise_prediction_leave_them():
    for name, options in METHODS:
        plan = make_plan(name, VP, times=TIMES["vp_linear"], eta=1.0, s_noise=1.1, **options)
        assert not plan.consistent
    still = make_plan("seeds", VP, nfe=4, eta=0.0, s_noise=1.1)
    assert still.consistent and not still.stochastic
    plan = make_plan("sde-dpm-solver++", VP, lams=[-0.5, 0.1, 0.4], order=1, prediction="noise")
    assert not plan.consistent
    h = 0.6
    expected = plan.rows[1].node.sigma * math.sqrt(1 + 2 * math.expm1(h) ** 2)
    assert marginal_deviations(plan.rows)[1] == pytest.approx(expected, rel=1e-12)


def test_a_step_costs_one_row_and_each_stage_one_draw():
    for options, count in (({}, 1), ({"steps": "singlestep"}, 2)):
        plan = make_plan("sde-dpm-solver++", VP, times=TIMES["vp_linear"], **options)
        assert len(plan.rows) == 1 + plan.nfe == 1 + 5 * count
        assert draws(plan) == plan.nfe


@pytest.mark.parametrize("schedule", [VP, FLOW])
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_the_strength_may_carry_a_gradient(name, options, schedule):
    """Also where a step from pure noise forgets its start."""

    def loss(eta: Any) -> Tensor:
        plan = make_plan(name, schedule, nfe=6, eta=eta, **options)
        noise = [normal(*X.shape, seed=i) for i in range(draws(plan))]
        return sample(denoise, X, plan, noise=noise).sum()

    eta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(eta), eta)
    slope = float(loss(0.5 + 1e-6) - loss(0.5 - 1e-6)) / 2e-6
    assert float(gradient) == pytest.approx(slope, rel=1e-5, abs=1e-7)


# limits


DETERMINISTIC = [
    ("sde-dpm-solver++", {}, "dpm-solver++", {}),
    ("sde-dpm-solver++", {"solver_type": "heun"}, "dpm-solver++", {"solver_type": "taylor"}),
    ("sde-dpm-solver++", {"order": 3}, "dpm-solver++", {"order": 3}),
    (
        "sde-dpm-solver++",
        {"order": 3, "solver_type": "heun", "weights": "taylor", "lower_order_final": False},
        "dpm-solver++",
        {"order": 3, "solver_type": "taylor", "weights": "taylor", "lower_order_final": False},
    ),
    ("res", {}, "adams", {"order": 2}),
    ("seeds", {"order": 1}, "ddim", {}),
]


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize(("name", "options", "other", "others"), DETERMINISTIC)
def test_without_noise_it_is_the_deterministic_method(name, options, other, others, schedule):
    place = {"schedule": SCHEDULES[schedule], "times": TIMES[schedule]}
    ours = make_plan(name, **place, eta=0.0, **options)
    assert_rows(ours, make_plan(other, **place, **others), 1e-12)
    barely = make_plan(name, **place, eta=1e-9, **options)
    if schedule != "flow":  # from pure noise nothing of x_T is left, however weak the noise
        assert_rows(barely, ours, 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "order", "solver_type"),
    [
        ("sde-dpm-solver++", {"steps": "singlestep"}, 2, "dpmsolver"),
        ("sde-dpm-solver++", {"steps": "singlestep", "solver_type": "heun"}, 2, "taylor"),
        ("seeds", {"order": 2, "solver_type": "phi_2"}, 2, "taylor"),
        ("seeds", {"order": 3}, 3, "dpmsolver"),
    ],
)
def test_without_noise_stages_are_those_of_singlestep(name, options, order, solver_type):
    """Whose list of nodes has the inner ones too."""
    lams = torch.linspace(-2, 2, 3 * order + 1, dtype=torch.float64)
    ours = make_plan(name, VP, lams=lams[::order], eta=0.0, **options)
    theirs = make_plan(
        "dpm-solver++",
        VP,
        lams=lams,
        order=order,
        steps="singlestep_fixed",
        solver_type=solver_type,
    )
    assert_rows(ours, theirs, 1e-12)


def assert_rows(ours: Plan, theirs: Plan, tolerance: float) -> None:
    for one, two in zip(ours.rows, theirs.rows, strict=True):
        for mine, other in ((one.states, two.states), (one.outputs, two.outputs)):
            mine, other = (
                {j: c for j, c in entries if abs(c) > 1e-14} for entries in (mine, other)
            )
            assert mine == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_solvers_of_one_sde_approach_each_other_on_one_path(eta):
    """From pure noise, where the clock is 0, for strengths between the ODE and the SDE too."""
    network = exact_denoiser(GAUSSIAN, FLOW, "flow_prediction")
    distances = []
    for steps in (8, 32):
        results = []
        for name, nfe in (("sde-dpm-solver++", steps), ("seeds", 2 * steps - 1)):
            plan = make_plan(name, FLOW, nfe=nfe, eta=eta, t_end=0.2, spacing="time")
            path = BrownianPath(3, 0.0, math.exp(2 * FLOW.lam(0.2)) + 1e-6, clock="snr")
            results.append(sample(network, X, plan, noise=path))
        distances.append(float((results[0] - results[1]).norm()))
    assert distances[1] < distances[0] / 2


def test_the_inner_node_of_a_step_has_the_beginning_of_its_noise():
    """Strength 1: Cov = sqrt of the ratio of the increments of the signal-to-noise ratio."""
    plan = make_plan("sde-dpm-solver++", VP, lams=[-1.0, 0.5], steps="singlestep", r=0.4)
    inner, end = plan.rows[1], plan.rows[2]
    found = sum(a.scale * b.scale * covariance(a, b) for a in inner.noise for b in end.noise)
    scales = [math.hypot(*(term.scale for term in row.noise)) for row in (inner, end)]
    grown = [math.exp(2 * row.node.lam) - math.exp(-2.0) for row in (inner, end)]
    assert found / math.prod(scales) == pytest.approx(math.sqrt(grown[0] / grown[1]), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sde-dpm-solver++", {"order": 4}, "order=4"),
        ("sde-dpm-solver++", {"order": 3, "steps": "singlestep"}, "order=3: .*has order 2"),
        ("sde-dpm-solver++", {"steps": "singlestep", "eta": 1.2}, r"eta=1.2: need .*\[0, 1\]"),
        ("sde-dpm-solver++", {"steps": "singlestep", "prediction": "noise"}, "prediction='noise'"),
        ("sde-dpm-solver++", {"solver_type": "euler"}, "solver_type='euler'"),
        ("sde-dpm-solver++", {"r": 0.0}, "r=0.0"),
        ("sde-dpm-solver++", {"s_noise": -1.0}, "s_noise=-1.0"),
        ("sde-dpm-solver++", {"eta": math.inf}, "eta=inf"),
        ("sde-dpm-solver++", {"eta": [1.0] * 3}, "eta has 3 entries: need 6"),
        ("sde-dpm-solver++", {"invert": True}, "eta=1.0: an inversion is deterministic"),
        ("seeds", {"r": 1.5}, "r=1.5"),
        ("seeds", {"r1": 0.7, "r2": 0.6}, "r1=0.7, r2=0.6"),
        ("seeds", {"order": 7}, "order=7"),
        ("res", {"eta": 2.0}, "eta=2.0"),
        ("res", {"order": 3}, "order=3 is not an option"),
        ("gradient-estimation", {"gamma": 0.0}, "gamma=0.0"),
        ("gradient-estimation", {"variable": "time"}, "variable='time'"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(name, VP, nfe=6, **options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("euler-ancestral", {}),
        ("dpm2-ancestral", {}),
        ("sde-dpm-solver++", {}),
        ("seeds", {}),
        ("res", {"eta": 1.0}),
        ("heun", {"s_churn": 5.0}),
    ],
)
def test_an_amplitude_of_zero_draws_nothing(name, options):
    schedule, x = VPLinear(), torch.ones(2, 3, dtype=torch.float64)
    silent = make_plan(name, schedule, nfe=6, s_noise=0.0, **options)
    noisy = make_plan(name, schedule, nfe=6, s_noise=1e-9, **options)
    assert not silent.stochastic
    pair = [sample(lambda x, t: 0.3 * x, x, plan, noise=1) for plan in (silent, noisy)]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-7)


@pytest.mark.parametrize("noise", [1, 2])
def test_in_parallel_where_the_start_itself_is_not_evaluated(noise):
    plan = make_plan("heun", VarianceExploding(0.002, 80.0), nfe=9, s_churn=9.0, t_start=40.0)
    assert plan.rows[0].target is None
    x = plan.start((2, 3), seeds=range(2), dtype=torch.float64)

    def denoise(x, t):
        return torch.tanh(x)

    expected = sample(denoise, x, plan, noise=noise)
    for window in (None, 1, 3):
        found, _ = sample_parallel(denoise, x, plan, window, noise=noise)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.tensor(True), torch.tensor(1j), np.ones((6, 2))])
def test_strengths_of_another_kind_are_named(bad):
    with pytest.raises(ValueError, match="eta="):
        make_plan("ddim", VPLinear(), nfe=6, eta=bad)


def test_strengths_may_be_an_array():
    listed = make_plan("ddim", VPLinear(), nfe=4, eta=[0.0, 0.25, 0.5, 1.0])
    array = make_plan("ddim", VPLinear(), nfe=4, eta=np.array([0.0, 0.25, 0.5, 1.0]))
    assert array.rows == listed.rows


def test_a_noise_function_that_returns_no_number_is_named():
    with pytest.raises(ValueError, match="noise_function is 'x' at rho"):
        make_plan("er-sde", VPLinear(), nfe=6, noise_function=lambda rho: "x")
