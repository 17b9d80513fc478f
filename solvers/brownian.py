r"""One Brownian path for runs of any step count, by torchsde's `BrownianInterval`.

Noise that is keyed by its interval (`counter_noise`) agrees between runs that ask for the same
intervals. A path agrees between all: halving the steps refines it, so that the convergence of a
run with noise can be seen sample by sample.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from .counter_noise import check_seed
from .noise_terms import Noise

TOLERANCE = 1e-6


class BrownianPath:
    """Increments and space-time Levy areas of one path a sample: (term, like) -> z.

    Parameters
    ----------
    seed : whole number in 0..2^63 - 1; sample i has the path (seed, i).
    start, end : the range of the clock, finite; every interval has to lie in it.
    clock : the clock of the terms that it answers.
    tolerance : the finest division of the range; what lies closer is not told apart.

    A path is a function of seed, sample, range and tolerance, whatever was asked before. It is
    refined in float64 on the host, which is slow: for studies, not for pictures. Needs torchsde.
    Raises ValueError for arguments out of range, and for a term of another clock or range.
    """

    def __init__(
        self,
        seed: int,
        start: float,
        end: float,
        *,
        clock: str = "lambda",
        tolerance: float = TOLERANCE,
    ):
        check_seed(seed, "seed")
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(f"start={start!r}, end={end!r}: need finite readings, start < end")
        if not 0 < tolerance < end - start:
            raise ValueError(f"tolerance={tolerance!r}: need a positive number below end - start")
        self.seed, self.start, self.end = seed, float(start), float(end)
        self.clock, self.tolerance = clock, tolerance
        self._paths: dict[tuple[int, tuple[int, ...]], Any] = {}

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        """Standard normals with the shape, dtype and device of ``like`` (B, *event)."""
        low, high = sorted((float(term.start), float(term.end)))
        if term.clock != self.clock or not self.start <= low < high <= self.end:
            raise ValueError(
                f"noise over [{term.start:g}, {term.end:g}] of clock {term.clock!r}: the path is "
                f"that of [{self.start:g}, {self.end:g}] of clock {self.clock!r}"
            )
        h = high - low
        drawn = []
        for sample in range(len(like)):
            w, area = self._path(sample, tuple(like.shape[1:]))(low, high, return_U=True)
            if term.moment == 0:
                drawn.append((w if term.start < term.end else -w) / math.sqrt(h))
            else:
                drawn.append((area / h - w / 2) * math.sqrt(12 / h))
        return torch.stack(drawn).to(like)

    def _path(self, sample: int, event: tuple[int, ...]) -> Any:
        from torchsde import BrownianInterval

        if (sample, event) not in self._paths:
            # torchsde rounds readings to as many digits as the tolerance has, rounded up.
            step = 10.0 ** math.floor(math.log10(self.tolerance))
            digest = hashlib.sha256(f"{self.seed}:{sample}".encode()).digest()
            self._paths[sample, event] = BrownianInterval(
                self.start - step,
                self.end + step,
                size=event,
                dtype=torch.float64,
                entropy=int.from_bytes(digest[:4], "little"),
                levy_area_approximation="space-time",
                tol=step,
                halfway_tree=True,
            )
        return self._paths[sample, event]
