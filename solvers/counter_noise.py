r"""Noise that is a function of what it is for.

A random number generator with a state gives whoever asks next the next number, so that a sample
depends on its batch, on what was drawn before and on the device. Here nothing has a state: the
noise of sample i over an interval is Philox (Salmon et al. 2011), a bijection of a counter under a
key, with

    key = (seed, sample),    counter = (running, start, end, clock and moment),

so that the same question has the same answer in any batch, on any process, after a resume, and for
predictor and corrector. It is drawn on the host in float32, by Box and Muller's transform, and
cast: pipelines of every precision and device see one stream. (The words are the same everywhere;
logarithm and cosine may differ in the last bit between kinds of processors.)
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .checks import is_whole
from .noise_terms import Noise

if TYPE_CHECKING:
    from .plan import Plan

MOST = 2**63
BLOCK = 2**14
"""How many words are made normal at a time: what is worked on stays in the cache."""
DROPPED = 12
"""Bits of an interval's ends that are rounded off, so that another machine's last bit does not
matter."""


@dataclass(frozen=True)
class CounterNoise:
    """The noise of sample ``samples[i]`` of a seed in row i of a batch: (term, like) -> z.

    Parameters
    ----------
    seed : whole number in 0..2^63 - 1.
    samples : which samples of the seed a batch holds, whole numbers (a list, a range or a tensor);
        None is 0, 1, .., B - 1. Sample 7 of 16 alone is ``CounterNoise(seed, samples=[7])``.

    Raises ValueError for a seed out of range, and for a batch of another size than ``samples``.
    """

    seed: int
    samples: Sequence[int] | Tensor | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed, "seed")
        if self.samples is not None:
            object.__setattr__(self, "samples", listed_samples(self.samples))

    def check(self, plan: Plan, x: Tensor) -> None:
        """ValueError unless a batch x (B, *event) holds as many as ``samples``."""
        if self.samples is not None and len(self.samples) != len(x):
            raise ValueError(
                f"noise is for {len(self.samples)} samples: need one a sample, {len(x)}"
            )

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        """Standard normals with the shape, dtype and device of ``like`` (B, *event)."""
        samples = range(len(like)) if self.samples is None else self.samples
        return normals([(self.seed, int(sample)) for sample in samples], term, like)


def listed_samples(samples: Any) -> tuple[int, ...]:
    """The numbers of samples, or ValueError for what is no list of such."""
    listed = samples.tolist() if isinstance(samples, Tensor) else samples
    if not isinstance(listed, Sequence):
        raise ValueError(f"samples={samples!r}: need a list of whole numbers")
    for sample in listed:
        check_seed(sample, "samples")
    return tuple(listed)


def normals(keys: Sequence[tuple[int, int]], term: Noise, like: Tensor) -> Tensor:
    """The noise of ``term`` for samples of the given (seed, sample), one a row of ``like``."""
    if len(keys) != len(like):
        raise ValueError(f"noise is for {len(keys)} samples: need one a sample, {len(like)}")
    counter = (0, _word(term.start), _word(term.end), _name(term.clock, term.moment))
    count = like.shape[1:].numel()
    words = (count + 1) // 2
    drawn = np.empty((len(keys), 2 * words), np.float32)
    together = max(1, BLOCK // max(1, words))
    for i in range(0, len(keys), together):
        rows = slice(i, i + together)
        for begin, block in _blocks(keys[rows], counter, words):
            _box_muller(block, drawn[rows, 2 * begin :])
    return torch.from_numpy(drawn[:, :count]).reshape(like.shape).to(like.device, like.dtype)


def _blocks(
    keys: Sequence[tuple[int, int]], counter: Sequence[int], count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(begin, words (keys, n)): ``count`` words of 64 bits for each key, in blocks."""
    philox = np.random.Philox(key=0)
    # To set a generator's state takes a sixth of the time of making one.
    state = philox.state
    state["state"]["counter"] = np.array(counter, np.uint64)
    if count <= BLOCK:
        block = np.empty((len(keys), count), "<u8")
        for key, row in zip(np.array(keys, np.uint64), block, strict=True):
            state["state"]["key"] = key
            philox.state = state
            row[:] = philox.random_raw(count)
        yield 0, block
        return
    ((seed, sample),) = keys
    state["state"]["key"] = np.array((seed, sample), np.uint64)
    philox.state = state
    for begin in range(0, count, BLOCK):
        words = philox.random_raw(min(BLOCK, count - begin))
        yield begin, words.astype("<u8", copy=False)[None]


def _box_muller(words: np.ndarray, out: np.ndarray) -> None:
    """Normals (B, 2 n), into the beginning of ``out``, of words (B, n).

    Each depends on its own bits alone, not on its place. NumPy's functions of float32 take a third
    of the time of torch's.
    """
    bits, n = words.view("<i4"), words.shape[1]
    # In (0, 1), with the full precision of float32 near 0, and in [-pi, pi].
    radius = np.bitwise_and(bits[:, :n], 0x7FFFFFFF).astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-31)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = bits[:, n:].astype(np.float32)
    angle *= np.float32(math.pi * 2.0**-31)
    np.multiply(np.cos(angle), radius, out=out[:, :n])
    np.multiply(np.sin(angle), radius, out=out[:, n : 2 * n])


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
