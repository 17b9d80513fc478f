r"""Pure noise, alpha = 0, and the states so near to it that they count as such.

From pure noise only the first-order step in the data prediction exists, and it is exact in that
limit. Near it the other formulas exist, but a step from rho_s = sigma / alpha to rho_t, a factor
R = rho_s / rho_t below, loses twice:

* *Rounding.* A combination of noise predictions multiplies x_s by alpha_t / alpha_s and takes
  nearly all of it off again, which costs R units in the last place. (The weights of UniPC's bh1
  grow like log(R) in either space.)
* *Truncation.* With D the data prediction, a second evaluation of eps = (x - alpha D) / sigma
  enters the result as R (D_t - D_s). For rho >> 1 the error of Heun's method is R - 1 times that of
  the first-order step, which therefore wins from R = 2 on; a corrector in noise space does no
  better, and multistep methods in noise space amplify rounding by about R - 1 a step.

So states below a first bound are pure noise, and below a second one, where no published solver in
noise space has its nodes, long steps take no second evaluation. Shorter ones keep their order.

*Inversion*, from data to noise, is the mirror image: with alpha and sigma, x0 and eps exchanged,
lambda changes its sign and a run upwards is one downwards. What was said of pure noise and data
space holds for pure data (sigma = 0) and noise space, and `Frame` is that mirror.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..plan import DATA, NOISE, Node, Target

PURE = {"data": 9e-7, "noise": 1e-5, "velocity": 0.0}
"""alpha / sigma of the first bound. (diffusers starts UniPC, in data space, at 1e-6. The velocity
of the straight path is there at pure noise too.)"""
DEEP = 1 / 200
"""alpha / sigma of the second bound. (The published singlestep solvers start at 1/152.)"""
STRAIGHT = 1 / 50
"""The second bound on the straight path alpha + sigma = 1, where none of them is published."""
LONG = math.log(2)
"""In lambda."""


def is_pure_noise(space: str, node: Node) -> bool:
    """Whether a step from ``node`` is of first order in the data prediction, without history."""
    return node.alpha < PURE[space] * node.sigma


def single_evaluation(space: str, start: Node, end: Node) -> bool:
    """Whether evaluations within the step or at its end would make it worse."""
    straight = abs(start.alpha + start.sigma - 1) < 1e-9
    return _below(space, start, end, STRAIGHT if straight else DEEP)


def only_first_order(space: str, start: Node, end: Node) -> bool:
    """Whether earlier evaluations, too, would make the step worse."""
    return _below(space, start, end, DEEP)


def _below(space: str, start: Node, end: Node, bound: float) -> bool:
    long = space == "noise" and end.lam - start.lam > LONG
    return start.alpha < (bound if long else PURE[space]) * start.sigma


class Frame(NamedTuple):
    """The singular ends of a run in ``space``, as they come in its direction."""

    space: str
    inverted: bool

    @classmethod
    def of(cls, space: str, nodes: Sequence[Node]) -> Frame:
        """That of a run over ``nodes``."""
        return cls(space, bool(nodes[-1].lam < nodes[0].lam))

    @property
    def first_target(self) -> Target:
        """What a first-order step from the singular start combines."""
        return NOISE if self.inverted else DATA

    def starts(self, node: Node) -> bool:
        """Whether ``node`` counts as the singular start: `is_pure_noise`."""
        return is_pure_noise(*self._seen(node))

    def ends(self, node: Node) -> bool:
        """Whether ``node`` is the singular end: sigma = 0, or alpha = 0 in an inversion."""
        return bool((node.alpha if self.inverted else node.sigma) == 0)

    def single_evaluation(self, start: Node, end: Node) -> bool:
        """`single_evaluation` in the direction of the run."""
        return single_evaluation(*self._seen(start, end))

    def only_first_order(self, start: Node, end: Node) -> bool:
        """`only_first_order` in the direction of the run."""
        return only_first_order(*self._seen(start, end))

    def _seen(self, *nodes: Node) -> tuple:
        if not self.inverted:
            return (self.space, *nodes)
        mirror = {"data": "noise", "noise": "data"}.get(self.space, self.space)
        return (mirror, *(Node(node.t, node.sigma, node.alpha) for node in nodes))
