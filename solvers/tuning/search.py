"""A search without gradients, coordinate by coordinate, for functions that cost much."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..location_fit import lowest

SMALLEST = 0.1
"""The share of its first length below which a step is not tried any more."""


def coordinate_search(
    function: Callable[[list[float]], float],
    start: Sequence[float],
    steps: Sequence[float],
    *,
    sweeps: int,
) -> list[float]:
    """The point with the least value among those that were tried.

    In each sweep every coordinate in turn is tried a step below and above, and at the vertex of the
    parabola through the three. The step of a coordinate becomes half as long where its middle was
    the best. A value is never asked for twice.
    """
    values: dict[tuple[float, ...], float] = {}

    def value(at: Sequence[float]) -> float:
        key = tuple(at)
        if key not in values:
            values[key] = function(list(at))
        return values[key]

    best, lengths = list(start), list(steps)
    for _ in range(sweeps):
        if all(length < SMALLEST * first for length, first in zip(lengths, steps, strict=True)):
            break
        for i, length in enumerate(lengths):
            if length < SMALLEST * steps[i]:
                continue
            middle = best[i]
            places = [middle - length, middle, middle + length]
            points = {place: [*best[:i], place, *best[i + 1 :]] for place in places}
            vertex = lowest(places, [value(points[place]) for place in places])
            points[vertex] = [*best[:i], vertex, *best[i + 1 :]]
            best = min(points.values(), key=value)
            lengths[i] = length / 2 if best[i] == middle else length
    return best
