r"""Grids: where on the noise schedule a solver puts its nodes.

A `Grid` is a range [t_start, t_end] of a schedule and a spacing, a rule that places n + 1 times
in any range. Spacings are uniform in some function of t:

    time        t
    quadratic   sqrt(t)                              (DEIS, DPM-Solver's "time_quadratic")
    logsnr      lambda                               (DPM-Solver)
    karras      (sigma/alpha)^(1/rho)                (Karras et al. 2022, eq. 5; rho = 7)

and three that pipelines use on a schedule of N training steps (Lin et al. 2023, table 2):
``leading``, ``trailing`` and ``linspace`` place the n evaluations on whole training steps, and
the grid then ends at t_end.

For flow matching the resolution shift t -> shift t / (1 + (shift - 1) t) (Esser et al. 2024,
eq. 23) moves every node of a spaced grid, i.e. lambda by -log(shift).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .plan import Node
from .schedules import DiscreteVP, FlowMatching, NoiseSchedule, VarianceExploding

_TRAINING_STEPS = 1000


def _time(schedule: NoiseSchedule, start: float, end: float, n: int, rho: float) -> Tensor:
    return _line(start, end, n)


def _quadratic(schedule: NoiseSchedule, start: float, end: float, n: int, rho: float) -> Tensor:
    return _line(math.sqrt(start), math.sqrt(end), n) ** 2


def _logsnr(schedule: NoiseSchedule, start: float, end: float, n: int, rho: float) -> Tensor:
    lams = schedule.lam(start), schedule.lam(end)
    for name, time, lam in zip(("t_start", "t_end"), (start, end), lams, strict=True):
        if not math.isfinite(lam):
            raise ValueError(
                f"spacing='logsnr' needs a finite lambda at both ends, but {name}={time!r} has "
                f"lambda={lam}: choose {name} inside the range, or spacing 'time' or 'karras'"
            )
    return schedule.time(_line(*lams, n))


def _karras(schedule: NoiseSchedule, start: float, end: float, n: int, rho: float) -> Tensor:
    if schedule.lam(start) == -math.inf:
        raise ValueError(
            f"spacing='karras' needs a finite sigma/alpha, but alpha = 0 at t_start={start!r}"
        )
    first, last = (math.exp(-schedule.lam(t) / rho) for t in (start, end))
    return schedule.time(-rho * torch.log(_line(first, last, n)))


def _on_training_steps(name: str) -> Callable[..., Tensor]:
    def spacing(schedule: NoiseSchedule, start: float, end: float, n: int, rho: float) -> Tensor:
        steps = schedule.steps if isinstance(schedule, DiscreteVP) else _TRAINING_STEPS
        if n > steps:
            raise ValueError(f"nfe={n}: spacing={name!r} has only {steps} training steps")
        indices = training_steps(
            name, steps, n, offset=int(name == "leading"), inner=name == "linspace"
        )
        # Index i of N sits at the share (i + 1) / N of the range.
        return torch.as_tensor(np.append((indices + 1.0) / steps * start, end))

    return spacing


def _line(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def training_steps(
    spacing: str, steps: int, n: int, offset: int = 0, inner: bool = False
) -> np.ndarray:
    """The n training-step indices (int64, falling) out of ``steps`` that pipelines evaluate.

    leading: multiples of N // n plus ``offset``; trailing: N - k N / n - 1, rounded; linspace:
    from N - 1 to 0, rounded. With ``inner`` the rule is laid out for n + 1 points of which the
    smallest is dropped, as multistep schedulers do for leading and linspace.
    """
    if spacing == "trailing":
        return np.round(np.arange(steps, 0, -steps / n)[:n]).astype(np.int64) - 1
    count = n + 1 if inner else n
    if spacing == "leading":
        indices = np.arange(count) * (steps // count) + offset
    elif spacing == "linspace":
        indices = np.linspace(0, steps - 1, count).round().astype(np.int64)
    else:
        raise ValueError(f"spacing={spacing!r}: choose 'leading', 'trailing' or 'linspace'")
    return indices[count - n :][::-1].copy()


SPACINGS: dict[str, Callable[..., Tensor]] = {
    "time": _time,
    "quadratic": _quadratic,
    "logsnr": _logsnr,
    "karras": _karras,
    "leading": _on_training_steps("leading"),
    "trailing": _on_training_steps("trailing"),
    "linspace": _on_training_steps("linspace"),
}


_WHOLE_STEPS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Grid:
    """A rule that yields nodes of a schedule, or an explicit list of them.

    Parameters
    ----------
    spacing : a key of ``SPACINGS``; ignored if ``explicit`` is given.
    rho : exponent of the karras spacing.
    shift : resolution shift of flow matching; 1 leaves the grid as it is.
    explicit : the nodes themselves, from noise to data.

    Raises ValueError naming the argument that is out of range.
    """

    schedule: NoiseSchedule
    t_start: float
    t_end: float
    spacing: str = "logsnr"
    rho: float = 7.0
    shift: float = 1.0
    explicit: tuple[Node, ...] | None = None

    def __post_init__(self) -> None:
        if self.explicit is not None:
            if len(self.explicit) < 2:
                raise ValueError(f"times has {len(self.explicit)} entries: need at least 2")
            return
        if self.spacing not in SPACINGS:
            raise ValueError(f"spacing={self.spacing!r}: choose one of {', '.join(SPACINGS)}")
        if not 0 <= self.t_end < self.t_start <= self.schedule.t_max:
            raise ValueError(
                f"t_start={self.t_start!r}, t_end={self.t_end!r}: "
                f"need 0 <= t_end < t_start <= {self.schedule.t_max:g}"
            )
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho={self.rho!r}: need a positive number")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift!r}: need a positive number")
        if self.shift != 1 and not isinstance(self.schedule, FlowMatching):
            raise ValueError(
                f"shift={self.shift!r} belongs to FlowMatching, not to {self.schedule!r}"
            )

    @property
    def intervals(self) -> int | None:
        """The number of intervals of an explicit grid, None for a spacing."""
        return None if self.explicit is None else len(self.explicit) - 1

    def nodes(self, n: int) -> list[Node]:
        """n + 1 nodes over the whole range. ValueError if an explicit grid has another number."""
        if self.explicit is not None:
            if n != self.intervals:
                raise ValueError(f"times has {len(self.explicit)} entries: need {n + 1}")
            return list(self.explicit)
        times = SPACINGS[self.spacing](self.schedule, self.t_start, self.t_end, n, self.rho)
        if self.spacing not in _WHOLE_STEPS:
            # The ends as they were given, not as a round trip through lambda returns them.
            times[0], times[-1] = self.t_start, self.t_end
        if self.shift != 1:
            times = self.shift * times / (1 + (self.shift - 1) * times)
        return nodes_at(self.schedule, times)

    def between(self, start: Node, end: Node, n: int) -> list[Node]:
        """``start``, n - 1 nodes between, ``end``: the grid's own spacing where it has one.

        An explicit grid and the training-step spacings put inner nodes uniformly in lambda.
        """
        if n == 1:
            return [start, end]
        spaced = self.explicit is None and self.spacing not in _WHOLE_STEPS
        spacing = SPACINGS[self.spacing if spaced else "logsnr"]
        undo = self.shift if spaced else 1.0
        ends = (t / (undo - (undo - 1) * t) for t in (start.t, end.t))
        times = spacing(self.schedule, *ends, n, self.rho)
        times = undo * times / (1 + (undo - 1) * times)
        return [start, *nodes_at(self.schedule, times[1:-1]), end]


def nodes_at(schedule: NoiseSchedule, times: Sequence[float] | Tensor) -> list[Node]:
    """Nodes at ``times``, which must lie in [0, schedule.t_max] and fall strictly (ValueError)."""
    t = torch.as_tensor(times, dtype=torch.float64)
    if t.ndim != 1 or not ((t >= 0) & (t <= schedule.t_max * (1 + 1e-12))).all():
        raise ValueError(f"times={_brief(t)}: need a list of times in [0, {schedule.t_max:g}]")
    if not (t.diff() < 0).all():
        raise ValueError(f"times={_brief(t)}: need strictly falling times (noise to data)")
    columns = (t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist())
    return [Node(*entry) for entry in zip(*columns, strict=True)]


def nodes_at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float] | Tensor) -> list[Node]:
    """Nodes at the schedule's own noise scales sigma_t (for VP these lie in [0, 1])."""
    values = torch.as_tensor(sigmas, dtype=torch.float64)
    if isinstance(schedule, VarianceExploding | FlowMatching):
        return nodes_at(schedule, values)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"sigmas={_brief(values)}: need the schedule's sigma_t, in [0, 1]; for the ratio "
            "sigma/alpha of Karras et al. pass lams=-log(ratio)"
        )
    lams = 0.5 * torch.log1p(-(values**2)) - torch.log(values)
    return nodes_at_lams(schedule, lams)


def nodes_at_lams(schedule: NoiseSchedule, lams: Sequence[float] | Tensor) -> list[Node]:
    """Nodes at given lambda, which must rise strictly; +inf is sigma = 0."""
    values = torch.as_tensor(lams, dtype=torch.float64)
    if values.ndim != 1 or values.isnan().any():
        raise ValueError(f"lams={_brief(values)}: need a list of numbers")
    times = schedule.time(values)
    times[torch.isposinf(values)] = 0.0
    return nodes_at(schedule, times)


def _brief(values: Tensor) -> str:
    entries = [f"{v:.6g}" for v in values.flatten().tolist()]
    return (
        "["
        + ", ".join(entries if len(entries) <= 6 else [*entries[:3], "...", *entries[-2:]])
        + "]"
    )
