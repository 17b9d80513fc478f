r"""phi-functions of exponential integrators, float64, accurate at 0 and finite at -infinity.

    phi_1(z) = (e^z - 1) / z,      phi_{k+1}(z) = (phi_k(z) - 1/k!) / z,      phi_k(0) = 1/k!

They are the weights of a polynomial under an exponential (Hochbruck and Ostermann 2010,
eq. 2.11). Solvers need z phi_k(z), which stays finite at z = -infinity (a step to sigma = 0).
"""

from __future__ import annotations

import math

from . import scalar

_SERIES_TERMS = 32


def phi(k: int, z: float) -> float:
    """phi_k(z) for k >= 1; phi_k(-inf) = 0."""
    if z == -math.inf:
        return 0.0
    if abs(z) < max(1.0, k / 2):
        # The recurrence loses digits like eps k! / z^k; the Taylor series loses none.
        term = 1.0 / math.factorial(k)
        total = term
        for n in range(1, _SERIES_TERMS):
            term = term * (z / (n + k))
            total = total + term
        return total
    value = scalar.expm1(z) / z
    for j in range(1, k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


def z_phi(k: int, z: float) -> float:
    """z phi_k(z): expm1(z) for k = 1; -1/(k-1)! in the limit z = -inf."""
    if z == -math.inf:
        return -1.0 / math.factorial(k - 1)
    if k == 1:
        return scalar.expm1(z)
    return z * phi(k, z)
