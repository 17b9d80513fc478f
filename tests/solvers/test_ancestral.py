"""Ancestral samplers, DDPM, CPS, Euler-Maruyama: published loops, marginals, moments, paths."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import RANGES, SCHEDULES, normal, tensor
from torch import Tensor

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.solvers import BrownianPath, Denoiser, NoiseSchedule, Plan, make_plan, sample
from logsnr.solvers.identities import marginal_deviations

VE, FLOW, VP = SCHEDULES["edm"], SCHEDULES["flow"], SCHEDULES["vp_linear"]
X = normal(2, 4, seed=1)
Z = [normal(2, 4, seed=10 + i) for i in range(6)]
FAMILY = ("ddpm", "euler-ancestral", "dpm2-ancestral", "dpm++2s-ancestral", "cps")


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.flip(1)) + 0.3 * t.reshape(-1, 1)


# the published loops, in float64, with the same noise


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["euler-ancestral", "dpm2-ancestral", "dpm++2s-ancestral"])
def test_k_diffusion(name, eta):
    """Its loops in sigma, for variance-exploding models."""
    sigmas, s_noise = [20.0, 7.0, 2.0, 0.5, 0.1, 0.0], 0.9

    def denoised(x: Tensor, sigma: float) -> Tensor:
        return network(x, torch.full((2,), sigma, dtype=torch.float64))

    x = 20 * X
    for s, t, z in zip(sigmas, sigmas[1:], Z, strict=False):
        up = eta * t * math.sqrt(1 - (t / s) ** 2)
        down = math.sqrt(t * t - up * up)
        d = (x - denoised(x, s)) / s
        if down == 0 or name == "euler-ancestral":
            x = x + d * (down - s)
        else:
            middle = math.sqrt(s * down)
            inner = denoised(x + d * (middle - s), middle)
            if name == "dpm2-ancestral":
                x = x + (x + d * (middle - s) - inner) / middle * (down - s)
            else:
                x = down / s * x + (1 - down / s) * inner
        x = x + s_noise * up * z
    plan = make_plan(name, VE, sigmas=sigmas, eta=eta, s_noise=s_noise)
    result = sample(Denoiser(network, VE, "sample"), 20 * X, plan, noise=Z)
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("diffusion", ["flow-grpo", "constant"])
def test_steps_of_reinforcement_learning_on_flow_models(diffusion):
    """Flow-GRPO's step from the velocity, and DanceGRPO's from the score, also from t = 1."""
    times, eta = [1.0, 0.9, 0.6, 0.3, 0.05, 0.0], 0.7
    x = X
    for i, (s, t) in enumerate(pairwise(times)):
        v, dt = network(x, torch.full((2,), s, dtype=torch.float64)), s - t
        if diffusion == "flow-grpo":
            # It puts t_1 for t into 1 - t at t = 1.
            d = eta * math.sqrt(s / (1 - (times[1] if s == 1 else s)))
            mean = x - (v + d**2 / (2 * s) * (x + (1 - s) * v)) * dt
        else:
            d = eta
            score = -(x - (x - s * v) * (1 - s)) / s**2
            mean = x - v * dt + d**2 / 2 * score * dt
        x = mean + d * math.sqrt(dt) * Z[i]
    chosen = {"eta": eta, "diffusion": diffusion, "final_noise": True}
    plan = make_plan("euler-maruyama", FLOW, times=times, **chosen)
    result = sample(Denoiser(network, FLOW, "flow_prediction"), X, plan, noise=Z)
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)


def test_coefficients_preserving_steps():
    times, angle = [1.0, 0.8, 0.4, 0.1, 0.0], 0.7 * math.pi / 2
    x = X
    for (s, t), z in zip(pairwise(times), Z, strict=False):
        v = network(x, torch.full((2,), s, dtype=torch.float64))
        x0, eps = x - s * v, x + (1 - s) * v
        x = (1 - t) * x0 + t * math.cos(angle) * eps + t * math.sin(angle) * z
    plan = make_plan("cps", FLOW, times=times, eta=0.7)
    result = sample(Denoiser(network, FLOW, "flow_prediction"), X, plan, noise=Z)
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_on_a_discrete_schedule(variance):
    """Ho et al. 2020, eq. 6 and 7, from each training step to the one before."""
    schedule = SCHEDULES["vp_discrete"]
    steps = [600, 450, 300, 1]
    bars = schedule.alphas_cumprod[[k - 1 for k in steps]].tolist()
    x = X
    for i, (bar, before) in enumerate(pairwise(bars)):
        alpha = bar / before
        x0 = network(x, torch.full((2,), steps[i] - 1, dtype=torch.float64))
        mean = (math.sqrt(before) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - before) * x) / (
            1 - bar
        )
        kept = 1 - alpha if variance == "large" else (1 - before) / (1 - bar) * (1 - alpha)
        x = mean + math.sqrt(kept) * Z[i]
    plan = make_plan("ddpm", schedule, times=[k / 1000 for k in steps], variance=variance)
    result = sample(Denoiser(network, schedule, "sample"), X, plan, noise=Z[:3])
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)


# identities


@pytest.mark.parametrize(
    "range_name", ["vp_linear", "vp_zero_terminal_to_data", "edm", "flow_singular"]
)
@pytest.mark.parametrize("name", FAMILY)
def test_every_state_has_the_deviation_of_its_node(name, range_name):
    range_ = RANGES[range_name]
    plan = make_plan(name, range_.schedule, nfe=11, spacing="time", **range_.ends)
    assert plan.stochastic and plan.consistent
    exact = [row.node.sigma for row in plan.rows]
    assert marginal_deviations(plan.rows) == pytest.approx(exact, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(
    ("name", "deterministic", "options"),
    [
        ("euler-ancestral", "ddim", {}),
        ("cps", "ddim", {}),
        ("dpm2-ancestral", "dpm2", {}),
        ("dpm++2s-ancestral", "dpm-solver++", {"order": 2, "steps": "singlestep"}),
    ],
)
@pytest.mark.parametrize("schedule", [VP, VE, FLOW], ids=["vp", "ve", "flow"])
def test_without_noise_it_is_the_solver_of_the_ode(name, deterministic, options, schedule):
    lams = torch.linspace(-2, 2, 5, dtype=torch.float64)
    inner = torch.linspace(-2, 2, 9, dtype=torch.float64)
    fine = lams if options == {} else inner
    ours = make_plan(name, schedule, lams=lams, eta=0.0)
    theirs = make_plan(deterministic, schedule, lams=fine, **options)
    denoise = Denoiser(network, schedule, "sample", network_time=lambda t: t)
    torch.testing.assert_close(
        sample(denoise, X, ours), sample(denoise, X, theirs), rtol=1e-9, atol=1e-10
    )


def test_euler_ancestral_is_ddim_also_with_a_strength_for_each_step():
    for eta in (0.3, [0.0, 1.0, 0.5, 0.2], lambda t: t):
        one, two = (make_plan(name, FLOW, nfe=4, eta=eta) for name in ("euler-ancestral", "ddim"))
        assert one.rows == two.rows and one.stochastic


# Euler-Maruyama: moments, excess, paths


def law(plan: Plan, schedule: NoiseSchedule, scale: float) -> float:
    """The standard deviation of the sample for data N(0, scale^2): the plan is linear there."""
    denoise = exact_denoiser(Gaussian(tensor(0.0), tensor(scale)), schedule, "v_prediction")
    count = sum(len(row.noise) for row in plan.rows)
    first = plan.rows[0].node
    basis = torch.eye(1 + count, dtype=torch.float64)
    start = basis[:1].T * math.hypot(first.alpha * scale, first.sigma)
    noise = [basis[i + 1 : i + 2].T for i in range(count)]
    return float(sample(denoise, start, plan, noise=noise).norm())


@pytest.mark.parametrize("diffusion", ["sde", "flow-grpo"])
@pytest.mark.parametrize("where", ["vp", "flow"])
def test_moments_of_euler_maruyama_tend_to_those_of_the_data(where, diffusion):
    """Of order 1 in the steps."""
    schedule, scale = {"vp": VP, "flow": FLOW}[where], 0.5
    t_end = 0.1
    exact = math.hypot(schedule.alpha(t_end) * scale, schedule.sigma(t_end))
    errors = []
    for nfe in (40, 80, 160):
        times = torch.linspace(0.8, t_end, nfe + 1, dtype=torch.float64)
        plan = make_plan("euler-maruyama", schedule, times=times, diffusion=diffusion)
        errors.append(abs(law(plan, schedule, scale) - exact) / exact)
    assert errors[2] < 0.02
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


def test_euler_maruyama_adds_too_much_noise_and_says_so():
    """Documented: what Flow-GRPO's ten steps with noise 0.7 leave, and CPS does not."""
    times = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    chosen = {"eta": 0.7, "diffusion": "flow-grpo"}
    plan = make_plan("euler-maruyama", FLOW, times=times, **chosen)
    assert not plan.consistent
    ratios = [
        deviation / row.node.sigma
        for deviation, row in zip(marginal_deviations(plan.rows), plan.rows, strict=True)
    ]
    assert max(ratios) > 1.3
    plan = make_plan("cps", FLOW, times=times, eta=0.7)
    assert plan.consistent


def test_a_run_of_the_whole_flow_is_on_one_finite_path():
    """From pure noise to data: twice the steps come nearer to the limit on the same path."""
    denoise = exact_denoiser(
        Gaussian(torch.zeros(4), torch.full((4,), 0.5)), FLOW, "flow_prediction"
    )
    for name in ("euler-ancestral", "dpm2-ancestral", "euler-maruyama"):
        results = []
        for steps in (8, 32, 128):
            times = torch.linspace(1, 0.02, steps + 1, dtype=torch.float64)
            path = BrownianPath(3, 0.0, (0.98 / 0.02) ** 2 + 1e-9, clock="snr")
            results.append(sample(denoise, X, make_plan(name, FLOW, times=times), noise=path))
        coarse, fine = (float((r - results[-1]).norm()) for r in results[:2])
        assert fine < coarse / 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler-ancestral", {"eta": 1.5}, r"eta=1.5: need a number in \[0, 1\]"),
        ("euler-ancestral", {"eta": [1.0, 0.5]}, "eta has 2 entries: need 4"),
        ("dpm2-ancestral", {"s_noise": -1.0}, "s_noise=-1.0"),
        ("dpm++2s-ancestral", {"s_noise": math.inf}, "s_noise=inf"),
        ("dpm2-ancestral", {"invert": True}, "eta=1.0: an inversion"),
        ("cps", {"eta": -0.1}, "eta=-0.1"),
        ("cps", {"invert": True}, "eta=0.7: an inversion"),
        ("ddpm", {"variance": "learned_range"}, "variance='learned_range': .*not supported"),
        ("ddpm", {"variance": "medium"}, "variance='medium': choose one of 'small', 'large'"),
        ("ddpm", {"invert": True}, "invert=True"),
        ("euler-maruyama", {"eta": -1.0}, "eta=-1.0: need a number of at least 0"),
        ("euler-maruyama", {"diffusion": "ddpm"}, "diffusion='ddpm': choose one of 'sde'"),
        ("euler-maruyama", {"invert": True}, "eta=1.0: an inversion"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(name, VP, nfe=4, **options)
