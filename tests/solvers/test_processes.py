"""Processes that share work: what each gets, and that none is left waiting for one that failed."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from several_ranks import ended, seen, start_ranks

from logsnr.solvers.processes import ROOM, RankError, Ranks, present, ranks


def share_work(here: Ranks) -> None:
    """Everything that goes well: lengths of data below, at and beyond what a header holds."""
    for length in (0, 1, ROOM, ROOM + 1, 100_000):
        own = bytes([here.rank + 1]) * (length // (1 + here.rank))
        assert here.gather("lengths", own) == [b"\1" * length, b"\2" * (length // 2)]
    assert here.first("numbers", -0.1 * (1 + here.rank)) == -0.1
    values = np.arange(6.0).reshape(2, 3) * (1 + here.rank)
    for source in range(2):
        expected = np.arange(6.0).reshape(2, 3) * (1 + source)
        assert np.array_equal(here.broadcast("arrays", values, source), expected)
    here.check_same("settings", "settings", {"nodes": 3})
    here.heed("nobody failed")
    here.barrier("the end")
    assert present() is here
    print("done", flush=True)


def fail_and_go_on(here: Ranks) -> None:
    """Rank 1 fails; rank 0, in the middle of work that would take an hour, ends. And again."""
    for attempt in ("first", "second"):
        began = time.monotonic()
        try:
            # The outer one has nothing to tell that the others do not know.
            with here.together("all of it"), here.together(f"the {attempt} shards"):
                if here.rank == 1:
                    raise OSError("no space left in this test")
                while time.monotonic() - began < 3600:
                    here.heed(f"the {attempt} shards")
                    time.sleep(0.01)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
    try:
        here.barrier(f"the exchange that rank {here.rank} is at")
    except RankError as error:
        print(error, flush=True)
    try:
        here.check_same("the settings", "settings", {"nodes": 3 + here.rank})
    except RankError as error:
        print(error, flush=True)
    try:
        here.broadcast("the arrays", np.zeros(3 + here.rank))
    except RankError as error:
        print(error, flush=True)
    here.barrier("the end")


def die(here: Ranks) -> None:
    """Rank 1 is killed while rank 0 waits."""
    here.barrier("the start")
    if here.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        here.gather("the sums", b"sums")
    except RankError as error:
        print(error, flush=True)


@pytest.mark.distributed
def test_every_rank_gets_the_same(tmp_path) -> None:
    assert ended(start_ranks(share_work, tmp_path)) == [0, 0]
    assert seen(tmp_path) == [["done"], ["done"]]


@pytest.mark.distributed
def test_a_failure_ends_the_work_of_all_ranks_and_not_the_group(tmp_path) -> None:
    assert ended(start_ranks(fail_and_go_on, tmp_path)) == [0, 0]
    first, second = seen(tmp_path)
    raised = "OSError: no space left in this test"
    assert second[:2] == [raised, raised]
    for attempt, line in zip(("first", "second"), first[:2], strict=True):
        assert line == f"RankError: rank 1 failed at the {attempt} shards: {raised}"
    for lines, other in ((first, 1), (second, 0)):
        elsewhere, settings, arrays = lines[2:]
        assert f"rank {other} works on other data" in elsewhere and "calls" in elsewhere
        assert f"the settings: rank {other} works on other data" in settings
        assert settings.endswith("the same settings")
        assert f"the arrays: rank {other} works on other data" in arrays


@pytest.mark.distributed
def test_a_killed_rank_is_named(tmp_path) -> None:
    assert ended(start_ranks(die, tmp_path)) == [0, -signal.SIGKILL]
    (text,), nothing = seen(tmp_path)
    assert "the sums: lost rank 1, which did not arrive" in text and nothing == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 100])
def test_shares_are_all_numbers_in_order_and_equal_but_for_one(size: int, count: int) -> None:
    shares = [Ranks(rank, size).mine(count) for rank in range(size)]
    assert [k for share in shares for k in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares == [Ranks(0, size).mine(count, rank) for rank in range(size)]


def test_one_process_needs_no_process_group() -> None:
    here = present()
    assert (here.rank, here.size, list(here.mine(3))) == (0, 1, [0, 1, 2])
    assert here.gather("alone", b"data") == [b"data"] and here.first("alone", 0.3) == 0.3
    assert np.array_equal(here.broadcast("alone", np.ones(2)), np.ones(2))
    here.barrier("alone")
    here.heed("alone")
    here.check_same("alone", "settings", 1)
    with pytest.raises(OSError, match="full"), here.together("alone"):
        raise OSError("full")


def test_one_process_needs_no_process_group_and_sets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with ranks(threads=before + 1) as here:
        assert (here.rank, here.size) == (0, 1)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_bad_arguments_are_refused() -> None:
    for wrong in ({"timeout": 0.0}, {"threads": 0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))), ranks(**wrong):
            pass
