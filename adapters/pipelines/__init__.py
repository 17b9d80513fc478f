"""Algorithms that choose their own times, driven from the loop of an unmodified pipeline."""

from .algorithm import Algorithm, Loop
from .ode_algorithms import adaptive, reference
from .parallel_algorithm import parallel
from .pipeline_run import PipelineRun, PipelineStats, run_pipeline
from .statistics_algorithm import statistics

__all__ = [
    "Algorithm",
    "Loop",
    "PipelineRun",
    "PipelineStats",
    "adaptive",
    "parallel",
    "reference",
    "run_pipeline",
    "statistics",
]
