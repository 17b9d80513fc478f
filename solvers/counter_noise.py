r"""Noise that is a function of what it is for.

A random number generator with a state gives whoever asks next the next number, so that a sample
depends on its batch, on what was drawn before and on the device. Here nothing has a state: the
noise of sample i over an interval is Philox (Salmon et al. 2011), a bijection of a counter under a
key, with

    key = (seed, sample),    counter = (running, start, end, clock and moment),

so that the same question has the same answer in any batch, on any process, after a resume, and for
predictor and corrector. It is drawn on the host in float32, by Box and Muller's transform, and
cast: pipelines of every precision and device see one stream.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .checks import is_whole
from .noise_terms import Noise

MOST = 2**63
DROPPED = 12
"""Bits of an interval's ends that are rounded off, so that another machine's last bit does not
matter."""


@dataclass(frozen=True)
class CounterNoise:
    """The noise of sample ``samples[i]`` of a seed in row i of a batch: (term, like) -> z.

    Parameters
    ----------
    seed : whole number in 0..2^63 - 1.
    samples : which samples of the seed a batch holds; None is 0, 1, .., B - 1. Sample 7 of 16 alone
        is ``CounterNoise(seed, samples=[7])``.

    Raises ValueError for a seed out of range, and for a batch of another size than ``samples``.
    """

    seed: int
    samples: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for sample in self.samples or ():
            check_seed(sample, "samples")

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        """Standard normals with the shape, dtype and device of ``like`` (B, *event)."""
        samples = range(len(like)) if self.samples is None else self.samples
        return normals([(self.seed, sample) for sample in samples], term, like)


def normals(keys: Sequence[tuple[int, int]], term: Noise, like: Tensor) -> Tensor:
    """The noise of ``term`` for samples of the given (seed, sample), one a row of ``like``."""
    if len(keys) != len(like):
        raise ValueError(f"noise is for {len(keys)} samples: need one a sample, {len(like)}")
    counter = [0, _word(term.start), _word(term.end), _name(term.clock, term.moment)]
    event = like.shape[1:]
    # Sample by sample, so that none depends on the batch, not even by a rounding.
    drawn = [_normals(key, counter, event.numel()) for key in keys]
    return torch.stack(drawn).view(like.shape).to(like.device, like.dtype)


def _normals(key: tuple[int, int], counter: Sequence[int], count: int) -> Tensor:
    philox = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    words = philox.random_raw((count + 1) // 2).astype("<u8", copy=False)
    bits = torch.from_numpy(words.view("<i4")).view(2, -1)
    # In (0, 1), with the full precision of float32 near 0, and in [-pi, pi].
    uniform = bits[0].bitwise_and(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    angle = bits[1].to(torch.float32).mul_(math.pi * 2.0**-31)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin_()])[:count]


def _word(reading: float) -> int:
    (bits,) = struct.unpack("<Q", struct.pack("<d", float(reading) + 0.0))  # -0 is 0
    return (bits + (1 << DROPPED - 1)) >> DROPPED


@lru_cache
def _name(clock: str, moment: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{moment}:{clock}".encode()).digest()[:8], "little")


def check_seed(seed: object, name: str = "noise") -> None:
    """ValueError for what is no seed."""
    if not is_whole(seed, 0) or seed >= MOST:
        raise ValueError(f"{name}={seed!r}: need whole numbers in 0..2^63 - 1")
