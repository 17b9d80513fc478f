r"""Where the default grid is put for a model of which only the config is known.

The location is the lambda about which the image is decided (`logsnr.solvers.logistic`). It follows
the data: the coarser it is looked at, the less noise hides it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

VP = -0.3
FLOW = 0.35
SHARE_OF_SHIFT = 0.4


def flow_location(shift: float) -> float:
    """For a flow model whose pipeline shifts its times by ``shift``."""
    return FLOW - SHARE_OF_SHIFT * math.log(shift)


def variance_preserving_location(config: Mapping[str, Any], unit: float = 1.0) -> float:
    """For every other model, in data of which ``unit`` is the standard deviation."""
    return VP + math.log(unit)
