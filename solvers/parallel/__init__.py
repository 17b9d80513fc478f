"""Parallel in time: Picard sweeps over any plan; see docs/parallel.md."""

from .picard import ParallelStats, Sweep, picard
from .sampling import sample_parallel
from .sharing import share

__all__ = ["ParallelStats", "Sweep", "picard", "sample_parallel", "share"]
