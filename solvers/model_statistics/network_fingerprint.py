"""By what a checkpoint knows its network again."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from ..requests import Batch
from .accumulators import read_settings
from .probes import SampleBatch
from .setup import Setup


def fingerprint(setup: Setup, folder: Path) -> Generator[Batch, Tensor, list[float]]:
    """A few numbers by which the network is known again: its output on noise at a middle node.

    A stored fingerprint is returned as it is stored if it agrees to 1e-3 (devices round
    differently), so that the settings compare equal.
    """
    node = setup.nodes[len(setup.nodes) // 2]
    samples = range(min(setup.batch, setup.samples))
    n, _ = setup.drawn(samples)
    x = setup.states(n, n, [node])
    output = yield SampleBatch(x, [node], samples)
    first = output[0, 0].detach().double().flatten().cpu()
    picked = torch.linspace(0, len(first) - 1, min(16, len(first)), dtype=torch.float32).long()
    values = [float(f"{value:.9g}") for value in first[picked].tolist()]
    stored = (read_settings(folder) or {}).get("fingerprint")
    if stored is not None and len(stored) == len(values):
        scale = max(map(abs, stored))
        if all(abs(u - v) <= 1e-3 * scale for u, v in zip(values, stored, strict=True)):
            return stored
    return values
