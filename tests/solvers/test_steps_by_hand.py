"""Steps of SEEDS, RES and gradient estimation written out, and those of diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import SCHEDULES, normal
from torch import Tensor

from logsnr.solvers import Denoiser, Noise, Plan, make_plan, sample

VP, FLOW, VE = (SCHEDULES[name] for name in ("vp_linear", "flow", "edm"))
X = normal(3, 4)


def denoise(x: Tensor, t: Any) -> Tensor:
    """A data prediction that is none of a Gaussian's."""
    return torch.sin(2 * x) + 0.1 * x


def standard(plan: Plan) -> Callable[[Noise, Tensor], Tensor]:
    """A fixed random number for every interval."""
    terms = dict.fromkeys(term.key for row in plan.rows for term in row.noise)
    numbers = {key: normal(*X.shape, seed=50 + i) for i, key in enumerate(terms)}
    return lambda term, like: numbers[term.key]


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
