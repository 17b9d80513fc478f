r"""Estimation of the empirical model statistics of DPM-Solver-v3 for any network.

``arguments`` checks what was asked for, ``data`` and ``conditions`` provide the samples,
``process`` is the loop over samples and nodes, ``probes`` and ``ways`` say what is measured at a
state, ``statistics`` turns moments into l, s and b, ``records`` keeps them on disk and ``shared``
shares the work over processes.
"""

from .contest import check_ems
from .estimate import estimate_ems, estimation
from .setup import OWN_NFE

__all__ = ["OWN_NFE", "check_ems", "estimate_ems", "estimation"]
