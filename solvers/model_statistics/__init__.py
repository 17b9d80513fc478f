r"""The empirical model statistics of DPM-Solver-v3: what they are, and their estimation.

``ems`` holds them, ``integrals`` integrates them over a step, ``verdict`` says whether they help.

Of an estimation, ``options`` and ``setup`` check what was asked for, ``samples`` and ``conditions``
provide the samples, ``rounds`` is the loop over samples and nodes, ``probes`` and ``derivatives``
say what is measured at a state, ``moments`` and ``estimates`` turn it into l, s and b,
``accumulators`` keeps it on disk, and ``contest`` compares the result with the degenerate one.
"""

from .contest import check_ems
from .estimate import estimate_ems, estimation
from .setup import OWN_NFE

__all__ = ["OWN_NFE", "check_ems", "estimate_ems", "estimation"]
