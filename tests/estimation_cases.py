"""A small estimation that tests run in this process and, importing little, in others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch

from logsnr.solvers import EMS, Denoiser, VPLinear, estimate_ems, estimation
from logsnr.solvers.processes import RankError, Ranks
from logsnr.solvers.requests import drive_batches, evaluator

SCHEDULE = VPLinear()
BY_DIFFERENCE = {"jacobian": "difference", "derivative": "difference"}
SMALL = {"t_start": 1.0, "t_end": 1e-3, "nodes": 5, "samples": 40, "group": 8, **BY_DIFFERENCE}
SMALL |= {"check": False}
DATA = torch.randn(48, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def rowwise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network whose rows do not depend on the batch they are in, to the last bit."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    return x / (1 + t * x * x) + 0.1 * t * x.roll(1, -1)


def same(a: EMS, b: EMS) -> bool:
    """Whether two statistics are the same to the last bit."""
    pairs = [(getattr(a, k), getattr(b, k)) for k in ("lam", "l", "s", "b")]
    pairs += [(a.errors[k], b.errors[k]) for k in "lsb"]
    return all(torch.equal(u, v) for u, v in pairs)


def network_of(network=rowwise, **options) -> Denoiser:
    return Denoiser(network, SCHEDULE, network_time=lambda t: t, **options)


def shared_run(rank: int, folder: str) -> None:
    """One of two processes that share the estimation."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    estimate_ems(network_of(), DATA, **SMALL | {"check": True}).save(f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def after(calls: int, what: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """`rowwise`, that does something else before a call."""
    left = calls

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            what()
        return rowwise(x, t)

    return network


def run_out_of_memory() -> None:
    raise MemoryError("no memory left in this test")


def disturbed_runs(here: Ranks) -> None:
    """Rank 1 fails in its own ways; what each saw."""

    def stopped(work: Callable[[], object]) -> None:
        try:
            work()
        except (RankError, MemoryError, ValueError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)

    def failing() -> Denoiser:
        return network_of(after(9, run_out_of_memory) if here.rank == 1 else slow)

    stopped(lambda: estimate_ems(failing(), DATA, **SMALL | {"samples": 800}))
    small = {k: v for k, v in SMALL.items() if k not in BY_DIFFERENCE} | {"samples": 800}
    stopped(lambda: drive_batches(estimation(SCHEDULE, DATA, **small), evaluator(failing())))
    data = DATA if here.rank == 0 else "nowhere"
    stopped(lambda: estimate_ems(network_of(), data, **SMALL))
    stopped(lambda: estimate_ems(network_of(), DATA, **SMALL | {"nodes": 5 + here.rank}))
    stopped(lambda: estimate_ems(network_of(), DATA, **SMALL | {"samples": 32 + here.rank}))
    estimate_ems(network_of(), DATA, **SMALL).save(f"{os.environ['TEST_FOLDER']}/{here.rank}")


def slow(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`rowwise`, that would take minutes for all samples."""
    time.sleep(0.3)
    return rowwise(x, t)


def killed_once(here: Ranks) -> None:
    """Rank 1 is killed in the middle, if it was not before."""
    folder = os.environ["TEST_FOLDER"]
    kill = here.rank == 1 and not os.path.exists(f"{folder}/killed")

    def end() -> None:
        open(f"{folder}/killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

    network = network_of(after(25, end) if kill else rowwise)
    try:
        ems = estimate_ems(network, DATA, **SMALL | {"batch_size": 4}, checkpoint=f"{folder}/work")
        ems.save(f"{folder}/{here.rank}.safetensors")
    except RankError as error:
        print(error, flush=True)
