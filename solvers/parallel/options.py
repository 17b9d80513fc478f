"""The options of a parallel run, as values that check themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import check_choice, check_kind, check_whole_or_none
from ..plan import Node
from ..requests import Evaluate

if TYPE_CHECKING:
    from .sweeps import Sweep

UPDATES = ("semilinear", "literal")
ACCELERATIONS = (None, "secant")

Init = Callable[[Node], Tensor]
"""A node -> a guess (B, *event) of the states there."""


@dataclass(frozen=True)
class Picard:
    """How a plan is swept.

    Parameters
    ----------
    window : at most so many evaluations of the plan in one network call; None is all of them. The
        memory grows with the window, not with the plan.
    tolerance : relative error of the sample, |x - x_sequential| / |x_sequential|, that is allowed,
        as estimated from the last two sweeps. 0.1 is the published choice for images; below some
        1e-2 the result cannot be told from the sequential one. For ``published``: a state is
        accepted once its root mean square changes by less than this share of the deviation of
        the noise that DDPM would add there.
    update : "semilinear", which keeps the linear part of the network that N(0, data_scale^2) has,
        or "literal", the published one. Both have the same limit.
    acceleration : "secant" learns the network's slope along the last change of every state (for
        "semilinear" only); None does not.
    data_scale : standard deviation of the data. Rough is enough: 1 for latents, 0.5 for images.
    published : guess and accept as the published code does: the last state is the guess, and the
        end of the plan is never accepted by the tolerance. With update="literal" the run is the
        published one, sweep by sweep.

    Raises ValueError naming the option that is out of range.
    """

    window: int | None = None
    tolerance: float = 0.0
    _: KW_ONLY
    update: str = "semilinear"
    acceleration: str | None = "secant"
    data_scale: float = 1.0
    published: bool = False

    def __post_init__(self) -> None:
        tolerance, data_scale = self.tolerance, self.data_scale
        check_whole_or_none("window", self.window, 1)
        check_kind("tolerance", tolerance, 0.0)
        check_kind("data_scale", data_scale, 1.0)
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance={tolerance!r}: need a number of at least 0")
        check_choice("update", self.update, UPDATES)
        check_choice("acceleration", self.acceleration, ACCELERATIONS)
        if not data_scale >= 0:
            raise ValueError(f"data_scale={data_scale!r}: need a number of at least 0, inf allowed")


@dataclass(frozen=True)
class ParallelRun(Picard):
    """The options of `sample_parallel`: how a plan is swept, where, and who looks on.

    Parameters
    ----------
    noise : as for ``sample``.
    init : a function from a node to a guess (B, *event) of the states there, from an earlier or
        coarser run. Default: the plan itself, for the network of N(0, data_scale^2) at the start
        and with the newest data prediction held later.
    evaluate : how a batch of states is evaluated, in place of one call of ``denoise`` here; see
        ``requests.evaluator``.
    max_groups : at most so many points in one network call.
    devices : warn if ``sample`` is predicted to be faster than so many devices together; see
        ``parallel.cost``. Default: no prediction.
    throughput : groups -> seconds of one network call, for that prediction.
    callback : called with a `Sweep` after every sweep.
    progress : show a progress bar over the evaluated rows of the plan.
    """

    _: KW_ONLY
    noise: Any = None
    init: Init | None = None
    evaluate: Evaluate | None = None
    max_groups: int | None = None
    devices: int | None = None
    throughput: Mapping[int, float] | None = None
    callback: Callable[[Sweep], None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init", "evaluate", "callback"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ValueError(f"{name}={function!r}: need a function, or None")
