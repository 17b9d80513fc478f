r"""Start states: what a run begins from.

Data of unit variance are, at a node of the noise schedule, x = alpha x0 + sigma eps of variance
alpha^2 + sigma^2. Where alpha is small or sigma large, as at the start of a run, x is as good as
normal, so that

    x_T = sqrt(alpha_T^2 + sigma_T^2) z,    z ~ N(0, 1):

N(0, 1) for variance-preserving schedules and for flow matching from t = 1, N(0, 1 + sigma_max^2)
for variance-exploding ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import is_whole

MOST = 2**63


def start_states(
    deviation: float,
    shape: Sequence[int],
    seeds: Sequence[int] | Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> Tensor:
    """``deviation`` times standard normal states; see `Plan.start`."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else shape
    if (
        not isinstance(sizes, tuple)
        or not sizes
        or not all(isinstance(size, int) and size >= 1 for size in sizes)
    ):
        raise ValueError(f"shape={shape!r}: need (B, *event), whole numbers of at least 1")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}: need a floating-point dtype")
    if seeds is None:
        return (deviation * torch.randn(sizes).double()).to(device, dtype)
    numbers = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    if not isinstance(numbers, Sequence):
        raise ValueError(f"seeds={seeds!r}: need a list of whole numbers, one a sample")
    for seed in numbers:
        if not is_whole(seed, 0) or seed >= MOST:
            raise ValueError(f"seeds has {seed!r}: need whole numbers in 0..2^63 - 1")
    if len(numbers) != sizes[0]:
        raise ValueError(
            f"seeds has {len(numbers)} entries: need one a sample, and shape={sizes} has {sizes[0]}"
        )
    # On the CPU and in float32 whatever is asked for, so that a seed means one state everywhere.
    drawn = [
        torch.randn(sizes[1:], generator=torch.Generator().manual_seed(seed)) for seed in numbers
    ]
    return (deviation * torch.stack(drawn).double()).to(device, dtype)
