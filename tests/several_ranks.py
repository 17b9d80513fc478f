"""Two processes that work together in a test, with the environment that torchrun sets.

They write down what they see; the test reads that.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

from logsnr.solvers.processes import Ranks, ranks

Scenario = Callable[[Ranks], None]
"""What each rank does: a function of a module, so that another process can import it."""


def start_ranks(scenario: Scenario, folder: Path, timeout: float = 25) -> list[BaseProcess]:
    """Both ranks, forked from a process that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logsnr.solvers.parallel"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    address["TEST_FOLDER"] = str(folder)  # for what a scenario writes besides
    processes = []
    for rank in range(2):
        environment = address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (scenario, timeout, environment, folder / f"rank-{rank}")
        processes.append(context.Process(target=_play, args=arguments))
        processes[-1].start()
    return processes


def _play(scenario: Scenario, timeout: float, environment: Mapping[str, str], seen: Path) -> None:
    os.environ.update(environment)
    with seen.open("w") as file, redirect_stdout(file), ranks(timeout=timeout) as here:
        scenario(here)


def ended(processes: Sequence[BaseProcess], within: float = 120) -> list[int | None]:
    """How each ended within so many seconds; none may outlive the test."""
    deadline = time.monotonic() + within
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def seen(folder: Path) -> list[list[str]]:
    """The lines that each rank has written."""
    return [(folder / f"rank-{rank}").read_text().splitlines() for rank in range(2)]
