"""Noise schedules against independent formulas, and their inverses against themselves."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from cases import BETAS, RANGES, SCHEDULES, zero_terminal
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.solvers import DiscreteVP, FlowMatching, VarianceExploding, VPCosine, VPLinear

getcontext().prec = 40
names = st.sampled_from(sorted(SCHEDULES))
everywhere = pytest.mark.parametrize("name", SCHEDULES)


def inside(name: str, share: float) -> float:
    """A time at ``share`` of the schedule's range, both ends included."""
    schedule = SCHEDULES[name]
    return schedule.t_end + share * (schedule.t_start - schedule.t_end)


# the inverse


@settings(max_examples=300, deadline=None)
@given(name=names, share=st.floats(0, 1))
def test_time_inverts_lam_over_the_whole_range(name, share):
    schedule, t = SCHEDULES[name], inside(name, share)
    assert abs(schedule.time(schedule.lam(t)) - t) <= 1e-12 * max(1.0, t)


@settings(max_examples=200, deadline=None)
@given(name=names, t=st.floats(1e-12, 1e-3))
def test_time_inverts_lam_close_to_the_data(name, t):
    schedule = SCHEDULES[name]
    assert schedule.time(schedule.lam(t)) == pytest.approx(t, rel=1e-12, abs=0)


@settings(max_examples=200, deadline=None)
@given(name=names, lam=st.floats(-4.5, 4.5))
def test_lam_inverts_time(name, lam):
    schedule = SCHEDULES[name]
    assert abs(schedule.lam(schedule.time(lam)) - lam) <= 1e-11


@pytest.mark.parametrize(
    ("schedule", "t"), [(FlowMatching(), 1.0), (VPCosine(), 1.0), (zero_terminal(), 1.0)]
)
def test_alpha_is_zero_at_pure_noise(schedule, t):
    assert schedule.alpha(t) == 0
    assert schedule.sigma(t) == 1
    assert schedule.lam(t) == -math.inf
    assert schedule.time(-math.inf) == pytest.approx(t, abs=1e-15)


@everywhere
def test_sigma_is_zero_at_the_data(name):
    schedule = SCHEDULES[name]
    assert schedule.sigma(0.0) == 0
    assert schedule.alpha(0.0) == 1
    assert schedule.lam(0.0) == math.inf
    assert schedule.time(math.inf) == 0


# alpha and sigma


def decimal_vp_linear(t: float) -> tuple[float, float]:
    u = Decimal(t)
    log_alpha = -u * u * (Decimal(20) - Decimal(0.1)) / 4 - u * Decimal(0.1) / 2
    return float(log_alpha.exp()), float((1 - (2 * log_alpha).exp()).sqrt())


def decimal_cos(x: Decimal) -> Decimal:
    term = total = Decimal(1)
    for n in range(1, 40):
        term *= -x * x / ((2 * n - 1) * (2 * n))
        total += term
    return total


def decimal_vp_cosine(t: float) -> tuple[float, float]:
    half_pi, s = Decimal("3.14159265358979323846264338327950288419716") / 2, Decimal(0.008)
    alpha = decimal_cos((Decimal(t) + s) / (1 + s) * half_pi) / decimal_cos(s / (1 + s) * half_pi)
    return float(alpha), float((1 - alpha * alpha).sqrt())


def decimal_vp_discrete(index: int) -> tuple[float, float]:
    product = Decimal(1)
    for beta in BETAS[: index + 1].tolist():
        product *= 1 - Decimal(beta)
    return float(product.sqrt()), float((1 - product).sqrt())


@settings(max_examples=200, deadline=None)
@given(t=st.floats(1e-9, 1.0))
def test_vp_linear_agrees_with_40_digits(t):
    alpha, sigma = decimal_vp_linear(t)
    assert VPLinear().alpha(t) == pytest.approx(alpha, rel=1e-13, abs=0)
    assert VPLinear().sigma(t) == pytest.approx(sigma, rel=1e-13, abs=0)


@settings(max_examples=200, deadline=None)
@given(t=st.floats(1e-9, 1 - 1e-6))
def test_vp_cosine_agrees_with_40_digits(t):
    alpha, sigma = decimal_vp_cosine(t)
    assert VPCosine().alpha(t) == pytest.approx(alpha, rel=1e-13, abs=1e-16)
    assert VPCosine().sigma(t) == pytest.approx(sigma, rel=1e-13, abs=0)


@pytest.mark.parametrize("index", [0, 1, 10, 499, 998, 999])
def test_vp_discrete_agrees_with_40_digits_at_its_indices(index):
    schedule, t = SCHEDULES["vp_discrete"], (index + 1) / 1000
    alpha, sigma = decimal_vp_discrete(index)
    assert schedule.alpha(t) == pytest.approx(alpha, rel=1e-13, abs=0)
    assert schedule.sigma(t) == pytest.approx(sigma, rel=1e-12, abs=0)
    assert schedule.network_time(t) == pytest.approx(index, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(index=st.integers(0, 998), share=st.floats(0, 1))
def test_vp_discrete_is_log_linear_between_indices(index, share):
    schedule = SCHEDULES["vp_discrete"]
    log_alphas = 0.5 * np.cumsum(np.log1p(-BETAS.numpy()))
    between = (1 - share) * log_alphas[index] + share * log_alphas[index + 1]
    alpha = schedule.alpha((index + 1 + share) / 1000)
    assert math.log(alpha) == pytest.approx(between, rel=1e-11, abs=1e-15)


def test_zero_terminal_alpha_is_linear_on_the_last_interval():
    schedule = SCHEDULES["vp_zero_terminal"]
    times = torch.linspace(0.99, 1.0, 11, dtype=torch.float64)
    alphas = schedule.alpha(times)
    line = torch.linspace(float(alphas[0]), 0.0, 11, dtype=torch.float64)
    torch.testing.assert_close(alphas, line, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(t=st.floats(1e-6, 1 - 1e-6))
def test_flow_and_exploding_variance(t):
    assert FlowMatching().alpha(t) == pytest.approx(1 - t, rel=1e-14)
    assert FlowMatching().sigma(t) == pytest.approx(t, rel=1e-14)
    assert VarianceExploding().alpha(80 * t) == 1
    assert VarianceExploding().sigma(80 * t) == pytest.approx(80 * t, rel=1e-14)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from([n for n in SCHEDULES if n.startswith("vp")]), share=st.floats(0, 1))
def test_variance_preserving_means_a_unit_circle(name, share):
    schedule, t = SCHEDULES[name], inside(name, share)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-14)


# derivatives


@settings(max_examples=200, deadline=None)
@given(name=names, share=st.floats(0.01, 0.985))
def test_derivatives_agree_with_central_differences(name, share):
    schedule = SCHEDULES[name]
    t = inside(name, share)
    step = 1e-5 * t
    if isinstance(schedule, DiscreteVP):
        # Stay inside one interval: the derivative jumps at the indices.
        index = min(math.floor(t * schedule.steps - 1), schedule.steps - 3)
        t = (index + 1.5) / schedule.steps
        step = 0.01 / schedule.steps
    times = torch.tensor([t - step, t + step], dtype=torch.float64)
    for function, derivative in (
        (lambda u: torch.log(schedule.alpha(u)), schedule.dlog_alpha),
        (schedule.lam, schedule.dlam),
    ):
        low, high = function(times).tolist()
        assert derivative(t) == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(t=st.floats(1e-4, 0.99))
def test_derivatives_agree_with_a_complex_step(t):
    """d/dt Re f = Im f(t + ih) / h has no cancellation: exact to rounding."""
    h = 1e-30
    z = t + 1j * h
    log_alpha = -(z**2) * 19.9 / 4 - 0.05 * z
    sigma_2 = 1 - np.exp(2 * log_alpha)
    slope = (log_alpha - 0.5 * np.log(sigma_2)).imag / h
    assert VPLinear().dlam(t) == pytest.approx(slope, rel=1e-11)
    assert VPLinear().dlog_alpha(t) == pytest.approx(log_alpha.imag / h, rel=1e-14)

    angle = (z + 0.008) / 1.008 * math.pi / 2
    alpha = np.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)
    slope = (np.log(alpha) - 0.5 * np.log(1 - alpha**2)).imag / h
    assert VPCosine().dlog_alpha(t) == pytest.approx(np.log(alpha).imag / h, rel=1e-12)
    assert VPCosine().dlam(t) == pytest.approx(slope, rel=1e-9)

    slope = (np.log(1 - z) - np.log(z)).imag / h
    assert FlowMatching().dlam(t) == pytest.approx(slope, rel=1e-13)
    assert VarianceExploding().dlam(t) == pytest.approx(-1 / t, rel=1e-14)


@everywhere
def test_lambda_falls_with_time(name):
    schedule = SCHEDULES[name]
    times = torch.linspace(schedule.t_end, schedule.t_start, 2001, dtype=torch.float64)
    assert (schedule.lam(times).diff() < 0).all()


# forms of input


@everywhere
def test_floats_and_tensors_agree(name):
    schedule = SCHEDULES[name]
    times = torch.linspace(schedule.t_end, schedule.t_start, 7, dtype=torch.float64)[1:-1]
    for method in (
        schedule.alpha,
        schedule.sigma,
        schedule.lam,
        schedule.dlog_alpha,
        schedule.dlam,
        schedule.network_time,
    ):
        batched = method(times.reshape(1, -1))
        single = [method(t) for t in times.tolist()]
        assert all(type(value) is float for value in single)
        assert batched.dtype == torch.float64 and batched.shape == (1, 5)
        np.testing.assert_array_equal(batched[0].numpy(), single)
    lams = schedule.lam(times)
    assert schedule.time(lams).tolist() == [schedule.time(v) for v in lams.tolist()]
    assert schedule.alpha(times.float()).dtype == torch.float64


def test_betas_and_their_products_give_one_schedule():
    products = torch.cumprod(1 - BETAS, 0)
    by_betas, by_products = DiscreteVP.from_betas(BETAS.tolist()), DiscreteVP(products.tolist())
    times = torch.linspace(1e-3, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(by_betas.lam(times), by_products.lam(times), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_betas.alphas_cumprod, products, rtol=1e-12, atol=0)
    assert by_betas.steps == 1000


def test_betas_that_end_at_one_have_zero_terminal_snr():
    schedule = DiscreteVP.from_betas([0.1, 0.2, 1.0])
    assert schedule.alpha(1.0) == 0
    assert schedule.alpha(2 / 3) == pytest.approx(math.sqrt(0.9 * 0.8), rel=1e-15)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: VPLinear(beta_min=0.0), "beta_min"),
        (lambda: VPLinear(beta_min=3.0, beta_max=2.0), "beta_max"),
        (lambda: VPLinear(beta_max=math.nan), "beta_max"),
        (lambda: VPCosine(s=0.0), "s="),
        (lambda: VarianceExploding(sigma_min=0.0), "sigma_min"),
        (lambda: VarianceExploding(1.0, math.inf), "sigma_max"),
        (lambda: DiscreteVP([0.9]), "alphas_cumprod"),
        (lambda: DiscreteVP([[0.9, 0.5]]), "alphas_cumprod"),
        (lambda: DiscreteVP([0.5, 0.9]), "alphas_cumprod"),
        (lambda: DiscreteVP([0.9, 0.9]), "alphas_cumprod"),
        (lambda: DiscreteVP([1.0, 0.5]), "alphas_cumprod"),
        (lambda: DiscreteVP([0.5, math.nan]), "alphas_cumprod"),
        (lambda: DiscreteVP.from_betas([0.1, 1.2]), "betas"),
        (lambda: DiscreteVP.from_betas([[0.1, 0.2]]), "betas"),
        (lambda: DiscreteVP.from_betas([0.1, math.nan]), "betas"),
    ],
)
def test_impossible_parameters_are_refused_by_name(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_default_ends_are_sampling_ranges():
    for range_ in RANGES.values():
        schedule = range_.schedule
        assert 0 <= schedule.t_end < schedule.t_start <= schedule.t_max
