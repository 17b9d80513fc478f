"""Groups shared over processes: the same bits on every world size, and no rank left hanging."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_worker import PLAN, halve, states

from logsnr.solvers.parallel.shared import Ranks, ranks, share

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "docs" / "examples" / "parallel_devices.py"
CLEAN = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def start_ranks(*arguments: str) -> list[subprocess.Popen[str]]:
    """Two ranks of shared_worker.py with the environment that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "shared_worker.py"), *arguments],
            env=CLEAN | address | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def outputs(processes: Sequence[subprocess.Popen[str]], within: float = 120) -> list[str]:
    """What each printed within so many seconds, imports included; none may outlive the test."""
    deadline = time.monotonic() + within
    try:
        return [p.communicate(timeout=deadline - time.monotonic())[0] for p in processes]
    finally:
        for process in processes:
            process.kill()


def seconds_to_notice(text: str) -> float:
    return float(text.rpartition("after ")[2].partition(" s ")[0])


@pytest.mark.distributed
def test_two_ranks_of_torchrun_give_the_bits_of_one_process(tmp_path: Path) -> None:
    """With a float32 UNet, whose outputs change with the size of the batch."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in (["--out", str(one)], ["--out", str(two)]):
        launch = torchrun if str(two) in command else []
        full = [sys.executable, *launch, str(EXAMPLE), *command, "--nfe", "12"]
        done = subprocess.run(full, env=CLEAN, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"{2 if launch else 1} ranks: " in done.stdout
    assert torch.equal(load_file(one)["x0"], load_file(two)["x0"])


@pytest.mark.distributed
def test_errors_disagreements_and_a_killed_rank_reach_the_other() -> None:
    processes = start_ranks("errors", "25")
    texts = [text.splitlines() for text in outputs(processes)]
    for rank, (failed, start, sweep, lost) in enumerate(texts):
        assert "rank 1 failed at sweep 1: ValueError: no memory left in this test" in failed
        assert failed.endswith("cause None") == (rank == 0)
        assert f"the start: rank {1 - rank} works on other data" in start
        assert f"sweep 1: rank {1 - rank} works on other data" in sweep
        assert lost == "1: killed" if rank else "sweep 2: lost rank 1, which did not" in lost
        assert rank or seconds_to_notice(lost) < 30
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]


@pytest.mark.distributed
def test_rank_0_is_missed_though_it_keeps_the_store() -> None:
    processes = start_ranks("kill", "25")
    text = outputs(processes)[1]
    assert "sweep 2: lost rank 0" in text and seconds_to_notice(text) < 30
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0]


@pytest.mark.distributed
def test_a_rank_that_hangs_is_given_up_after_the_timeout() -> None:
    processes = start_ranks("stop", "2")
    text = outputs(processes[:1])[0]
    assert "sweep 2: lost rank 1, which did not arrive" in text and seconds_to_notice(text) < 30
    processes[1].kill()
    processes[1].communicate()


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


def test_one_process_needs_no_process_group_and_sets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with ranks(threads=before + 1) as here:
        assert (here.rank, here.size) == (0, 1)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="parts=1"):
        share(halve, Ranks(size=2), PLAN, states(), parts=1)
    for wrong in ({"timeout": 0.0}, {"threads": 0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))), ranks(**wrong):
            pass
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        share(lambda x, times: x[0, :1], Ranks(), PLAN, states())(states(), [0.5] * 10)
