"""phi-functions against exact rational arithmetic, their integrals and their recurrence."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.solvers.phi import phi, z_phi

ORDERS = range(1, 11)


def series(k: int, z: float) -> float:
    """sum_n z^n / (n + k)!, in exact rational arithmetic."""
    exact = Fraction(z)
    term = total = Fraction(1, math.factorial(k))
    for n in range(1, 40 + 6 * math.ceil(abs(z))):
        term *= exact / (n + k)
        total += term
    return float(total)


@pytest.mark.parametrize("k", ORDERS)
@pytest.mark.parametrize("magnitude", [1e-300, 1e-16, 1e-8, 1e-3, 0.5, 0.999, 1.001, 1.5, 3, 6, 12])
def test_phi_agrees_with_its_exact_series(k, magnitude):
    for z in (magnitude, -magnitude):
        assert phi(k, z) == pytest.approx(series(k, z), rel=5e-15, abs=0)


@settings(max_examples=200, deadline=None)
@given(k=st.integers(1, 6), z=st.floats(-40, 10))
def test_phi_agrees_with_gauss_legendre(k, z):
    """phi_k(z) is the integral over [0, 1] of e^((1 - u) z) u^(k - 1) / (k - 1)!."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    u = 0.5 * (nodes + 1)
    integrand = np.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1)
    assert phi(k, z) == pytest.approx(0.5 * weights @ integrand, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(k=st.integers(1, 9), z=st.floats(-50, 20))
def test_phi_obeys_its_recurrence(k, z):
    terms = (z * phi(k + 1, z), -phi(k, z), 1 / math.factorial(k))
    assert abs(sum(terms)) <= 1e-14 * max(map(abs, terms))


@pytest.mark.parametrize("k", ORDERS)
def test_phi_at_zero_and_at_minus_infinity(k):
    assert phi(k, 0.0) == 1 / math.factorial(k)
    assert phi(k, -math.inf) == 0
    assert z_phi(k, 0.0) == 0
    assert z_phi(k, -math.inf) == -1 / math.factorial(k - 1)
    assert z_phi(k, -1e9) == pytest.approx(z_phi(k, -math.inf), rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 6), z=st.floats(-12, 10))
def test_z_phi_is_z_times_phi(k, z):
    assert z_phi(k, z) == pytest.approx(z * series(k, z), rel=1e-13, abs=1e-300)
