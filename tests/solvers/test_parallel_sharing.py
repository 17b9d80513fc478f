"""Groups shared over processes: the same bits on every world size, and no rank left hanging."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from several_ranks import ended, seen, start_ranks
from shared_sweeps import PLAN, errors, halve, rank_0_is_killed, rank_1_hangs, states

from logsnr.solvers.parallel import share
from logsnr.solvers.processes import Ranks

EXAMPLE = ROOT / "docs" / "examples" / "parallel_devices.py"
CLEAN = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def seconds_to_notice(text: str) -> float:
    return float(text.rpartition("after ")[2].partition(" s ")[0])


@pytest.mark.distributed
def test_two_ranks_of_torchrun_give_the_bits_of_one_process(tmp_path, monkeypatch, capfd) -> None:
    """With a float32 UNet, whose outputs change with the size of the batch."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [str(EXAMPLE), "--nfe", "10", "--out"]
    launched = subprocess.Popen([sys.executable, *torchrun, *command, str(two)], env=CLEAN)
    try:
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", [*command, str(one)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        assert launched.wait(timeout=300) == 0
    finally:
        launched.kill()
    printed = capfd.readouterr().out
    assert "1 ranks: " in printed and "2 ranks: " in printed
    assert torch.equal(load_file(one)["x0"], load_file(two)["x0"])


@pytest.mark.distributed
def test_errors_disagreements_and_a_killed_rank_reach_the_other(tmp_path) -> None:
    assert ended(start_ranks(errors, tmp_path)) == [0, -signal.SIGKILL]
    for rank, (failed, start, sweep, lost) in enumerate(seen(tmp_path)):
        assert "rank 1 failed at sweep 1: ValueError: no memory left in this test" in failed
        assert failed.endswith("cause None") == (rank == 0)
        assert f"the start: rank {1 - rank} works on other data" in start
        assert f"sweep 1: rank {1 - rank} works on other data" in sweep
        assert lost == "1: killed" if rank else "sweep 2: lost rank 1, which did not" in lost
        assert rank or seconds_to_notice(lost) < 30


@pytest.mark.distributed
def test_rank_0_is_missed_though_it_keeps_the_store(tmp_path) -> None:
    assert ended(start_ranks(rank_0_is_killed, tmp_path)) == [-signal.SIGKILL, 0]
    (text,) = seen(tmp_path)[1]
    assert "sweep 2: lost rank 0" in text and seconds_to_notice(text) < 30


@pytest.mark.distributed
def test_a_rank_that_hangs_is_given_up_after_the_timeout(tmp_path) -> None:
    processes = start_ranks(rank_1_hangs, tmp_path, timeout=2)
    try:
        assert ended(processes[:1]) == [0]
    finally:
        processes[1].kill()
    (text,) = seen(tmp_path)[0]
    assert "sweep 2: lost rank 1, which did not arrive" in text and seconds_to_notice(text) < 30


@pytest.mark.parametrize("count", [1, 3, 8, 10, 100])
def test_chunks_depend_on_the_number_of_groups_alone(count: int) -> None:
    sizes = []

    def evaluate(x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
        sizes.append(len(x))
        return halve(x, times) * torch.tensor(times)[:, None, None]

    x, times = torch.randn(count, 2, 3), torch.rand(count).tolist()
    result = share(evaluate, Ranks(), PLAN, states())(x, times)
    assert torch.equal(result, halve(x, times) * torch.tensor(times)[:, None, None])
    assert len(sizes) == min(count, 8) and sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    for size in (1, 2, 4, 8):  # equal shares for every number of ranks that divides parts
        share_of = [sum(sizes[i : i + 8 // size]) for i in range(0, 8, 8 // size)]
        assert count < 8 or max(share_of) - min(share_of) <= 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="parts=1"):
        share(halve, Ranks(size=2), PLAN, states(), parts=1)
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        share(lambda x, times: x[0, :1], Ranks(), PLAN, states())(states(), [0.5] * 10)
