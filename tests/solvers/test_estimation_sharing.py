"""An estimation over several processes: the result of one, and none left waiting for the other."""

from __future__ import annotations

import signal

import pytest
import torch
from estimation_cases import (
    DATA,
    SMALL,
    disturbed_runs,
    estimate_ems,
    killed_once,
    network_of,
    same,
    shared_run,
)
from several_ranks import ended, seen, start_ranks

from logsnr.solvers import EMS


@pytest.mark.distributed
def test_two_processes_give_the_result_of_one(tmp_path):
    """Five groups over two processes: the last round has one group only."""
    torch.multiprocessing.spawn(shared_run, (str(tmp_path),), nprocs=2)
    whole = estimate_ems(network_of(), DATA, **SMALL | {"check": True})
    for rank in range(2):
        found = type(whole).load(tmp_path / f"{rank}.safetensors")
        assert same(whole, found)
        assert whole.verdict is not None and found.verdict == whole.verdict


@pytest.mark.distributed
def test_what_fails_on_one_process_ends_the_other_at_once_and_leaves_the_group(tmp_path):
    """In the network, under both drivers; in the data; and by other options."""
    assert ended(start_ranks(disturbed_runs, tmp_path)) == [0, 0]
    first, second = seen(tmp_path)
    raised = "MemoryError: no memory left in this test"
    reached = f"RankError: rank 1 failed at the estimation of statistics: {raised}"
    assert first[0] == reached and second[0] == raised
    # A driver of the generator raises elsewhere; the generator is closed, which says as much.
    assert "rank 1 failed at the estimation of statistics: GeneratorExit" in first[1]
    assert second[1] == raised
    assert "rank 1 failed at the estimation of statistics: ValueError: data='nowhere'" in first[2]
    assert "ValueError: data='nowhere' does not exist" in second[2]
    for lines, other in ((first, 1), (second, 0)):
        for line in lines[3:]:
            assert f"rank {other} works on other data" in line and "data and options" in line
        assert len(lines) == 5
    whole = estimate_ems(network_of(), DATA, **SMALL)
    assert all(same(whole, EMS.load(tmp_path / str(rank))) for rank in range(2))


@pytest.mark.distributed
def test_a_killed_process_is_named_and_both_go_on_to_the_same_result(tmp_path):
    assert ended(start_ranks(killed_once, tmp_path)) == [0, -signal.SIGKILL]
    (line,), nothing = seen(tmp_path)
    assert nothing == []
    assert "the estimation of statistics: lost rank 1, which did not arrive" in line
    assert ended(start_ranks(killed_once, tmp_path)) == [0, 0]
    whole = estimate_ems(network_of(), DATA, **SMALL)
    for rank in range(2):
        assert same(whole, EMS.load(tmp_path / f"{rank}.safetensors"))
