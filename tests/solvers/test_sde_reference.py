"""Reference solutions of the reverse SDE against its closed form on Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from cases import MIXTURE, normal

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser, point_mass
from logsnr.solvers import (
    FlowMatching,
    Noise,
    VarianceExploding,
    VPLinear,
    make_plan,
    reference_solution,
    sample,
)
from logsnr.solvers.brownian import BrownianPath
from logsnr.solvers.noise_terms import CLOCKS

PROBLEM = Gaussian(torch.tensor([0.4, -1.0]), torch.tensor([0.3, 1.6]))
LAMS = (-1.0, 1.0)


def path_over(clock: str, lams: tuple[float, float] = LAMS, **options) -> BrownianPath:
    low, high = sorted(CLOCKS[clock](lam) for lam in lams)
    options = {"tolerance": 1e-4, "clock": clock, **options}
    return BrownianPath(5, low - options["tolerance"], high + options["tolerance"], **options)


def exact(schedule, x, path, eta, pieces=64):
    r"""The closed form, its integral over the path by increments and Levy areas.

    The deviation n = (x - alpha mu) / sqrt(v), v = alpha^2 s^2 + sigma^2, obeys, with
    w = sigma^2 / v = 1 / (1 + s^2 e^(2 lambda)),

        dn = -eta^2 w n dlambda + eta sqrt(2 w) dW,

    and w has the integral lambda - log(1 + s^2 e^(2 lambda)) / 2.
    """
    mean, scale = PROBLEM.mean, PROBLEM.scale

    def decay(lam):
        return eta**2 * (lam - torch.log1p(scale**2 * math.exp(2 * lam)) / 2)

    def deviation(lam):
        t = schedule.time(lam)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * mean, torch.sqrt((alpha * scale) ** 2 + sigma**2)

    def kernel(lam):
        step = 1e-6
        clock = CLOCKS[path.clock]
        rate = abs(clock(lam + step) - clock(lam - step)) / (2 * step)
        size = eta * math.sqrt(2 / rate) / torch.sqrt(1 + scale**2 * math.exp(2 * lam))
        return size * torch.exp(decay(lam) - decay(LAMS[1]))

    centre, spread = deviation(LAMS[0])
    n = (x - centre) / spread * torch.exp(decay(LAMS[0]) - decay(LAMS[1]))
    lams = torch.linspace(*LAMS, pieces + 1, dtype=torch.float64).tolist()
    for low, high in zip(lams, lams[1:], strict=False):
        start, end = (CLOCKS[path.clock](lam) for lam in (low, high))
        h = abs(end - start)
        term = Noise(1.0, start, end, path.clock)
        w = path(term, x) * math.sqrt(h)
        area = path(term._replace(moment=1), x) * math.sqrt(h / 12)
        # By parts, with a kernel that is linear over the piece.
        n = n + kernel(high) * w - (kernel(high) - kernel(low)) * (area + w / 2)
    centre, spread = deviation(LAMS[1])
    return centre + spread * n


@pytest.mark.parametrize(
    ("clock", "eta", "schedule"),
    [
        ("snr", 1.0, VPLinear()),
        ("lambda", 0.5, FlowMatching()),
        ("sigma2", 1.0, VarianceExploding()),
        ("sigma", 0.8, VPLinear()),
    ],
)
def test_error_is_within_the_bar_and_the_bar_is_not_idle(clock, eta, schedule):
    path = path_over(clock)
    ends = dict(zip(("t_start", "t_end"), map(schedule.time, LAMS), strict=True))
    x = normal(1, 2)
    denoise = exact_denoiser(PROBLEM, schedule)
    solution, bar = reference_solution(denoise, x, schedule, noise=path, eta=eta, steps=32, **ends)
    error = float((solution - exact(schedule, x, path, eta)).square().mean().sqrt())
    assert error <= bar <= 0.02


def test_from_pure_noise_to_data_a_point_is_met_and_the_network_sees_its_path():
    """At alpha = 0 and sigma = 0; between, for one point: x alpha / sigma^2 = x0 u + W(u)."""
    schedule, point = FlowMatching(), torch.tensor([0.5, -1.5])
    path = BrownianPath(2, 0.0, 1e4, clock="snr", tolerance=1e-2)
    exact = exact_denoiser(point_mass(point), schedule, "flow_prediction")
    x_T = normal(1, 2)
    seen: dict[float, torch.Tensor] = {}

    def denoise(x, t):
        seen[t] = x
        return exact(x, t)

    solution, bar = reference_solution(denoise, x_T, schedule, noise=path, steps=8)
    torch.testing.assert_close(solution, point.double().expand(1, 2), rtol=0, atol=1e-12)
    assert bar == pytest.approx(1e-2, rel=1e-6)  # what the path leaves open: e^-lambda at its end
    assert torch.equal(seen.pop(1.0), x_T)
    last = min(seen)
    u = ((1 - last) / last) ** 2
    assert u == pytest.approx(1e4)
    walk = path(Noise(1.0, 0.0, 1e4, "snr"), x_T) * 100
    expected = (point * u + walk) * last**2 / (1 - last)
    torch.testing.assert_close(seen[last], expected, rtol=1e-6, atol=0)


def test_plans_converge_to_it_sample_by_sample():
    schedule = VPLinear()
    denoise = exact_denoiser(MIXTURE, schedule)
    path = path_over("snr", tolerance=1e-3)
    ends = dict(zip(("t_start", "t_end"), map(schedule.time, LAMS), strict=True))
    x = normal(2, MIXTURE.dimension)
    solution, bar = reference_solution(denoise, x, schedule, noise=path, steps=32, **ends)
    errors = []
    for nfe in (8, 16, 32):
        plan = make_plan("ddim", schedule, nfe=nfe, eta=1.0, spacing="logsnr", **ends)
        errors.append(sample(denoise, x, plan, noise=path) - solution)
    first, *_, last = (float(error.square().mean().sqrt()) for error in errors)
    assert bar < last / 4
    assert last < first / 2


def test_the_callers_generator_and_start_are_left_alone():
    schedule = VPLinear()
    ends = dict(zip(("t_start", "t_end"), map(schedule.time, LAMS), strict=True))
    x, state = normal(1, 2).float(), torch.get_rng_state()
    kept = x.clone()
    path = path_over("lambda", tolerance=1e-2)
    solution, _ = reference_solution(
        exact_denoiser(PROBLEM, schedule), x, schedule, noise=path, steps=2, **ends
    )
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state)
    assert solution.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 11}, "noise=11: need a BrownianPath"),
        ({"rtol": 1e-6}, "rtol=1e-06 was given with noise"),
        ({"method": "dopri5"}, "method='dopri5' was given with noise"),
        ({"eta": 0.0}, r"eta=0\.0: need a positive number"),
        ({"steps": 1}, "steps=1"),
        ({"t_start": 0.9}, r"noise covers lambda = -1\S* \.\. 1"),
        ({"t_start": 1.0, "schedule": FlowMatching()}, "t_start: alpha is 0 there"),
        ({"noise": None, "eta": 1.0}, "eta=1.0 was given with no noise"),
        ({"noise": None, "steps": 8}, "steps=8 was given with no noise"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    options = {"schedule": VPLinear(), "noise": path_over("lambda"), **options}
    schedule = options.pop("schedule")
    ends = dict(zip(("t_start", "t_end"), map(schedule.time, LAMS), strict=True))
    denoise = exact_denoiser(PROBLEM, schedule)
    with pytest.raises(ValueError, match=message):
        reference_solution(denoise, normal(2, 2), schedule, **{**ends, **options})
    assert denoise.network.times == []
