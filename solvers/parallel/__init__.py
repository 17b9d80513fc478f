"""Parallel in time: Picard sweeps over any plan; see docs/parallel.md."""

from .sampling import sample_parallel
from .sharing import share
from .sweeps import ParallelStats, Sweep, picard

__all__ = ["ParallelStats", "Sweep", "picard", "sample_parallel", "share"]
