"""The solvers inside other libraries: diffusers pipelines, k-diffusion, EDM networks."""

from .edm import from_edm
from .k_diffusion import from_k_diffusion, to_k_diffusion
from .noise_schedules import noise_schedule
from .pipeline import PipelineRun, PipelineStats, run_pipeline
from .pipeline_algorithm import Algorithm, Loop
from .pipeline_algorithms import adaptive, reference
from .pipeline_parallel import parallel
from .pipeline_statistics import statistics
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
