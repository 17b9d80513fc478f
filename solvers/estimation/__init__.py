r"""Estimation of the empirical model statistics of DPM-Solver-v3 for any network.

    arguments     what was asked for, checked          data, conditions   the samples
    process       the loop over samples and nodes      probes, ways       what is measured at a state
    statistics    moments, and l, s, b from them       records, shared    on disk, over processes
"""

from .arguments import OWN_NFE
from .estimate import estimate_ems, estimation

__all__ = ["OWN_NFE", "estimate_ems", "estimation"]
