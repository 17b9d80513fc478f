"""SDE-DPM-Solver++, SEEDS, RES and gradient estimation: marginals, limits, and steps by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import SCHEDULES, normal
from torch import Tensor

from logsnr.solvers import Noise, Plan, make_plan, sample
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


def standard(plan: Plan) -> Callable[[Noise, Tensor], Tensor]:
    """A fixed random number for every interval."""
    terms = dict.fromkeys(term.key for row in plan.rows for term in row.noise)
    numbers = {key: normal(*X.shape, seed=50 + i) for i, key in enumerate(terms)}
    return lambda term, like: numbers[term.key]


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


# steps by hand


def levels(schedule: Any, lams: list[float]) -> list[tuple[float, float, float]]:
    """(lambda, alpha, sigma)."""
    times = schedule.time(torch.tensor(lams, dtype=torch.float64))
    return list(
        zip(lams, schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True)
    )


def ornstein_uhlenbeck(eta: float, h: float, before: Tensor, z: Tensor) -> Tensor:
    """The noise of a step in units of sigma, ``h`` after it was ``before``."""
    return math.exp(-eta * h) * before + math.sqrt(-math.expm1(-2 * eta * h)) * z


@pytest.mark.parametrize("schedule", [VP, FLOW, VE])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_seeds_by_hand(schedule, eta):
    """Orders 2 (both weights) and 3: Gonzalez et al. 2023, in terms of x / sigma."""
    lams = [-2.0, -1.1, 0.3, 1.0]

    def weights(shares: list[float], z: float) -> list[float]:
        """phi_1 and phi_2 on D(lambda_s) and on one other node at share r."""
        (r,) = shares
        slope = (math.expm1(z) / z - 1) / z * -z / r
        return [-math.expm1(z) - slope, slope]

    def run(places: list[float], rows: list[Callable[[float], list[float]]], z: Iterator) -> Tensor:
        x = X
        for start, end in pairwise(lams):
            inner = [start + c * (end - start) for c in [*places, 1.0]]
            (_, _, sigma_s), *nodes = levels(schedule, [start, *inner])
            outputs, noise, before = [denoise(x, None)], torch.zeros_like(x), start
            for k, (lam, alpha, sigma) in enumerate(nodes):
                h = lam - start
                noise, before = ornstein_uhlenbeck(eta, lam - before, noise, next(z)), lam
                drift = sum(w * d for w, d in zip(rows[k](-(1 + eta) * h), outputs, strict=True))
                state = sigma / sigma_s * math.exp(-eta * h) * x + alpha * drift + sigma * noise
                outputs.append(denoise(state, None))
            x = state
        return x

    first = lambda z: [-math.expm1(z)]  # noqa: E731
    cases = [
        (
            {"order": 2, "r": 0.4},
            [0.4],
            [first, lambda z: [-math.expm1(z) * w for w in (-0.25, 1.25)]],
        ),
        ({"order": 2, "solver_type": "phi_2"}, [0.5], [first, lambda z: weights([0.5], z)]),
        (
            {"order": 3},
            [1 / 3, 2 / 3],
            [
                first,
                lambda z: weights([0.5], z),
                lambda z: [(w := weights([2 / 3], z))[0], 0.0, w[1]],
            ],
        ),
    ]
    for options, places, rows in cases:
        plan = make_plan("seeds", schedule, lams=lams, eta=eta, **options)
        z = standard(plan)
        keys = dict.fromkeys(term.key for row in plan.rows for term in row.noise)
        expected = run(places, rows, iter([z(key, X) for key in keys]))
        result = sample(denoise, X, plan, noise=z)
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_res_by_hand(eta):
    """In sigma, alpha = 1: the exponential step of order 2 to sigma_down, its history stretched."""
    times = [20.0, 8.0, 3.0, 1.0, 0.3]
    plan = make_plan("res", VE, times=times, eta=eta, lower_order_final=False)
    z, terms = standard(plan), [row.noise[0].key for row in plan.rows[1:]]
    x, old, stretched = X, None, 0.0
    for (start, end), term in zip(pairwise(times), terms, strict=True):
        up = eta * end * math.sqrt(1 - (end / start) ** 2)
        down = math.sqrt(end**2 - up**2)
        h, D = math.log(start / down), denoise(x, None)
        mean = -math.expm1(-h) * D
        if old is not None:
            phi_2 = (-math.expm1(-h) / h - 1) / -h
            mean = mean + h * phi_2 * (D - old) * h / stretched
        x, old, stretched = down / start * x + mean + up * z(term, x), D, h
    torch.testing.assert_close(sample(denoise, X, plan, noise=z), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 1.7])
def test_gradient_estimation_by_hand(gamma):
    """x += dt (gamma d + (1 - gamma) d_old), in sigma, and in t on flow models; D at the end."""
    for schedule, times, options in (
        (VE, [20.0, 8.0, 3.0, 1.0, 0.0], {}),
        (FLOW, [1.0, 0.7, 0.4, 0.2, 0.0], {"variable": "time"}),
    ):
        plan = make_plan("gradient-estimation", schedule, times=times, gamma=gamma, **options)
        x, old = X, None
        for start, end in pairwise(times):
            D = denoise(x, None)
            d = (x - D) / start
            direction = d if old is None else gamma * d + (1 - gamma) * old
            x, old = D if end == 0 else x + (end - start) * direction, d
        torch.testing.assert_close(sample(denoise, X, plan), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_updates_of_diffusers(prediction, solver_type):
    """Its own functions, on levels in float64, orders 1 and 2."""
    from diffusers import DPMSolverMultistepScheduler

    kind = {"data": "sde-dpmsolver++", "noise": "sde-dpmsolver"}[prediction]
    stock = DPMSolverMultistepScheduler(
        algorithm_type=kind, solver_type=solver_type, final_sigmas_type="sigma_min"
    )
    times = [0.9, 0.6, 0.35]
    plan = make_plan(
        "sde-dpm-solver++",
        VP,
        times=times,
        prediction=prediction,
        solver_type=solver_type,
        lower_order_final=False,
    )
    rho = [row.node.sigma / row.node.alpha for row in plan.rows]
    stock.sigmas = torch.tensor(rho, dtype=torch.float64)
    z = standard(plan)
    noises = [z(row.noise[0].key, X) for row in plan.rows[1:]]
    network = lambda x, t: torch.sin(x)  # noqa: E731
    stock._step_index = 0
    first = stock.dpm_solver_first_order_update(network(X, 0), sample=X, noise=noises[0])
    stock._step_index = 1
    history = [network(X, 0), network(first, 0)]
    second = stock.multistep_dpm_solver_second_order_update(history, sample=first, noise=noises[1])
    from logsnr.solvers import Denoiser

    ours = Denoiser(network, VP, {"data": "sample", "noise": "epsilon"}[prediction])
    torch.testing.assert_close(sample(ours, X, plan, noise=z), second, rtol=1e-10, atol=1e-10)


def test_the_third_order_of_diffusers_has_another_sign():
    """Of the 1/2 in the weight of the second difference, which k-diffusion has as we do."""
    from diffusers import DPMSolverMultistepScheduler

    stock = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    plan = make_plan(
        "sde-dpm-solver++", VP, lams=[-1.0, -0.4, 0.1, 0.8], order=3, lower_order_final=False
    )
    nodes = [row.node for row in plan.rows]
    stock.sigmas = torch.tensor([n.sigma / n.alpha for n in nodes], dtype=torch.float64)
    stock._step_index = 2
    x, z, *outputs = (normal(3, 4, seed=i) for i in range(5))
    theirs = stock.multistep_dpm_solver_third_order_update(outputs, sample=x, noise=z)
    row = plan.rows[3]
    ((_, a),) = row.states
    ours = a * x + sum(b * outputs[j] for j, b in row.outputs) + row.noise[0].scale * z
    r0, r1 = 0.5 / 0.7, 0.6 / 0.7
    new, old = (outputs[2] - outputs[1]) / r0, (outputs[1] - outputs[0]) / r1
    torch.testing.assert_close(
        ours - theirs, nodes[3].alpha * (new - old) / (r0 + r1), rtol=1e-10, atol=1e-10
    )


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
