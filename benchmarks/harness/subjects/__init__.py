"""What is sampled: `Subject`, and its kinds, a network with its noise schedule and a pipeline."""

from logsnr.benchmarks.harness.subjects.subject import (
    Diverged,
    Outcome,
    Subject,
    Tick,
    generators,
    noise_seed,
    sample_seed,
)

__all__ = [
    "Diverged",
    "Outcome",
    "Subject",
    "Tick",
    "generators",
    "noise_seed",
    "sample_seed",
]
