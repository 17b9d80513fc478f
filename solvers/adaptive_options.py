"""The options of a run with automatic steps, as values that check themselves."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from .checks import check_choice
from .methods.dpm_solver import SOLVER_TYPES
from .step_size import PID, Controller, Published

ORDERS = (2, 3)


@dataclass(frozen=True)
class AdaptiveSteps:
    """The pair of methods, and the controller of its steps.

    Parameters
    ----------
    order : 2 (DPM-Solver-12) or 3 (DPM-Solver-23); an attempted step costs ``order`` evaluations.
    space : "noise" (DPM-Solver) or "data" (DPM-Solver++).
    solver_type : "dpmsolver", or "taylor" for the published variant of the inner evaluations.
    atol, rtol : tolerances of the controller; the defaults are the published ones for 8-bit
        images in [-1, 1].
    h_init, theta : first step in lambda, safety factor in (0, 1).
    pid : the coefficients of k-diffusion's controller, in place of the published one and theta.
    t_err : the run ends when it is this close to t_end.

    Raises ValueError naming the option that is out of range.
    """

    _: KW_ONLY
    order: int = 3
    space: str = "noise"
    solver_type: str = "dpmsolver"
    atol: float = 0.0078
    rtol: float = 0.05
    h_init: float = 0.05
    theta: float = 0.9
    pid: PID | None = None
    t_err: float = 1e-5

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("space", self.space, ("data", "noise"))
        check_choice("solver_type", self.solver_type, SOLVER_TYPES)
        for name in ("atol", "rtol", "h_init", "t_err"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: need a positive number")
        if not 0 < self.theta < 1:
            raise ValueError(f"theta={self.theta!r}: need a value in (0, 1)")
        if self.pid is not None and not isinstance(self.pid, PID):
            raise ValueError(f"pid={self.pid!r}: need a PID, or None")
        if self.pid is not None and self.theta != AdaptiveSteps.theta:
            raise ValueError(f"theta={self.theta!r} was given beside pid, which has no such factor")

    def controller(self) -> Controller:
        """The controller of one run."""
        if self.pid is not None:
            return self.pid.start(self.h_init, self.order)
        return Published(self.h_init, self.order, self.theta)


@dataclass(frozen=True)
class AdaptiveRun(AdaptiveSteps):
    """The options of `sample_adaptive`: the steps, and the range they cover.

    Parameters
    ----------
    t_start, t_end : default the schedule's; lambda must be finite at t_end.
    max_nfe : raise `NFELimitError`, which holds the state reached, rather than go on.
    dense : also return an interpolant, for one evaluation more (at t_end).
    """

    _: KW_ONLY
    t_start: float | None = None
    t_end: float | None = None
    max_nfe: int = 1000
    dense: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_nfe < self.order:
            raise ValueError(f"max_nfe={self.max_nfe!r}: need at least order={self.order}")
