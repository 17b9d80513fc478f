"""One estimation over the processes of torch.distributed, or over this one alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist


class World:
    """The processes that share an estimation: ``rank`` of ``size``; one if none were started."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1
        gpu = active and dist.get_backend() == "nccl"
        self.device = torch.device("cuda" if gpu else "cpu")

    def broadcast(self, values: np.ndarray, source: int) -> np.ndarray:
        """``values`` of process ``source``, in every process; the others give their shape."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(np.array(values, dtype=np.float64)).to(self.device)
        dist.broadcast(tensor, source)
        return tensor.cpu().numpy()
