"""What the ranks of tests/solvers/test_parallel_sharing.py do; see several_ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Sequence

import torch

from logsnr.solvers import VPLinear, make_plan
from logsnr.solvers.parallel import share
from logsnr.solvers.processes import RankError, Ranks
from logsnr.solvers.requests import Batch, drive_batches

PLAN = make_plan("ddim", VPLinear(), nfe=10)
NODES = [row.node for row in PLAN.rows[:-1]]


def sweeps(x: torch.Tensor, count: int) -> Generator[Batch, torch.Tensor, torch.Tensor]:
    for _ in range(count):
        x = x + (yield Batch(x, NODES))
    return x


def states(seed: int = 0) -> torch.Tensor:
    return torch.randn(len(NODES), 2, 3, generator=torch.Generator().manual_seed(seed))


def halve(x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    return 0.5 * x


def raises_on_rank_1(here: Ranks) -> None:
    """An exception on one rank reaches the other; afterwards both can go on."""

    def evaluate(x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
        if here.rank == 1:
            raise ValueError("no memory left in this test")
        return halve(x, times)

    try:
        drive_batches(sweeps(states(), 3), share(evaluate, here, PLAN, states()))
    except RankError as error:
        print(f"{here.rank}: {error} | cause {error.__cause__!r}", flush=True)
    result = drive_batches(sweeps(states(), 2), share(halve, here, PLAN, states()))
    assert torch.equal(result, 1.5 * (1.5 * states()))


def other_start(here: Ranks) -> None:
    try:
        share(halve, here, PLAN, states(seed=here.rank))
    except RankError as error:
        print(f"{here.rank}: {error}", flush=True)


def drifted(here: Ranks) -> None:
    """One rank goes on from states of its own."""
    x = states()
    evaluate = share(halve, here, PLAN, x)
    x[0, 0, 0] += 1e-6 * here.rank
    try:
        drive_batches(sweeps(x, 2), evaluate)
    except RankError as error:
        print(f"{here.rank}: {error}", flush=True)


def killed(here: Ranks, lost: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Rank ``lost`` is killed during its second sweep. (It stops itself: no race in the test.)"""
    calls = 0

    def evaluate(x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if here.rank == lost and calls > 4:
            print(f"{here.rank}: killed", flush=True)
            os.kill(os.getpid(), how)
        return halve(x, times)

    started = time.monotonic()
    try:
        drive_batches(sweeps(states(), 5), share(evaluate, here, PLAN, states()))
    except RankError as error:
        print(f"{here.rank}: after {time.monotonic() - started:.1f} s {error}", flush=True)


def errors(here: Ranks) -> None:
    """All that can go wrong, one after the other."""
    raises_on_rank_1(here)
    other_start(here)
    drifted(here)
    killed(here, lost=1)


def rank_0_is_killed(here: Ranks) -> None:
    killed(here, lost=0)


def rank_1_hangs(here: Ranks) -> None:
    killed(here, lost=1, how=signal.SIGSTOP)
