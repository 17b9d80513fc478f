"""Samplers that go back to more noise (Restart, churn), and Langevin correctors."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import RANGES, SCHEDULES, normal
from torch import Tensor

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.solvers import BrownianPath, Denoiser, Plan, make_plan, sample
from logsnr.solvers.identities import marginal_deviations

VE, FLOW, VP = SCHEDULES["edm"], SCHEDULES["flow"], SCHEDULES["vp_linear"]
X = normal(2, 4, seed=1)
WIDE = ["vp_linear", "vp_zero_terminal_to_data", "edm", "flow_singular"]
RESTARTS = [(1.0, 5.0, 2, 2), (0.06, 0.3, 3, 1)]


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.flip(1)) + 0.3 * t.reshape(-1, 1)


def denoised(x: Tensor, sigma: float) -> Tensor:
    return network(x, torch.full((2,), sigma, dtype=torch.float64))


def karras(high: float, low: float, count: int) -> list[float]:
    ends = high ** (1 / 7), low ** (1 / 7)
    return [(ends[0] + i / (count - 1) * (ends[1] - ends[0])) ** 7 for i in range(count)]


def heun(x: Tensor, sigmas: list[float]) -> Tensor:
    for s, t in pairwise(sigmas):
        d = (x - denoised(x, s)) / s
        euler = x + (t - s) * d
        x = euler if t == 0 else x + (t - s) * (d + (euler - denoised(euler, t)) / t) / 2
    return x


def test_restart_is_the_published_loop():
    """Xu et al. 2023, algorithm 1, on the grid of EDM; [N, K, t_min, t_max] has N - 1 steps."""
    sigmas = [*karras(80.0, 0.002, 9), 0.0]
    z = iter(noise := [normal(2, 4, seed=10 + i) for i in range(3)])
    x, begin = 80 * X, 0
    for low, high, steps, times in RESTARTS:
        place = min(range(10), key=lambda i, low=low: abs(sigmas[i] - low))
        x = heun(x, sigmas[begin : place + 1])
        for _ in range(times):
            x = x + math.sqrt(high**2 - sigmas[place] ** 2) * next(z)
            x = heun(x, karras(high, sigmas[place], steps + 1))
        begin = place
    x = heun(x, sigmas[begin:])
    plan = make_plan("restart", VE, sigmas=sigmas, restarts=RESTARTS)
    assert plan.nfe == 2 * 9 - 1 + 2 * (2 * 2 + 3)
    result = sample(Denoiser(network, VE, "sample"), 80 * X, plan, noise=noise)
    torch.testing.assert_close(result, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("range_name", WIDE)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("restart", {}),
        ("restart", {"restarts": RESTARTS, "base": "unipc"}),
        ("restart", {"restarts": [(0.2, 2.0, 3, 2)], "base": "DPM++ 2M"}),
        ("heun", {"s_churn": 8.0}),
        ("langevin", {}),
        ("langevin", {"corrections": 3, "snr": 0.5}),
    ],
)
def test_every_state_has_the_deviation_of_its_node(name, options, range_name):
    range_ = RANGES[range_name]
    for nfe in (30, 31):
        plan = make_plan(name, range_.schedule, nfe=nfe, **range_.ends, **options)
        assert plan.stochastic and plan.consistent and plan.nfe == nfe
        exact = [row.node.sigma for row in plan.rows]
        assert marginal_deviations(plan.rows) == pytest.approx(exact, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("base", ["heun", "unipc"])
def test_without_restarts_it_is_its_base(base):
    assert make_plan("restart", VP, nfe=9, base=base, restarts=[]).rows == (
        make_plan(base, VP, nfe=9).rows
    )
    few = make_plan("restart", VP, nfe=3)  # not enough for one
    assert few.rows == make_plan("heun", VP, nfe=3).rows


def test_restarts_bring_the_distribution_nearer():
    """On Gaussian data, from a start of half the deviation: the jumps forget it."""
    schedule, data = VE, Gaussian(torch.zeros(1), torch.full((1,), 0.5))
    denoise = exact_denoiser(data, schedule)

    def deviation(plan: Plan) -> float:
        # The plan is linear: one sample a source of noise, and the length of what comes out.
        count = sum(len(row.noise) for row in plan.rows)
        basis = torch.eye(1 + count, dtype=torch.float64)
        noise = [basis[i + 1][:, None] for i in range(count)]
        return float(sample(denoise, 40 * basis[0][:, None], plan, noise=noise or None).norm())

    chosen = {"times": [*karras(80.0, 0.02, 19)]}
    plain = deviation(make_plan("heun", schedule, **chosen))
    once, often = (
        deviation(make_plan("restart", schedule, restarts=[(0.02, 8.0, 20, k)], **chosen))
        for k in (1, 2)
    )
    exact = math.hypot(0.5, 0.02)
    assert abs(plain / exact - 0.5) < 0.05  # what is wrong at the start is wrong at the end
    assert max(abs(once / exact - 1), abs(often / exact - 1)) < 0.02


# churn


@pytest.mark.parametrize("where", ["flow_singular", "vp_linear_to_data", "edm_to_data"])
def test_the_noise_of_churn_is_on_one_finite_path(where):
    """Steps before which it is raised by (s_churn / steps), so that more of them tend to an SDE."""
    range_ = RANGES[where]
    denoise = exact_denoiser(
        Gaussian(torch.zeros(4), torch.full((4,), 0.5)), range_.schedule, "v_prediction"
    )
    low, high = 0.0, 100.0
    results = []
    for steps in (10, 40, 160):
        rhos = karras(50.0, 0.01, steps + 1)
        plan = make_plan(
            "euler", range_.schedule, lams=[-math.log(rho) for rho in rhos], s_churn=4.0
        )
        terms = [term for row in plan.rows for term in row.noise]
        assert len(terms) == steps
        for term in terms:
            assert math.isfinite(term.start) and math.isfinite(term.end)
        path = BrownianPath(3, low, high, clock="sigma")
        x = range_.schedule.sigma(plan.rows[0].node.t) * X
        results.append(sample(denoise, x, plan, noise=path))
    coarse, fine = (float((r - results[-1]).norm()) for r in results[:2])
    assert fine < coarse / 2


def test_churn_runs_from_pure_noise_to_data_on_a_path():
    plan = make_plan("heun", FLOW, nfe=19, s_churn=10.0)
    ends = [end for row in plan.rows for term in row.noise for end in (term.start, term.end)]
    assert plan.stochastic and all(map(math.isfinite, ends)) and min(ends) == 0
    denoise = exact_denoiser(Gaussian(torch.zeros(4), torch.ones(4)), FLOW, "flow_prediction")
    path = BrownianPath(3, 0.0, max(ends) + 1, clock="sigma")
    assert sample(denoise, X, plan, noise=path).isfinite().all()


# Langevin


def test_the_loop_of_score_sde_with_the_expected_step():
    """Song et al. 2021, algorithms 2 and 4, for VE models: corrector, then reverse diffusion."""
    sigmas, snr = [20.0, 7.0, 2.0, 0.5, 0.1], 0.16
    z = iter(noise := [normal(2, 4, seed=10 + i) for i in range(8)])

    def score(x: Tensor, sigma: float) -> Tensor:
        return (denoised(x, sigma) - x) / sigma**2

    x = 20 * X
    for s, t in pairwise(sigmas):
        step = 2 * (snr * s) ** 2
        x = x + step * score(x, s) + math.sqrt(2 * step) * next(z)
        x = x + (s**2 - t**2) * score(x, s) + math.sqrt(s**2 - t**2) * next(z)
    options = {"snr": snr, "predictor": "reverse-diffusion", "correction": "published"}
    plan = make_plan("langevin", VE, sigmas=sigmas, **options)
    result = sample(Denoiser(network, VE, "sample"), 20 * X, plan, noise=noise)
    torch.testing.assert_close(result, x, rtol=1e-11, atol=1e-11)
    assert not plan.consistent


def test_a_published_correction_adds_what_the_text_says():
    plan = make_plan("langevin", VE, sigmas=[20.0, 7.0, 2.0], snr=0.3, correction="published")
    k = next(k for k, row in enumerate(plan.rows) if k and row.node == plan.rows[0].node)
    excess = marginal_deviations(plan.rows)[k] ** 2 / 20.0**2 - 1
    assert excess == pytest.approx(4 * 0.3**4, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("restart", {"base": "euler-ancestral", "restarts": [(0.1, 2.0, 1, 1)]}, "base='euler-anc"),
        ("restart", {"base": "restart"}, "base='restart'"),
        ("restart", {"base": "nonesuch"}, "base='nonesuch': choose one of"),
        ("restart", {"restarts": [(2.0, 0.1, 1, 1)]}, r"restarts=\[\(2.0, 0.1, 1, 1\)\]: need"),
        ("restart", {"restarts": [(0.1, 2.0, 0, 1)]}, "restarts=.*whole numbers"),
        ("restart", {"restarts": [(0.1, 2.0, 1)]}, "restarts=.*need a list of"),
        ("restart", {"restarts": 3}, "restarts=3: need a list of"),
        ("restart", {"restarts": [(0.1, 1e6, 1, 1)]}, "restarts: high=1e.06"),
        ("restart", {"restarts": [(0.1, 2.0, 9, 9)]}, "nfe=20: the restarts alone take"),
        ("restart", {"restarts": [(0.1, 2.0, 1, 1)], "invert": True}, "restarts=.*an inversion"),
        ("restart", {"s_noise": -1.0}, "s_noise=-1.0"),
        ("langevin", {"snr": 0.8}, "snr=0.8: need a number in"),
        ("langevin", {"snr": math.nan}, "snr=nan"),
        ("langevin", {"corrections": -1}, "corrections=-1"),
        ("langevin", {"predictor": "euler"}, "predictor='euler': choose one of 'ancestral'"),
        ("langevin", {"correction": "none"}, "correction='none': choose one of 'exact'"),
        ("langevin", {"invert": True}, "invert=True"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(name, VP, nfe=20, **options)
