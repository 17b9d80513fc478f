r"""The estimation itself: a generator over samples and nodes that never sees a network.

Samples come in groups of a fixed size. Sample i has its own x0, noise n and signs v, the same at
every node (common random numbers): l is then a smooth function of lambda however few samples
there are, and its derivative, which enters s and b, is a difference of like errors.

    for each group of samples
        for each batch of the group, for each node: merge the batch's moments into the group's
        for each node: l, l', s, b of the group alone, which give the standard errors;
                       merge the group's moments into the total

As many nodes are worked on at once as fit a network call; their records have the nodes as the
first axis after the rows.

The errors are those of batch means: with G groups of m samples the estimates l_g, s_g, b_g of the
groups scatter by what m samples leave uncertain, the noise of l' included, and the standard error
from all n samples is that scatter times sqrt(m / n).

Moments are merged sample by sample and group by group in a fixed order, so the result is the
same to the last bit whatever the batch size, the number of processes and the interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plan import Node
from ..processes import Ranks, present
from .accumulators import Records, State, block_size
from .checkpoint import of_process
from .ems import EMS
from .estimates import SPREAD, precise, statistics
from .moments import RECORD, Level, estimate, merge, moments, with_slopes
from .network_fingerprint import fingerprint
from .probes import Measured, Probe
from .setup import Setup

Requests = Generator[Any, Any, EMS]
"""Yields `Batch` (sent outputs) and `Probe` (sent `Measured`), returns the statistics."""

WHEN = "the estimation of statistics"
"""Where processes meet, in their messages."""


def rounds(
    setup: Setup, folder: Path, watch: Callable[[int], None] = lambda done: None
) -> Requests:
    """Generator of the whole estimation, with its accumulators in ``folder``.

    ``watch(done)`` is told after every node of a batch how many samples times nodes this process
    has done. Where the work is kept, the generator can be made again after a kill and goes on.
    """
    world = present()
    own = of_process(folder)
    settings = {**setup.settings, "group": setup.group, "processes": world.size}
    if setup.durable:
        settings["fingerprint"] = yield from fingerprint(setup, own)
    nodes, shape = len(setup.nodes), setup.pooled
    tables: dict[str, tuple[int, ...]] = {"group": (nodes, RECORD, *shape)}
    if world.rank == 0:
        tables["total"] = (nodes, RECORD + 6, *shape)
    notes = {"rows": setup.rows}
    store = Records(own, tables, settings, notes=notes, durable=setup.durable)
    _synchronise(setup, store, world)
    while True:
        total = _from_first(world, store.state["total"])
        if total >= setup.samples or _precise(setup, store, world, total):
            return _result(setup, store, world, total)
        yield from _sample_group(setup, store, world, watch)
        _merge_round(setup, store, world)


def _begin(number: int, total: int) -> State:
    """The state at the start of a round, in which every process samples one group.

    ``done`` counts the samples of the group that are merged at all nodes; those up to ``stop``
    are merged at the nodes before ``node``. ``merged`` counts the records (groups of the round,
    node by node) that the first process has merged, ``total`` the samples in all groups merged.
    """
    return {"round": number, "done": 0, "stop": 0, "node": 0, "merged": 0, "total": total}


def _synchronise(setup: Setup, store: Records, world: Ranks) -> None:
    """Take up the stored state, or begin; all processes in the round of the first one.

    A process enters a round only when the first one has merged the whole round before, so it can
    be behind (killed before its first commit of the round) but never ahead.
    """
    state = store.state or _begin(0, 0)
    number, total = (_from_first(world, state[key]) for key in ("round", "total"))
    if state["round"] != number:
        state = _begin(number, total)
    store.state = state
    held = state["stop"] if state["node"] else state["done"]
    held = _first_sample(setup, world, number) + held if held else 0
    if setup.samples < max(held, total):
        raise ValueError(
            f"samples={setup.samples}: the checkpoint holds {max(held, total)} already, need at "
            "least as many"
        )
    if total % setup.group and setup.samples > total:
        raise ValueError(
            f"samples={setup.samples}: the checkpoint ended with an incomplete group at {total}; "
            f"only a multiple of group={setup.group} can be extended"
        )


def _from_first(world: Ranks, value: int) -> int:
    return int(world.first(WHEN, value))


def _first_sample(setup: Setup, world: Ranks, number: int) -> int:
    return (number * world.size + world.rank) * setup.group


def _sample_group(
    setup: Setup, store: Records, world: Ranks, watch: Callable[[int], None]
) -> Generator[Any, Any, None]:
    """The moments of this process's group, batch by batch and node by node."""
    state, nodes = store.state, setup.nodes
    low = _first_sample(setup, world, state["round"])
    size = min(setup.group, setup.samples - low)
    while state["done"] < size:
        done = state["done"]
        stop = state["stop"] if state["node"] else min(done + setup.batch, size)
        samples = range(low + done, low + stop)
        x0 = yield from setup.data.source(samples)
        n, signs = setup.drawn(samples)
        for k in range(state["node"], len(nodes), setup.block):
            here = nodes[k : k + setup.block]
            x = setup.states(x0, n, here)
            measured = yield Probe(x, signs, here, samples)
            world.heed(WHEN)
            records = store.read("group", k, len(here))
            if done == 0:
                records[:] = 0  # what an earlier group left there
            for i, part in enumerate(_moments(setup, x, measured, here)):
                merge(_by_row(records), (done + i) * setup.pool, part, setup.pool)
            if k + len(here) < len(nodes):
                state = {**state, "stop": stop, "node": k + len(here)}
            else:
                state = {**state, "done": stop, "stop": stop, "node": 0}
            store.commit("group", k, records, state)
            finished = state["done"] * len(nodes) + state["node"] * len(samples)
            watch(state["total"] * len(nodes) + world.size * finished)


def _by_row(records: np.ndarray) -> np.ndarray:
    """Records (K, rows, ...) as one record of K nodes (rows, K, ...): a view."""
    return records.swapaxes(0, 1)


def _moments(
    setup: Setup, x: Tensor, measured: Measured, nodes: Sequence[Node]
) -> Iterator[np.ndarray]:
    """One record a sample, so that the sums do not depend on how samples are batched."""
    precise = torch.promote_types(setup.dtype, torch.float32)
    parts = [part.detach().to(precise) for part in (x, *measured)]
    values = torch.stack(parts).cpu().double().numpy()
    rho = np.array([math.hypot(node.alpha, node.sigma) for node in nodes])
    values[0] /= rho.reshape(-1, *[1] * (x.ndim - 1))
    for node, finite in zip(nodes, np.isfinite(values).swapaxes(0, 1), strict=True):
        if not finite.all():
            raise ValueError(f"network returned values that are not finite at t={node.t:.6g}")
    axes = tuple(1 + axis for axis in setup.axes)
    for i in range(x.shape[1]):
        yield moments(values[[0, 1, 3], :, i], values[2, :, i], axes)


def _merge_round(setup: Setup, store: Records, world: Ranks) -> None:
    """Merge the groups of all processes into the first one's total, in order."""
    number, nodes = store.state["round"], len(setup.nodes)
    for rank in range(world.size):
        low = (number * world.size + rank) * setup.group
        size = min(setup.group, setup.samples - low)
        if size <= 0 or _precise(setup, store, world, _from_first(world, store.state["total"])):
            break
        pairs = with_slopes(_records(store, world, rank), setup.spacing)
        k, together = 0, block_size((RECORD, *setup.pooled))
        while block := list(islice(pairs, together)):
            seen = max(0, store.state["merged"] - rank * nodes - k)  # before a kill
            if world.rank == 0 and seen < len(block):
                records, slopes = map(np.stack, zip(*block[seen:], strict=True))
                _merge_block(setup, store, k + seen, records, slopes, size)
            k += len(block)
    # The first process waits for none, all others for it: see _synchronise.
    total = _from_first(world, store.state["total"])
    store.state = _begin(number + 1, total)


def _records(store: Records, world: Ranks, rank: int) -> Iterator[np.ndarray]:
    """The group of process ``rank``, node by node, in every process."""
    for block in store.blocks("group"):
        yield from world.broadcast(WHEN, block, rank)


def _merge_block(
    setup: Setup, store: Records, k: int, records: np.ndarray, slopes: np.ndarray, size: int
) -> None:
    """Merge the records of a group at the nodes from ``k`` on into the total."""
    state, stop = store.state, k + len(records)
    stored, count = store.read("total", k, len(records)), state["total"]
    total, group = _by_row(stored), _by_row(records)
    merge(total[:RECORD], count * setup.pool, group, size * setup.pool)
    if size == setup.group:
        levels = np.array([(node.alpha, node.sigma) for node in setup.nodes[k:stop]]).T
        columns = levels.reshape(2, -1, *[1] * len(setup.pooled))
        found = estimate(group, slopes, size * setup.pool, Level(*columns))
        values = np.stack([found.l, found.s, found.b])
        mean, scatter = total[SPREAD][:3], total[SPREAD][3:]
        step = values - mean
        mean += step / (count // setup.group + 1)
        scatter += step * (values - mean)
    done = count + size if stop == len(setup.nodes) else count
    merged = state["merged"] + len(records)
    store.commit("total", k, stored, {**state, "merged": merged, "total": done})


def _precise(setup: Setup, store: Records, world: Ranks, total: int) -> bool:
    """Whether the stopping rule is met; only between two groups, when the total is whole."""
    if setup.options.stop is None:
        return False
    whole = world.rank == 0 and store.state["merged"] % len(setup.nodes) == 0
    return bool(_from_first(world, whole and precise(setup, store, total)))


def _result(setup: Setup, store: Records, world: Ranks, total: int) -> EMS:
    """The statistics, in every process."""
    values = np.empty((6, len(setup.nodes), *setup.pooled))
    if world.rank == 0:
        for k, (found, scatter) in enumerate(statistics(setup, store, total)):
            values[:3, k], values[3:, k] = found[:3], 0 if scatter is None else scatter
    for k in range(len(setup.nodes)):
        values[:, k] = world.broadcast(WHEN, values[:, k])
    l, s, b, *errors = map(torch.from_numpy, values)
    about = {**setup.settings, "samples": total}
    known = dict(zip("lsb", errors, strict=True)) if total >= 2 * setup.group else {}
    lam = torch.linspace(setup.path.first, setup.path.last, len(setup.nodes), dtype=torch.float64)
    return EMS(lam, l, s, b, errors=known, about=about)
