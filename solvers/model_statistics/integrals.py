r"""The integrals of DPM-Solver-v3 over the steps of a grid.

With L = int l and S = int s from the start of a step, the step to its end (h later) needs

    L(h),    S(h),    bias = beta(h)    with    beta(u) = int_0^u e^-S b,
    moments_i = int_0^h e^(L - L(h) + S) u^i / i! du,
    response  = int_0^h e^(L - L(h) + S) beta du.

Three ways to find them, each from its own picture of l, s, b:

* `closed`: l = 1, s = b = 0; phi-functions, no grid.
* `trapezoids`: nodes on the statistics' own grid, trapezoids on it: as published. Their error, of
  order 2 in the spacing of the statistics, does not fall with the step.
* `quadratures`: nodes anywhere, l, s, b the cubic splines through the statistics. On a piece of a
  spline the integrals solve differential equations with smooth right sides, which Gauss collocation
  with three points integrates to 1e-12 or better (order 6 in pieces of at most 0.1).

Statistics of an event shape are worked through in blocks of coordinates, so that the memory in use
is that of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..phi import phi
from ..plan import Coefficient
from .ems import EMS

POINTS = 3
LONGEST_PIECE = 0.1
BLOCK = 4096


class Span(NamedTuple):
    """The integrals over one step, see the module's text."""

    L: Coefficient
    S: Coefficient
    bias: Coefficient
    response: Coefficient
    moments: tuple[Coefficient, ...]


class Integrals(NamedTuple):
    """l at every node of a grid and the `Span` of every step between them."""

    l: Sequence[Coefficient]
    spans: Sequence[Span]


def closed(lams: Sequence[float], count: int) -> Integrals:
    """The integrals of the degenerate statistics, with ``count`` moments, in plain numbers."""
    spans = []
    for start, end in zip(lams, lams[1:], strict=False):
        h = end - start
        moments = tuple(h ** (i + 1) * phi(i + 1, -h) for i in range(count))
        spans.append(Span(h, 0.0, 0.0, 0.0, moments))
    return Integrals([1.0] * len(lams), spans)


def trapezoids(ems: EMS, indices: Sequence[int], count: int) -> Integrals:
    """The integrals over steps between nodes ``indices`` of the statistics' grid."""

    def table(l: Tensor, s: Tensor, b: Tensor) -> Tensor:
        rows = [l[list(indices)]]
        for i, j in zip(indices, indices[1:], strict=False):
            part = slice(i, j + 1)
            u = ems.lam[part] - ems.lam[i]
            L, S = (_cumulative(value[part], u) for value in (l, s))
            weights = _trapezoid_weights(u)
            beta = _cumulative(torch.exp(-S) * b[part], u)
            growth = weights[:, None] * torch.exp(L - L[-1] + S)
            rows.append(_rows(L[-1], S[-1], beta[-1], growth, beta, u, count))
        return torch.cat(rows)

    return _over_blocks(ems, table, len(indices), count)


def quadratures(ems: EMS, lams: Sequence[float], count: int) -> Integrals:
    """The integrals over steps between ``lams``, which lie on the statistics' range."""
    from scipy.interpolate import make_interp_spline

    grid = ems.lam.numpy()
    inside = np.clip(lams, grid[0], grid[-1])
    degree = min(3, ems.intervals)
    c, weights, inner = (torch.from_numpy(entry) for entry in _collocation(POINTS))

    def table(*values: Tensor) -> Tensor:
        splines = [make_interp_spline(grid, value.numpy(), k=degree) for value in values]

        def at(lam: np.ndarray) -> list[Tensor]:
            return [torch.from_numpy(spline(lam)) for spline in splines]

        rows = [at(inside)[0]]
        for start, end in zip(inside, inside[1:], strict=False):
            edges = _pieces(grid, start, end)
            widths = torch.from_numpy(np.diff(edges))[:, None, None]  # (pieces, 1, 1)
            u = torch.from_numpy(edges[:-1, None] - start) + widths[..., 0] * c
            l, s, b = (v.unflatten(0, u.shape) for v in at(start + u.flatten().numpy()))

            def integral(values: Tensor, widths: Tensor = widths) -> tuple[Tensor, Tensor]:
                """From the start of the step to its end, and to every point."""
                whole = widths[:, 0] * torch.einsum("j,pjd->pd", weights, values)
                before = torch.cumsum(whole, 0) - whole
                return whole.sum(0), before[:, None] + widths * (inner @ values)

            L_end, L = integral(l)
            S_end, S = integral(s)
            bias, beta = integral(torch.exp(-S) * b)
            growth = widths * weights[:, None] * torch.exp(L - L_end + S)
            growth, beta = growth.flatten(0, 1), beta.flatten(0, 1)
            rows.append(_rows(L_end, S_end, bias, growth, beta, u.flatten(), count))
        return torch.cat(rows)

    return _over_blocks(ems, table, len(lams), count)


def _rows(
    L: Tensor, S: Tensor, bias: Tensor, growth: Tensor, beta: Tensor, u: Tensor, count: int
) -> Tensor:
    """A span as (4 + count, D); ``growth`` (points, D) holds the weights of the quadrature."""
    powers = torch.stack([u**i / math.factorial(i) for i in range(count)])
    response = (growth * beta).sum(0)
    return torch.cat([torch.stack([L, S, bias, response]), powers @ growth])


def _over_blocks(ems: EMS, table: Callable[..., Tensor], nodes: int, count: int) -> Integrals:
    """The rows of ``table`` for all coordinates, as `Integrals` of the event shape."""
    columns = [value.reshape(len(ems.lam), -1) for value in (ems.l, ems.s, ems.b)]
    blocks = zip(*(column.split(BLOCK, dim=1) for column in columns), strict=True)
    rows = torch.cat([table(*block) for block in blocks], dim=1).unflatten(1, ems.event or (1,))
    entries: list[Coefficient] = [row if ems.event else float(row) for row in rows]
    spans = []
    for k in range(nodes, len(entries), 4 + count):
        L, S, bias, response, *moments = entries[k : k + 4 + count]
        spans.append(Span(L, S, bias, response, tuple(moments)))
    return Integrals(entries[:nodes], spans)


def _cumulative(values: Tensor, u: Tensor) -> Tensor:
    """Cumulative trapezoids along the first axis, from 0."""
    pieces = (values[1:] + values[:-1]) * (0.5 * u.diff())[:, None]
    return torch.cat([torch.zeros_like(values[:1]), torch.cumsum(pieces, 0)])


def _trapezoid_weights(u: Tensor) -> Tensor:
    half = 0.5 * u.diff()
    weights = torch.zeros_like(u)
    weights[:-1] += half
    weights[1:] += half
    return weights


def _collocation(points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss points c and weights on [0, 1], and A: the integrals from 0 to each c."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    c = (nodes + 1) / 2
    powers = np.arange(points)
    A = (c[:, None] ** (powers + 1) / (powers + 1)) @ np.linalg.inv(c[:, None] ** powers)
    return c, weights / 2, A


def _pieces(grid: np.ndarray, start: float, end: float) -> np.ndarray:
    """Edges between which a spline on ``grid`` is one polynomial, at most LONGEST_PIECE apart."""
    edges = np.concatenate([[start], grid[(grid > start) & (grid < end)], [end]])
    parts = max(1, math.ceil((grid[1] - grid[0]) / LONGEST_PIECE))
    fractions = np.arange(parts) / parts
    return np.append((edges[:-1, None] + np.diff(edges)[:, None] * fractions).ravel(), end)
