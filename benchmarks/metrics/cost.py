"""What quality costs: samples a second, and the time to reach a quality."""

from __future__ import annotations

import math
from collections.abc import Iterable


def throughput(samples: int, seconds: float) -> float:
    """Samples a second; ValueError for no samples, or seconds not positive and finite."""
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds is {seconds}; it must be positive and finite")
    return samples / seconds


def cost_to_quality(points: Iterable[tuple[float, float]], target: float) -> float | None:
    """The least cost (seconds a sample, or NFE) at which a measured point is as good as ``target``.

    points: (cost, value) of one solver, a lower value being better. Nothing is interpolated, as a
    solver can only be run at the points; None if none of them reaches it.
    """
    return min((cost for cost, value in points if value <= target), default=None)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices, by rising cost, of the points (cost, value) that no other one dominates.

    A point is dominated by one that is no worse in both and better in one. Of equal points the
    first stays.
    """
    listed = list(points)
    front: list[int] = []
    for index in sorted(range(len(listed)), key=lambda i: (*listed[i], i)):
        if not front or listed[index][1] < listed[front[-1]][1]:
            front.append(index)
    return front
