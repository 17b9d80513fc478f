r"""The frame of singlestep methods: blocks of steps that forget everything before them.

A block of order p starts at a node, evaluates it and p - 1 inner nodes, and ends at the next
outer node. ``budget`` splits an NFE into blocks as published (Lu et al. 2022a, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from ..grids import Grid
from ..plan import DATA, Node, Row
from .multistep import SPACES, first_order
from .pure_noise import Frame

Stage = Callable[[Sequence[Node], int, Sequence[int]], Row]


def budget(order: int, nfe: int) -> list[int]:
    """Block orders that add up to ``nfe``, with lower orders at the end."""
    if order == 1:
        return [1] * nfe
    if order == 2:
        return [2] * (nfe // 2) + [1] * (nfe % 2)
    threes, tail = {0: (nfe // 3 - 1, [2, 1]), 1: (nfe // 3, [1]), 2: (nfe // 3, [2])}[nfe % 3]
    return [3] * threes + tail


def blocks(grid: Grid, orders: Sequence[int], *, fixed: bool) -> list[list[Node]]:
    """The nodes of every block: its start, its inner nodes, its end.

    In logsnr spacing, and for blocks of one fixed size, the outer nodes are spaced and the inner
    ones placed between them; otherwise the blocks cut up one fine grid.
    """
    if grid.explicit is None and (fixed or grid.spacing in ("logsnr", "exponential")):
        outer = grid.nodes(len(orders))
        pairs = zip(outer, outer[1:], orders, strict=False)
        return [grid.between(start, end, order) for start, end, order in pairs]
    fine = grid.nodes(sum(orders))
    cut: list[list[Node]] = []
    for order in orders:
        first = sum(len(block) - 1 for block in cut)
        cut.append(fine[first : first + order + 1])
    return cut


def singlestep(cut: Sequence[Sequence[Node]], stage: Stage, *, space: str) -> list[Row]:
    """Rows of a singlestep method over blocks of nodes.

    A block is shortened by a first-order step from pure noise (see `pure_noise`) and to sigma = 0,
    and split into first-order steps where two of its nodes coincide, which keeps the number of
    evaluations.
    """
    frame = Frame.of(space, [cut[0][0], cut[-1][-1]])
    parts = [part for block in cut for part in _finite_parts(block, frame)]
    rows = [Row(parts[0][0])]
    for nodes in parts:
        base = len(rows) - 1
        outputs: list[int] = []
        for _ in nodes[1:]:
            newest = len(rows) - 1
            node = rows[newest].node
            target = frame.first_target if frame.starts(node) else SPACES[space]
            rows[newest] = replace(rows[newest], target=target)
            outputs.append(newest)
            if len(nodes) == 2:
                rows.append(_single(rows[newest], newest, nodes[1]))
            else:
                rows.append(stage(nodes, base, outputs))
    return rows


def _finite_parts(block: Sequence[Node], frame: Frame) -> list[Sequence[Node]]:
    if len(block) == 2:
        return [block]
    lams = [node.lam for node in block]
    if any(one == other for one, other in pairwise(lams)):
        return [block[i : i + 2] for i in range(len(block) - 1)]
    if frame.ends(block[-1]):
        return [*_finite_parts(block[:-1], frame), block[-2:]]
    if frame.single_evaluation(block[0], block[-1]):
        return [block[:2], *_finite_parts(block[1:], frame)]
    return [block]


def _single(start: Row, index: int, end: Node) -> Row:
    a, b = first_order(start.target or DATA, start.node, end)
    return Row(end, ((index, a),) if a != 0 else (), ((index, b),))
