r"""Where the noise of a stochastic plan comes from.

A row's noise term names its lambda interval, so a source may make it consistent between plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .plan import Noise

NoiseSource = Callable[[Noise, Tensor], Tensor]


def noise_source(noise: NoiseSource | torch.Generator | Sequence | None) -> NoiseSource:
    """Normalise the ``noise=`` argument of ``sample`` to a function (term, like) -> z.

    z is standard normal with the shape, dtype and device of ``like``. Accepted are

    * None: torch's global generator,
    * a torch.Generator,
    * a sequence of B integers, one seed a sample: sample i's noise does not depend on the batch
      it is in,
    * a sequence of tensors, used in order (one a noise term),
    * a function (term, like) -> z.

    Raises ValueError for anything else, and when a tensor or the result of a function has another
    shape: one noise for several samples is not drawn by broadcasting.
    """
    if noise is None or isinstance(noise, torch.Generator):
        return _from_generator(noise)
    if callable(noise):
        return _checked(noise)
    if isinstance(noise, Sequence) and noise:
        if all(isinstance(entry, int) for entry in noise):
            return _from_seeds(noise)
        if all(isinstance(entry, Tensor) for entry in noise):
            return _from_tensors(iter(noise))
    raise ValueError(
        f"noise={noise!r}: need None, a torch.Generator, a list of seeds (one a sample), a list "
        "of tensors (one a noise term), or a function (term, like) -> z"
    )


def check_noise(noise: object, terms: int, x: Tensor) -> None:
    """Raise ValueError if a sequence does not fit ``terms`` noise terms on states x (B, *event)."""
    if terms == 0 or not isinstance(noise, Sequence):
        return
    if isinstance(noise[0], int) and len(noise) != len(x):
        raise ValueError(f"noise has {len(noise)} seeds: need one a sample, {len(x)}")
    if isinstance(noise[0], Tensor):
        if len(noise) < terms:
            raise ValueError(f"noise has {len(noise)} tensors: the plan has {terms} noise terms")
        for z in noise[:terms]:
            if z.shape != x.shape:
                raise ValueError(f"noise has shape {tuple(z.shape)}: need {tuple(x.shape)}")


def _checked(function: NoiseSource) -> NoiseSource:
    def source(term: Noise, like: Tensor) -> Tensor:
        return _fitting(function(term, like), like)

    return source


def _fitting(z: object, like: Tensor) -> Tensor:
    if not isinstance(z, Tensor):
        raise ValueError(f"noise returned {type(z).__name__}: need a tensor")
    if z.shape != like.shape:
        raise ValueError(f"noise has shape {tuple(z.shape)}: need {tuple(like.shape)}")
    return z.to(like)


def _draw(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _from_generator(generator: torch.Generator | None) -> NoiseSource:
    return lambda term, like: _draw(like.shape, like, generator)


def _from_seeds(seeds: Sequence[int]) -> NoiseSource:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def source(term: Noise, like: Tensor) -> Tensor:
        if len(generators) != like.shape[0]:
            raise ValueError(
                f"noise has {len(generators)} seeds: need one a sample, {like.shape[0]}"
            )
        return torch.stack([_draw(like.shape[1:], like, generator) for generator in generators])

    return source


def _from_tensors(tensors: Iterator[Tensor]) -> NoiseSource:
    def source(term: Noise, like: Tensor) -> Tensor:
        z = next(tensors, None)
        if z is None:
            raise ValueError("noise has fewer tensors than the plan has noise terms")
        return _fitting(z, like)

    return source
