"""Schedules, grids, solvers as tables (plans), and the runner that executes them."""

from .adaptive import AdaptiveStats, NFELimitError, sample_adaptive
from .bibliography import cite
from .brownian import BrownianPath
from .cfg_pp import ClassifierFreePP, cfg_pp_scales
from .counter_noise import CounterNoise
from .custom import CustomSchedule
from .denoiser import Denoiser
from .grids import Grid
from .guidance import ClassifierFree, DynamicThreshold
from .location_fit import FittedLocation, fit_location
from .logistic import default_location
from .masks import skip_mask, uniform_mask
from .model_statistics import check_ems, estimate_ems, estimation
from .model_statistics.ems import EMS
from .model_statistics.verdict import Verdict
from .parallel import ParallelStats, sample_parallel
from .plan import DATA, NOISE, Node, Noise, Plan, Row, Target
from .prediction import PREDICTIONS
from .reference import reference_solution
from .registry import SOLVERS, Solver, make_plan, plan_on_grid, solver
from .running import Evaluation, Step, run, sample
from .schedules import (
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    VarianceExploding,
    VPCosine,
    VPLinear,
)
from .spacings import SPACINGS
from .step_size import PID
from .stored_steps import step_distributions, step_log_prob
from .tuning.auto import auto_plan
from .tuning.card import Card
from .tuning.cards import Cards
from .tuning.grid_fit import fit_grid
from .tuning.mask_search import search_mask
from .tuning.tune import tune

from . import methods  # isort: skip  (fills SOLVERS)

__all__ = [
    "DATA",
    "EMS",
    "NOISE",
    "PID",
    "PREDICTIONS",
    "SOLVERS",
    "SPACINGS",
    "AdaptiveStats",
    "BrownianPath",
    "Card",
    "Cards",
    "ClassifierFree",
    "ClassifierFreePP",
    "CounterNoise",
    "CustomSchedule",
    "Denoiser",
    "DiscreteVP",
    "DynamicThreshold",
    "Evaluation",
    "FittedLocation",
    "FlowMatching",
    "NFELimitError",
    "Grid",
    "Node",
    "Noise",
    "NoiseSchedule",
    "ParallelStats",
    "Plan",
    "Row",
    "Solver",
    "Step",
    "Target",
    "VPCosine",
    "VPLinear",
    "Verdict",
    "VarianceExploding",
    "cfg_pp_scales",
    "cite",
    "auto_plan",
    "check_ems",
    "default_location",
    "estimate_ems",
    "estimation",
    "fit_grid",
    "fit_location",
    "make_plan",
    "methods",
    "plan_on_grid",
    "reference_solution",
    "run",
    "sample",
    "sample_adaptive",
    "sample_parallel",
    "search_mask",
    "skip_mask",
    "solver",
    "step_distributions",
    "step_log_prob",
    "uniform_mask",
    "tune",
]
