"""The solvers inside other libraries: a drop-in scheduler for diffusers pipelines."""

from .scheduler import PlanScheduler

__all__ = ["PlanScheduler"]
