"""The options of a fit, as a value that checks itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checks import check_choice, check_kind, check_whole
from ..progress import Show
from .errors import Features, summary
from .grid_fit import METHODS as WITHOUT_GRADIENTS
from .presets import preset_options

LEVELS = ("grid", "coefficients", "full")
OBJECTIVES = ("balanced", "log", "huber", "mse")
ROWS = ("both", "consistent", "free")
METHODS = ("gradient", *WITHOUT_GRADIENTS)
OPTIMISERS = ("preconditioned", "adam")
GRADIENTS = ("auto", "reverse", "differences")
LEAST = {"nfe": 1, "batch_size": 1, "beginnings": 1, "seed": 0, "reference_nfe": 4}


@dataclass(frozen=True)
class Tuning:
    """How a plan is fitted.

    Parameters
    ----------
    nfe : network evaluations of the plan.
    level : "grid": the nodes, on which a registered solver recomputes its coefficients;
        "coefficients": the coefficients, lower triangular in the history, on the solver's own
        nodes; "full": both, and the times that the network is told.
    method : of level "grid", "gradient" or one of `fit_grid` for networks that can only be called:
        "location", "lattice", "proxy" or "search".
    solver : the registered solver to begin from, with ``solver_options`` as `make_plan` takes them;
        None takes the best of a few on the starts.
    rows : "consistent" keeps the identities, so that data at one point stay exact, "free" gives
        them up; "both" fits both, and validation chooses.
    told : at level "full", whether the times that the network is told are free, too.
    objective : what is made small of the errors e_i of the starts. "log": the mean of log e_i, for
        the typical sample; "mse": the mean of e_i^2, decided by the worst; "huber": between
        both; "balanced": of the logarithms, and by a quarter of the squares.
    features : a function of samples (B, *event), a network's features say; errors are then those of
        what it makes of the sample and of the solution. Gradients pass through it.
    intermediate : the weight of the states on the way: to e_i^2 comes so much times the mean of
        their squared distances from the converged trajectory, at the inner nodes where the network
        is called. 0 is the end alone, by which what is held out is always judged. Keeps 120 states
        a start.
    gradients : "reverse": by reverse mode through the network; "differences": of its answers, for
        networks that are only called, at 3 to 10 times the cost; "auto": the first where it works.
    relax : the starts may move while they are fitted to, by this share of their size at most; 0
        leaves them. By "reverse" alone.
    beginnings : how many of the solvers the fit begins from, the best of them first.
    t_start, t_end : the ends of the grid; by default those of the denoiser's schedule.
    targets : the converged solutions (B, *event) of the starts, if they are there already.
    reference_nfe : evaluations of the run that they are else taken from.
    guidance : (low, high) fits one plan for a range of guidance scales, of a denoiser whose
        guidance is a `ClassifierFree`; None fits it for the denoiser as it is.
    iterations : steps of the optimiser for each fit, by default as many as the level needs; of the
        methods "location" and "search" the sweeps.
    batch_size : starts of one step.
    optimiser : "preconditioned": Adam's steps in coordinates where the curvature of the objective,
        measured first, is the same in all directions; "adam": in the parameters themselves.
    rate : its largest step, in these coordinates; it falls to zero as a cosine.
    average : the share of the past in the moving average of the parameters, which is the result.
    validation : the share of the starts that is held out, and decides.
    confidence : with which the fitted plan must be better on these; else the untuned one is the
        result. Below five starts held out nothing is better with a confidence of 0.95.
    save_memory : keep one network evaluation's graph at a time, and compute it again on the way
        back, for a third more time; False keeps those of all.
    seed : of the order of the starts. The same call gives the same plan.
    checkpoint : a file that keeps the state of the fit, written every ``seconds``: after a kill the
        same call goes on from it, and gives what an undisturbed one gives.
    progress : show a progress bar; or what to call with the number of steps done and of all.

    Raises ValueError naming the option that is out of range.
    """

    nfe: int = 8
    level: str = "full"
    _: KW_ONLY
    method: str = "gradient"
    solver: str | None = None
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    rows: str = "both"
    told: bool = True
    objective: str = "balanced"
    features: Features | None = None
    intermediate: float = 0.0
    gradients: str = "auto"
    relax: float = 0.0
    beginnings: int = 1
    t_start: float | None = None
    t_end: float | None = None
    targets: Tensor | None = None
    reference_nfe: int = 100
    guidance: tuple[float, float] | None = None
    iterations: int | None = None
    batch_size: int = 24
    optimiser: str = "preconditioned"
    rate: float = 0.03
    average: float = 0.9
    validation: float = 0.35
    confidence: float = 0.95
    save_memory: bool = True
    seed: int = 0
    checkpoint: str | Path | None = None
    seconds: float = 20.0
    progress: Show = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("level", LEVELS),
            ("objective", OBJECTIVES),
            ("method", METHODS),
            ("rows", ROWS),
            ("optimiser", OPTIMISERS),
            ("gradients", GRADIENTS),
        ):
            check_choice(name, getattr(self, name), choices)
        for name, least in LEAST.items():
            check_whole(name, getattr(self, name), least)
        if self.iterations is not None:
            check_whole("iterations", self.iterations, 0)
        if self.reference_nfe <= self.nfe:
            raise ValueError(
                f"reference_nfe={self.reference_nfe}: need more than nfe={self.nfe}, many more"
            )
        for name, low, high in (
            ("rate", 0.0, math.inf),
            ("seconds", 0.0, math.inf),
            ("validation", 0.0, 1.0),
            ("confidence", 0.5, 1.0),
            ("average", -1e-300, 1.0),
            ("relax", -1e-300, 1.0),
            ("intermediate", -1e-300, math.inf),
        ):
            value = getattr(self, name)
            check_kind(name, value, 0.0)
            if not low < value < high:
                allowed = f"a number in {'[0' if low < 0 else f'({low:g}'}, 1)"
                if high == math.inf:
                    allowed = "a number of at least 0" if low < 0 else "a positive number"
                raise ValueError(f"{name}={value!r}: need {allowed}")
        if self.method != "gradient" and self.level != "grid":
            raise ValueError(
                f"method={self.method!r} fits nodes alone: give level='grid', not {self.level!r}"
            )
        if self.method != "gradient" and self.guidance is not None:
            raise ValueError(f"method={self.method!r} fits to one guidance scale, not to a range")
        if self.method != "gradient" and self.intermediate:
            raise ValueError(
                f"intermediate={self.intermediate!r}: needs method='gradient', not {self.method!r}"
            )
        if self.relax and not self.reverse:
            raise ValueError(f"relax={self.relax!r}: needs gradients='reverse'")
        for name in ("told", "save_memory"):
            check_kind(name, getattr(self, name), True)
        if not isinstance(self.solver_options, Mapping):
            raise ValueError(f"solver_options={self.solver_options!r}: need a mapping of options")
        if self.solver is None and self.solver_options:
            raise ValueError(
                f"solver_options={dict(self.solver_options)!r} were given without a solver"
            )
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | Path):
            raise ValueError(f"checkpoint={self.checkpoint!r}: need the path of a file, or None")
        if self.features is not None and not callable(self.features):
            raise ValueError(f"features={self.features!r}: need a function of samples, or None")
        if self.guidance is not None:
            _check_range_of_scales(self.guidance)

    @classmethod
    def preset(cls, name: str, **options: Any) -> Tuning:
        """The options of a published way of fitting, "bns", "s4s", "ld3", "gas" or "dyweight".

        ``tune(denoise, starts, options=Tuning.preset("gas", nfe=6, iterations=500))``: what is
        named beside it counts. `presets` says what each is.
        """
        return cls(**{**preset_options(name), **options})

    @property
    def steps(self) -> int:
        """Steps of one fit."""
        if self.iterations is not None:
            return self.iterations
        return {"grid": 40, "coefficients": 60, "full": 100}[self.level]

    @property
    def measure(self) -> str:
        """The measure of `better` that goes with the objective."""
        return "rmse" if self.objective == "mse" else "log"

    @property
    def reverse(self) -> bool:
        """Whether gradients come by reverse mode."""
        return self.gradients != "differences"

    def score(self, errors: Tensor) -> float:
        """One number of the errors (B,) that goes with the objective."""
        found = summary(errors)
        balanced = self.objective == "balanced"
        return found.log_mean**0.75 * found.rmse**0.25 if balanced else found.of(self.measure)


def _check_range_of_scales(guidance: Any) -> None:
    numbers = guidance if isinstance(guidance, tuple | list) else ()
    fits = len(numbers) == 2 and all(
        isinstance(v, int | float) and math.isfinite(v) for v in numbers
    )
    if not fits or not numbers[0] < numbers[1]:
        raise ValueError(f"guidance={guidance!r}: need (low, high), two scales, low < high")
