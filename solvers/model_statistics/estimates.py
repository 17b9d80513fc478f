"""From the moments of all groups to l, s and b with their standard errors, node by node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .accumulators import Records
from .moments import RECORD, Estimate, estimate, with_slopes
from .setup import Setup

SPREAD = slice(RECORD, RECORD + 6)
"""Rows of a record of the total with the means of l, s, b over the groups, and their scatter."""

LEAST_GROUPS = 8
"""Groups before a stopping rule may act on standard errors that come from them."""


def statistics(
    setup: Setup, store: Records, total: int
) -> Iterator[tuple[Estimate, np.ndarray | None]]:
    """(statistics, standard errors of l, s, b) node by node, from the first process's total."""
    groups = total // setup.group
    rows = (record for block in store.blocks("total") for record in block)
    for node, (record, slope) in zip(setup.nodes, with_slopes(rows, setup.spacing), strict=True):
        found = estimate(record, slope, total * setup.pool, node)
        if groups < 2:
            yield found, None
            continue
        variance = record[SPREAD][3:] / (groups - 1)
        yield found, np.sqrt(variance * (setup.group / total))


def precise(setup: Setup, store: Records, total: int) -> bool:
    """Whether the standard errors are below ``stop``: the median of the nodes' medians."""
    if setup.options.stop is None or total < LEAST_GROUPS * setup.group:
        return False
    medians = []
    for found, errors in statistics(setup, store, total):
        assert errors is not None
        scale = np.sqrt(found.f1_square)
        errors[2] = np.where(scale > 0, errors[2] / np.where(scale > 0, scale, 1), 0)
        medians.append(np.median(errors.reshape(3, -1), axis=1))
    # Not the mean: s is ill determined, and irrelevant, at single coordinates and nodes.
    return bool((np.median(medians, axis=0) <= setup.options.stop).all())
