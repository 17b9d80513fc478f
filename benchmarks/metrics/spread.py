"""Numbers over seeds: a value is reported with its spread, never alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """mean, standard deviation (None for one value), least, greatest and number of the values."""

    mean: float
    deviation: float | None
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.deviation:.2g}"


def spread(values: Iterable[float]) -> Spread:
    """The spread of one value a seed: unbiased variance; ValueError for none, or one not finite."""
    found = [float(value) for value in values]
    if not found:
        raise ValueError("values is empty; there must be at least one")
    bad = [value for value in found if not math.isfinite(value)]
    if bad:
        raise ValueError(f"values has {bad[0]}; all must be finite")
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.fmean(found), deviation, min(found), max(found), len(found))
