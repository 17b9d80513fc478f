"""Schedules, grids, solvers as tables (plans), and the runner that executes them."""

from .adaptive import AdaptiveStats, NFELimitError, sample_adaptive
from .bibliography import cite
from .denoiser import Denoiser
from .grids import Grid
from .guidance import ClassifierFree, DynamicThreshold
from .plan import DATA, NOISE, Node, Noise, Plan, Row, Target
from .prediction import PREDICTIONS
from .reference import reference_solution
from .registry import SOLVERS, Solver, make_plan, plan_on_grid, solver
from .run import Evaluation, Step, run, sample
from .schedules import (
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    VarianceExploding,
    VPCosine,
    VPLinear,
)
from .spacings import SPACINGS

from . import methods  # isort: skip  (fills SOLVERS)

__all__ = [
    "DATA",
    "NOISE",
    "PREDICTIONS",
    "SOLVERS",
    "SPACINGS",
    "AdaptiveStats",
    "ClassifierFree",
    "Denoiser",
    "DiscreteVP",
    "DynamicThreshold",
    "Evaluation",
    "FlowMatching",
    "NFELimitError",
    "Grid",
    "Node",
    "Noise",
    "NoiseSchedule",
    "Plan",
    "Row",
    "Solver",
    "Step",
    "Target",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "cite",
    "make_plan",
    "methods",
    "plan_on_grid",
    "reference_solution",
    "run",
    "sample",
    "sample_adaptive",
    "solver",
]
