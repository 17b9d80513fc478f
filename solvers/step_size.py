r"""Controllers of the step size: which steps to accept, and how long the next one is.

A step comes with the ratios e = (x_high - x_low) / delta of `adaptive`, one for every entry of the
states. Two controllers are published for them.

*Lu et al. 2022a, appendix C*: with E the largest root mean square of a sample's ratios, a step is
accepted if E <= 1 and the next size is min(theta h E^(-1/p), what is left).

*k-diffusion* (``sample_dpm_adaptive``): a PID controller. With E the root mean square over the
whole batch, u = 1 / (E + 1e-8) of this attempt, u' and u'' those of the two last accepted ones,

    factor = 1 + atan(u^b1 u'^b2 u''^b3 - 1),
    b1 = (P + I + D) / p,   b2 = -(P + 2 D) / p,   b3 = D / p,

a step is accepted if the factor is at least ``accept_safety``, and the next size is h times it,
whatever is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Controller(Protocol):
    """The step size ``h`` in lambda of one run."""

    h: float

    def judge(self, ratios: Tensor, left: float) -> bool:
        """Whether the step with these ``ratios`` (B, *event) is accepted; sets the next size.

        ``left`` is how far the end is from the start of the step.
        """


@dataclass
class Published:
    """The controller of Lu et al. 2022a for a pair of order ``order``; see the module's text."""

    h: float
    order: int
    theta: float

    def judge(self, ratios: Tensor, left: float) -> bool:
        error = float(ratios.flatten(1).square().mean(1).sqrt().max())
        taken = min(self.h, left)
        self.h = self.theta * taken * max(error, 1e-12) ** (-1 / self.order)
        return error <= 1


@dataclass(frozen=True)
class PID:
    """The coefficients of k-diffusion's controller; see the module's text.

    The defaults are k-diffusion's, an integral controller. Raises ValueError for a coefficient
    that is not finite, and unless 0 < accept_safety.
    """

    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81

    def __post_init__(self) -> None:
        for name in ("pcoeff", "icoeff", "dcoeff"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: need a finite number")
        if not 0 < self.accept_safety < math.inf:
            raise ValueError(f"accept_safety={self.accept_safety!r}: need a positive number")

    def start(self, h: float, order: int) -> Controller:
        """The controller of one run with a pair of order ``order``."""
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        exponents = ((p + i + d) / order, -(p + 2 * d) / order, d / order)
        return _PIDRun(h, exponents, self.accept_safety)


class _PIDRun:
    def __init__(self, h: float, exponents: tuple[float, float, float], accept_safety: float):
        self.h, self.exponents, self.accept_safety = h, exponents, accept_safety
        self.last: tuple[float, float] | None = None

    def judge(self, ratios: Tensor, left: float) -> bool:
        inverse = 1 / (float(ratios.square().mean().sqrt()) + 1e-8)
        u = (inverse, *(self.last or (inverse, inverse)))
        product = math.prod(v**b for v, b in zip(u, self.exponents, strict=True))
        factor = 1 + math.atan(product - 1)
        accepted = factor >= self.accept_safety
        if accepted or self.last is None:
            self.last = u[:2]
        self.h *= factor
        return accepted
