"""A small estimation that tests run in this process and, importing little, in others."""

from __future__ import annotations

import torch

from logsnr.solvers import Denoiser, VPLinear, estimate_ems

SCHEDULE = VPLinear()
BY_DIFFERENCE = {"jacobian": "difference", "derivative": "difference"}
SMALL = {"t_start": 1.0, "t_end": 1e-3, "nodes": 5, "samples": 40, "group": 8, **BY_DIFFERENCE}
SMALL |= {"check": False}
DATA = torch.randn(48, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def rowwise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network whose rows do not depend on the batch they are in, to the last bit."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    return x / (1 + t * x * x) + 0.1 * t * x.roll(1, -1)


def network_of(network=rowwise, **options) -> Denoiser:
    return Denoiser(network, SCHEDULE, network_time=lambda t: t, **options)


def shared_run(rank: int, folder: str) -> None:
    """One of two processes that share the estimation."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    estimate_ems(network_of(), DATA, **SMALL | {"check": True}).save(f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()
