r"""Noise functions phi of the extended reverse-time SDE, and their integrals over a step.

In y = x / alpha and rho = sigma / alpha, every phi with phi(rho) / rho not falling gives a
reverse-time SDE with the marginals of the forward process (Cui et al. 2023, section 3 and
appendix A.8). A step from rho_s to rho_t < rho_s holds

    y_t = r y_s + int D(rho) d(phi_t / phi(rho)) + noise,      r = phi_t / phi_s,

of the data prediction D. With u = (rho - rho_s) / (rho_t - rho_s) and integration by parts,

    m_0 = 1 - r,     m_k = int u^k d(phi_t / phi) = 1 - k int_0^1 u^(k-1) (phi_t / phi) du.

phi is kept as its share g(rho) = phi(rho) / rho, which stays finite where phi does not.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import scalar
from ..names import as_spelled, unknown
from ..plan import Node
from ..scalar import Number
from .lagrange import noise_ratio, panels
from .pure_noise import PURE

Share = Callable[[Any], Any]
"""g on an `array` of values of rho."""

SHARES: dict[str, Share] = {
    "ode": lambda rho: rho**0,
    "sde": lambda rho: rho,
    "sde-1": lambda rho: scalar.exps(-1 / rho) + 10,
    "sde-2": lambda rho: rho**0.5,
    "sde-3": lambda rho: rho**1.5,
    "sde-4": lambda rho: rho**-0.1 * _log10(1 + 100 * rho**1.5),
    "sde-5": lambda rho: scalar.exps(rho**0.3) + 10,
}
"""The published ones under the names that the authors' code gives them, there numbered from 1."""
DEFAULT = "sde-5"

POINTS = {"published": 100, "comfyui": 200}
"""Terms of the left Riemann sum in rho, by which the authors' code and ComfyUI integrate."""
QUADRATURES = ("exact", *POINTS)

_LARGEST = 1 / PURE["data"]
"""rho from which on a state counts as pure noise."""
_ROUNDING = 1e-12


def share_of(noise_function: Any) -> Share:
    """g of a published function, by name or number, or of a user's own phi(rho).

    ValueError with the choices for anything else.
    """
    if callable(noise_function):
        return lambda rho: _pointwise(noise_function, rho) / rho
    names = list(SHARES)
    if isinstance(noise_function, int) and not isinstance(noise_function, bool):
        if not 1 <= noise_function <= len(names):
            raise ValueError(f"noise_function={noise_function!r}: need 1 to {len(names)}")
        return SHARES[names[noise_function - 1]]
    found = as_spelled(noise_function, names)
    if found is None:
        raise unknown("noise_function", noise_function, [*names, "a function phi(rho)"])
    return SHARES[found]


def kept(g: Share, start: Node, end: Node) -> Number:
    """The share of the noise at ``start`` that is kept at ``end``: r rho_s / rho_t = g_t / g_s.

    From pure noise it is that from the largest finite rho. Raises ValueError where g falls, and
    where it is not positive and finite.
    """
    pure = start.alpha * _LARGEST < start.sigma
    first = _LARGEST if pure else noise_ratio(start)
    later, earlier = scalar.entries(g(scalar.array([noise_ratio(end), first])))
    if not (0 < scalar.plain(later) < np.inf and 0 < scalar.plain(earlier) < np.inf):
        raise ValueError(
            f"noise_function is {later!r} rho at rho = {noise_ratio(end):g} and {earlier!r} rho at "
            f"rho = {first:g}: it has to be positive and finite"
        )
    if later > earlier * (1 + _ROUNDING) and not pure:
        raise ValueError(
            f"noise_function(rho) / rho rises from rho = {first:g} to {noise_ratio(end):g}, from "
            f"{earlier:g} to {later:g}: it may only fall there, or the step would need noise of a "
            "negative variance"
        )
    return later / earlier if later < earlier else 1.0


def moments(g: Share, start: Node, end: Node, count: int, quadrature: str) -> list[Number]:
    """m_1 .. m_count of the step, see the module's text."""
    first, last = noise_ratio(start), noise_ratio(end)
    if quadrature == "exact":
        # In lambda, in which it is smooth over many powers of ten of rho.
        lams, weights = panels(start.lam, end.lam)
        rho = scalar.exps(-lams)
        weights = weights * rho / (first - last)
    else:
        points = POINTS[quadrature]
        rho = last + (first - last) / points * scalar.alike(np.arange(points), first - last)
        weights = scalar.alike(np.full(points, 1 / points), rho)
    u = (rho - first) / (last - first)
    (at_end,) = scalar.entries(g(scalar.array([last])))
    weights = weights * (last / rho) * (at_end / g(rho))
    return [1 - k * (weights * u ** (k - 1)).sum() for k in range(1, count + 1)]


def _pointwise(function: Callable[[Tensor], Any], rho: Any) -> Any:
    """A user's function at every entry, which it gets as a 0-d tensor: so it may be of any kind."""
    values = rho if isinstance(rho, Tensor) else torch.from_numpy(np.asarray(rho))
    found = [_number(value, function(value)) for value in values.unbind()]
    if isinstance(rho, Tensor):
        return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in found])
    return np.array([float(value) for value in found])


def _number(rho: Tensor, found: Any) -> Any:
    if isinstance(found, Real) or (isinstance(found, Tensor) and found.numel() == 1):
        return found
    raise ValueError(f"noise_function is {found!r} at rho = {float(rho):g}: need a number")


def _log10(x: Any) -> Any:
    return torch.log10(x) if isinstance(x, Tensor) else np.log10(x)
