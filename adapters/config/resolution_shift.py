r"""The resolution shift of flow models, and the stretch of their times to a smallest one.

t -> s t / (1 + (s - 1) t),    s = shift, or e^mu if the shift is dynamic
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from logsnr.solvers.schedules import shift_time

from .noise_schedules import is_flow


@dataclass(frozen=True)
class ResolutionShift:
    """The shift that a config asks for.

    Attributes
    ----------
    key, value : ``shift`` as FlowMatchEulerDiscreteScheduler has it, or ``flow_shift`` of the
        multistep schedulers, and what it says.
    dynamic : whether mu tells the shift of a run.
    kind : what mu is, "exponential" for the logarithm of the shift, "linear" for the shift itself.
    terminal : ``shift_terminal``, the smallest time that is evaluated.
    """

    key: str
    value: Any
    dynamic: bool
    kind: str
    terminal: Any

    @property
    def of_flow_classes(self) -> bool:
        """Whether it is that of diffusers' own flow schedulers, which have a rule of their own."""
        return self.key == "shift"

    def factor(self, mu: float | None) -> float:
        """s of the module's text; ValueError where mu is missing, or for what is no shift."""
        if self.dynamic:
            if mu is None:
                raise ValueError(
                    "mu is missing: use_dynamic_shifting=True needs it in set_timesteps"
                )
            if self.kind not in ("exponential", "linear"):
                raise ValueError(f"time_shift_type={self.kind!r}: choose 'exponential' or 'linear'")
            with np.errstate(over="ignore"):  # named below
                shift = float(np.exp(mu)) if self.kind == "exponential" else mu
            typed = f"mu={mu!r}"
        else:
            shift, typed = float(self.value), f"{self.key}={self.value!r}"
        if not 0 < shift < math.inf:
            raise ValueError(f"{typed} means a shift of {shift!r}: need a positive number")
        return shift

    def smallest_time(self) -> float:
        """``shift_terminal``, 0 for none; ValueError unless in [0, 1)."""
        terminal = float(self.terminal or 0)
        if not 0 <= terminal < 1:
            raise ValueError(f"shift_terminal={terminal!r}: need a time in [0, 1), or None")
        return terminal

    def shifted(self, t: np.ndarray, mu: float | None, *, stretch: bool = True) -> np.ndarray:
        """The times t in [0, 1] after the shift and the stretch."""
        t = shift_time(t, self.factor(mu))
        terminal = self.smallest_time()
        if stretch and terminal and t[-1] < 1:
            t = 1 - (1 - t) * (1 - terminal) / (1 - t[-1])
        return t


def resolution_shift(config: Mapping[str, Any]) -> ResolutionShift | None:
    """What ``config`` says of the shift, None for models that are no flow."""
    if not is_flow(config):
        return None
    key = "flow_shift" if config.get("shift") is None else "shift"
    return ResolutionShift(
        key=key,
        value=config.get(key),
        dynamic=bool(config.get("use_dynamic_shifting")),
        kind=config.get("time_shift_type") or "exponential",
        terminal=config.get("shift_terminal"),
    )
