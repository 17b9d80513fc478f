r"""Grids: where on the noise schedule a solver puts its nodes.

A `Grid` is a range [t_start, t_end] of a schedule and a spacing (see `spacings`), or an explicit
list of nodes. For flow matching the resolution shift (`shift_time`) moves every node of a spaced
grid, i.e. lambda by -log(shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import scalar
from .logistic import default_location
from .names import find_spacing
from .plan import Node
from .scalar import Number, plain
from .schedules import DiscreteVP, FlowMatching, NoiseSchedule, VarianceExploding, shift_time
from .spacings import LOGISTIC, SPACINGS, WHOLE_STEPS, Parameters, with_ends


@dataclass(frozen=True)
class Grid:
    """A rule that yields nodes of a schedule, or an explicit list of them.

    Parameters
    ----------
    spacing : a key of ``SPACINGS``; ignored if ``explicit`` is given.
    rho : exponent of the karras spacing.
    location, scale : centre and width of the logistic spacing, in lambda; None is what is best
        known, for which the shift moves the location and nothing else.
    shift : resolution shift of flow matching; 1 leaves the grid as it is.
    snap : move the evaluations of a spaced grid to whole training steps (DiscreteVP only), for
        networks that take integer timesteps; where two fall on one step they spread to the next.
    explicit : the nodes themselves, from noise to data.
    invert : visit the nodes from data to noise; everything else describes the same grid.

    The numbers may be 0-d tensors: the nodes then carry their gradients.

    Raises ValueError naming the argument that is out of range.
    """

    schedule: NoiseSchedule
    t_start: Number
    t_end: Number
    spacing: str = "auto"
    rho: Number = 7.0
    location: Number | None = None
    scale: Number | None = None
    shift: Number = 1.0
    snap: bool = False
    explicit: tuple[Node, ...] | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        if self.explicit is not None:
            if len(self.explicit) < 2:
                raise ValueError(f"times has {len(self.explicit)} entries: need at least 2")
            return
        object.__setattr__(self, "spacing", find_spacing(self.spacing, SPACINGS))
        check_range(self.schedule, self.t_start, self.t_end)
        Parameters(self.rho, self.location, self.scale).check_used_by(self.spacing)
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift!r}: need a positive number")
        if self.shift != 1 and not isinstance(self.schedule, FlowMatching):
            raise ValueError(
                f"shift={self.shift!r} belongs to FlowMatching, not to {self.schedule!r}"
            )
        if self.snap and not isinstance(self.schedule, DiscreteVP):
            raise ValueError(
                f"snap={self.snap!r} needs whole training steps: a DiscreteVP schedule, not "
                f"{self.schedule!r}"
            )

    @property
    def parameters(self) -> Parameters:
        """The numbers of the spacing."""
        location = self.location
        if self._finds_location:
            location = default_location(self.schedule, shift=self.shift)
        return Parameters(self.rho, location, self.scale)

    @property
    def _finds_location(self) -> bool:
        """Whether the shift tells the location, and moves no times."""
        return self.spacing in LOGISTIC and self.location is None

    @property
    def _shift_of_times(self) -> float:
        return 1.0 if self._finds_location else self.shift

    @property
    def intervals(self) -> int | None:
        """The number of intervals of an explicit grid, None for a spacing."""
        return None if self.explicit is None else len(self.explicit) - 1

    def nodes(self, n: int) -> list[Node]:
        """n + 1 nodes over the whole range. ValueError if an explicit grid has another number."""
        nodes = self._falling(n)
        return nodes[::-1] if self.invert else nodes

    def _falling(self, n: int) -> list[Node]:
        if self.explicit is not None:
            if n != self.intervals:
                raise ValueError(f"times has {len(self.explicit)} entries: need {n + 1}")
            return list(self.explicit)
        times = SPACINGS[self.spacing](self.schedule, self.t_start, self.t_end, n, self.parameters)
        if self.spacing not in WHOLE_STEPS:
            # The ends as they were given, not as a round trip through lambda returns them.
            times = with_ends(times[1:-1], self.t_start, self.t_end)
        if self._shift_of_times != 1:
            times = shift_time(times, self._shift_of_times)
        if isinstance(self.schedule, DiscreteVP) and self.snap:
            times = snapped(self.schedule, times)
        return nodes_at(self.schedule, times)

    def between(self, start: Node, end: Node, n: int) -> list[Node]:
        """``start``, n - 1 nodes between, ``end``: the grid's own spacing where it has one.

        An explicit grid and the training-step spacings put inner nodes uniformly in lambda, or in
        t where lambda is infinite at an end.
        """
        if n == 1:
            return [start, end]
        if start.t < end.t:
            return self.between(end, start, n)[::-1]
        spaced = self.explicit is None and self.spacing not in WHOLE_STEPS
        finite = math.isfinite(plain(start.lam)) and math.isfinite(plain(end.lam))
        spacing = SPACINGS[self.spacing if spaced else "logsnr" if finite else "time"]
        shift = self._shift_of_times if spaced else 1.0
        first, last = (shift_time(t, 1 / shift) for t in (start.t, end.t))
        times = shift_time(spacing(self.schedule, first, last, n, self.parameters), shift)
        if isinstance(self.schedule, DiscreteVP) and self.snap:
            times = snapped(self.schedule, times)
        return [start, *nodes_at(self.schedule, times[1:-1]), end]


def snapped(schedule: DiscreteVP, times: Tensor) -> Tensor:
    """``times`` with all but the last moved to the nearest whole training steps, all different.

    Raises ValueError if there are more times than steps, and for times that require grad.
    """
    if times.requires_grad:
        raise ValueError("snap=True moves nodes to whole training steps, where no gradient passes")
    steps, count = schedule.steps, len(times) - 1
    # The smallest whole step above the end; index i sits at (i + 1) / N.
    least = math.floor(float(times[-1]) * steps + 1e-9)
    if count > steps - least:
        raise ValueError(f"snap=True: {count} evaluations do not fit {steps - least} steps")
    indices = (times[:-1] * steps).round().long() - 1
    # Push apart upwards from the smallest, then back below the largest that leaves room.
    rank = torch.arange(count - 1, -1, -1)
    low = (indices.clamp(min=least) - rank).flip(0).cummax(0).values.flip(0) + rank
    indices = torch.minimum(low, steps - 1 - torch.arange(count))
    return torch.cat([(indices + 1).to(torch.float64) / steps, times[-1:]])


def check_range(schedule: NoiseSchedule, t_start: float, t_end: float) -> None:
    """ValueError unless 0 <= t_end < t_start <= schedule.t_max, both finite."""
    if not 0 <= t_end < t_start <= schedule.t_max or t_start == math.inf:
        raise ValueError(
            f"t_start={t_start!r}, t_end={t_end!r}: need 0 <= t_end < t_start <= {schedule.t_max:g}"
        )


def node_at(schedule: NoiseSchedule, t: float) -> Node:
    """The node at one time of the schedule."""
    return Node(t, schedule.alpha(t), schedule.sigma(t))


def as_numbers(
    name: str,
    values: float | Sequence[float] | np.ndarray | Tensor,
    *,
    gradients: bool = False,
) -> Tensor:
    """The argument ``name`` as float64, or ValueError; with its gradients if they can be kept."""
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)  # torch takes none that is turned round, as [::-1]
    try:
        if isinstance(values, list | tuple) and any(isinstance(v, Tensor) for v in values):
            numbers = scalar.vector(values)
        else:
            numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={values!r}: need a number, or a list of numbers") from error
    if not (numbers.requires_grad and torch.is_grad_enabled()):
        return numbers.detach()
    if not gradients:
        raise ValueError(f"{name} requires grad, which would be lost here: give {name}.detach()")
    return numbers


def as_number(name: str, value: float | Tensor) -> Number:
    """The argument ``name`` as a float, or a 0-d tensor with a gradient; ValueError otherwise."""
    number = as_numbers(name, value, gradients=True)
    if number.ndim != 0:
        raise ValueError(f"{name}={value!r}: need one number")
    return scalar.numbers(number[None])[0]


def nodes_at(
    schedule: NoiseSchedule, times: Sequence[float] | Tensor, name: str = "times"
) -> list[Node]:
    """Nodes at ``times``, which must lie in [0, schedule.t_max] and fall strictly (ValueError)."""
    t = as_numbers(name, times, gradients=True)
    if t.ndim != 1 or not ((t >= 0) & (t <= schedule.t_max * (1 + 1e-12))).all():
        raise ValueError(f"{name}={_brief(t)}: need a list of times in [0, {schedule.t_max:g}]")
    if not (t.diff() < 0).all():
        raise ValueError(f"{name}={_brief(t)}: need strictly falling times (noise to data)")
    # 1 + 2e-16 is 1, where the schedule is defined; the gradient is that of 1.
    t = torch.where(t > schedule.t_max, schedule.t_max, t)
    columns = map(scalar.numbers, (t, schedule.alpha(t), schedule.sigma(t)))
    return [Node(*entry) for entry in zip(*columns, strict=True)]


def nodes_at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float] | Tensor) -> list[Node]:
    """Nodes at the schedule's own noise scales sigma_t (for VP these lie in [0, 1])."""
    values = as_numbers("sigmas", sigmas, gradients=True)
    if values.ndim != 1 or not (values.diff() < 0).all():
        raise ValueError(f"sigmas={_brief(values)}: need a strictly falling list (noise to data)")
    if isinstance(schedule, VarianceExploding | FlowMatching):
        return nodes_at(schedule, values, "sigmas")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"sigmas={_brief(values)}: need the schedule's sigma_t, in [0, 1]; for the ratio "
            "sigma/alpha of Karras et al. pass lams=-log(ratio)"
        )
    lams = 0.5 * torch.log1p(-(values**2)) - torch.log(values)
    return nodes_at_lams(schedule, lams)


def nodes_at_lams(schedule: NoiseSchedule, lams: Sequence[float] | Tensor) -> list[Node]:
    """Nodes at given lambda, which must rise strictly; +inf is sigma = 0."""
    values = as_numbers("lams", lams, gradients=True)
    if values.ndim != 1 or not (values.diff() > 0).all():
        raise ValueError(f"lams={_brief(values)}: need a strictly rising list (noise to data)")
    times = torch.where(torch.isposinf(values), 0.0, schedule.time(values))
    if not (times <= schedule.t_max * (1 + 1e-12)).all():
        least = schedule.lam(schedule.t_max)
        raise ValueError(f"lams={_brief(values)}: need at least {least:.6g}, that of t_max")
    return nodes_at(schedule, times)


def _brief(values: Tensor) -> str:
    entries = [f"{v:.6g}" for v in values.flatten().tolist()]
    return (
        "["
        + ", ".join(entries if len(entries) <= 6 else [*entries[:3], "...", *entries[-2:]])
        + "]"
    )
