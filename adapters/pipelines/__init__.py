"""Algorithms that choose their own times, driven from the loop of an unmodified pipeline."""

from .algorithm import Algorithm, Loop
from .algorithms import adaptive, reference
from .parallel import parallel
from .run import PipelineRun, PipelineStats, run_pipeline
from .statistics import statistics

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
