r"""Nodes by dynamic programming over a lattice of times, after GITS (Chen et al. 2024).

Along trajectories of a long run, which stand still, the error of one step between any two nodes of
the lattice costs no evaluation: with D the data prediction, a step of order 1 from i to j,

    e_ij = x_j - (a x_i + b D_i),

and one of order 2, which extrapolates from the node h before i as the solver does,

    e_hij = x_j - (a x_i + b (D_i + (D_i - D_h) / (2 r))),   r = (lambda_i - lambda_h) / h_lambda
    e_hij = x_j - (x_i + (t_j - t_i) (3 v_i - v_h) / 2)      on the straight path of flow matching,

or reuses v_i at the last step. The path of n steps whose errors, root mean squares averaged over
the starts, add up to least is found exactly. Errors add up although the network answers to each:
the sum is a guide and not a bound, and so is the order of step that tells it best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..checks import check_whole
from .trajectory import Trajectory

Array = NDArray[np.float64]


def dp_nodes(
    trajectory: Trajectory, n: int, *, order: int = 2, straight: bool = False
) -> list[int]:
    """The n + 1 nodes of the lattice, as indices, over which n steps leave least error.

    Parameters
    ----------
    trajectory : of a long run; its nodes are the lattice.
    n : steps, at most as many as the lattice has.
    order : of the steps whose errors are summed, 1 or 2.
    straight : steps in t, as methods of flow matching take them.

    Raises ValueError for n or ``order`` out of range.
    """
    check_whole("n", n, 1)
    count = len(trajectory.nodes) - 1
    if n > count:
        raise ValueError(f"n={n}: the lattice has {count} intervals")
    if order not in (1, 2):
        raise ValueError(f"order={order!r}: choose one of 1, 2")
    errors = _Errors(trajectory)
    if order == 1:
        return _path(errors.first(), None, n)
    return _path(errors.first(), errors.second(straight), n)


class _Errors:
    """Errors of steps as quadratic forms in the products of all states and predictions."""

    def __init__(self, trajectory: Trajectory):
        vectors = np.concatenate([trajectory.states.numpy(), trajectory.data.numpy()])
        by_start = vectors.transpose(1, 0, 2)
        self.products = by_start @ by_start.transpose(0, 2, 1) / vectors.shape[-1]
        self.count = len(trajectory.nodes) - 1
        self.t, self.alpha, self.sigma, self.lam = (
            np.array([values(node) for node in trajectory.nodes]) for values in _VALUES
        )

    def _rms(self, *terms: tuple[NDArray[np.intp], Array | float]) -> Array:
        found = np.zeros(terms[0][0].shape)
        for products in self.products:  # one by one: all at once are too large
            squares = np.zeros(found.shape)
            for i, a in terms:
                for j, b in terms:
                    squares += a * b * products[i, j]
            found += np.sqrt(np.maximum(squares, 0))
        return found / len(self.products)

    def first(self) -> Array:
        """(L, L + 1): from i to j; inf where j is not after i."""
        i, j = np.ogrid[: self.count, : self.count + 1]
        i, j = np.broadcast_arrays(i, j)
        a, b = self._first_order(i, j)
        found = self._rms((j, 1.0), (i, -a), (self._data(i), -b))
        return np.where(i < j, found, np.inf)

    def second(self, straight: bool) -> Array:
        """(L, L, L + 1): from i to j after a step from h to i."""
        h, i, j = np.ogrid[: self.count, : self.count, : self.count + 1]
        h, i, j = np.broadcast_arrays(h, i, j)
        if straight:
            old = np.where(j == self.count, 0.0, -0.5) * (self.t[j] - self.t[i])
            new = self.t[j] - self.t[i] - old
            # v = (x - D) / t
            of_i, of_h = new / self.t[i], old / self.t[h]
            found = self._rms(
                (j, 1.0),
                (i, -1 - of_i),
                (self._data(i), of_i),
                (h, -of_h),
                (self._data(h), of_h),
            )
        else:
            a, b = self._first_order(i, j)
            with np.errstate(all="ignore"):
                old = b * (self.lam[j] - self.lam[i]) / (2 * (self.lam[h] - self.lam[i]))
            old = np.where(np.isfinite(old), old, 0.0)  # at the singular ends: order 1
            found = self._rms((j, 1.0), (i, -a), (self._data(i), old - b), (self._data(h), -old))
        return np.where((h < i) & (i < j), found, np.inf)

    def _data(self, i: NDArray[np.intp]) -> NDArray[np.intp]:
        return self.count + 1 + i

    def _first_order(self, i: NDArray[np.intp], j: NDArray[np.intp]) -> tuple[Array, Array]:
        a = self.sigma[j] / self.sigma[i]
        return a, self.alpha[j] - a * self.alpha[i]


_VALUES = (
    lambda node: node.t,
    lambda node: node.alpha,
    lambda node: node.sigma,
    lambda node: node.lam,
)


def _path(first: Array, second: Array | None, n: int) -> list[int]:
    """The cheapest path of n steps from the first node to the last."""
    count = len(first)
    steps = second if second is not None else np.broadcast_to(first, (count, *first.shape))
    # spent[i, j]: the least that a path costs whose last step is from i to j.
    spent = np.full((count, count + 1), np.inf)
    spent[0] = first[0]
    before: list[NDArray[np.intp]] = []
    for _ in range(n - 1):
        total = spent[:, :count, None] + steps
        before.append(total.argmin(0))
        spent = total.min(0)
    path = [count, int(spent[:, count].argmin())]
    for choice in reversed(before):
        path.append(int(choice[path[-1], path[-2]]))
    return path[::-1]
