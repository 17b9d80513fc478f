"""Lists of sigma that flow pipelines send to every scheduler where their user gave none.

Such a list is the pipeline's own rule for n evaluations and no wish of the user: a solver with
several evaluations a step need not go through every entry of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from logsnr.solvers.spacings import linear_quadratic

RULES: tuple[Callable[[int], np.ndarray], ...] = (
    lambda n: np.linspace(1, 1 / n, n),  # Flux, Qwen-Image, LTX and most others
    lambda n: 1 - linear_quadratic(n)[:-1],  # Mochi
)
ROUNDING = 1e-6
"""They are lists of float32."""


def sent_unasked(sigmas: Sequence[float]) -> bool:
    """Whether a pipeline sends ``sigmas`` (without the end) by itself, for their number."""
    given = np.asarray(sigmas, dtype=np.float64)
    return any(np.allclose(given, rule(len(given)), rtol=0, atol=ROUNDING) for rule in RULES)
