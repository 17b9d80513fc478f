"""The solvers inside other libraries: diffusers pipelines, k-diffusion, EDM networks."""

from .config.noise_schedules import noise_schedule
from .edm import from_edm
from .k_diffusion import from_k_diffusion, to_k_diffusion
from .pipelines import (
    Algorithm,
    Loop,
    PipelineRun,
    PipelineStats,
    adaptive,
    parallel,
    reference,
    run_pipeline,
    statistics,
)
from .scheduler import PlanScheduler

__all__ = [
    "Algorithm",
    "Loop",
    "PipelineRun",
    "PipelineStats",
    "PlanScheduler",
    "adaptive",
    "from_edm",
    "from_k_diffusion",
    "noise_schedule",
    "parallel",
    "reference",
    "run_pipeline",
    "statistics",
    "to_k_diffusion",
]
