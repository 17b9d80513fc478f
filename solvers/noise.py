r"""Where the noise of a stochastic plan comes from.

A row's noise term names its interval of a clock (see `noise_terms`), so a source may make it
consistent between rows and between plans.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .counter_noise import CounterNoise, check_seed, normals
from .noise_terms import Noise, independent
from .plan import Plan

NoiseSource = Callable[[Noise, Tensor], Tensor]

FORMS = (
    "None, a seed, a list of seeds (one a sample), a torch.Generator or a list of them, a list of "
    "tensors (one a noise term), a function (term, like) -> z, or noise_sampler(sigma, sigma_next)"
)


def noise_source(noise: object) -> NoiseSource:
    """Normalise the ``noise=`` argument of ``sample`` to a function (term, like) -> z.

    z is standard normal with the shape, dtype and device of ``like``. Accepted are

    * None: torch's global generator,
    * a whole number: the seed of `CounterNoise`, with which the noise of sample i of a batch
      depends on (seed, i, interval) alone: not on the batch, the device or the dtype,
    * a sequence of B whole numbers, one seed a sample,
    * a torch.Generator, or a sequence of B of them, one a sample,
    * a sequence of tensors, used in order (one a noise term; see `draws`),
    * a function (term, like) -> z, such as `CounterNoise` and `BrownianPath`,
    * a function of parameters named (sigma, sigma_next), as k-diffusion's noise samplers: sigma is
      sigma / alpha at the ends of the interval.

    Raises ValueError for anything else, and when a tensor or the result of a function has another
    shape: one noise for several samples is not drawn by broadcasting.
    """
    if noise is None or isinstance(noise, torch.Generator):
        return _from_generator(noise)
    if callable(noise):
        return _checked(_of_sigmas(noise) if _takes_sigmas(noise) else noise)
    if isinstance(noise, int):
        check_seed(noise)
        return CounterNoise(noise)
    if isinstance(noise, Sequence) and noise:
        if all(isinstance(entry, int) for entry in noise):
            for seed in noise:
                check_seed(seed)
            keys = [(seed, 0) for seed in noise]
            return lambda term, like: normals(keys, term, like)
        if all(isinstance(entry, torch.Generator) for entry in noise):
            return _from_generators(noise)
        if all(isinstance(entry, Tensor) for entry in noise):
            return _from_tensors(iter(noise))
    raise ValueError(f"noise={noise!r}: need {FORMS}")


def draws(plan: Plan) -> int:
    """How many independent normals of a state's shape the plan draws: one a noise term, but for
    terms that are the same (once) or overlap (one a part, see `noise_terms.independent`).
    """
    parts = independent(term for row in plan.rows for term in row.noise)
    return len({part for entries in parts.values() for part, _ in entries})


def check_noise(noise: object, plan: Plan, x: Tensor) -> None:
    """Raise ValueError if a sequence does not fit the noise of ``plan`` on states x (B, *event)."""
    if not plan.stochastic or not isinstance(noise, Sequence):
        return
    count = draws(plan)
    if isinstance(noise[0], int | torch.Generator) and len(noise) != len(x):
        kind = "seeds" if isinstance(noise[0], int) else "generators"
        raise ValueError(f"noise has {len(noise)} {kind}: need one a sample, {len(x)}")
    if isinstance(noise[0], Tensor):
        if len(noise) < count:
            raise ValueError(f"noise has {len(noise)} tensors: the plan has {count} noise terms")
        for z in noise[:count]:
            if z.shape != x.shape:
                raise ValueError(f"noise has shape {tuple(z.shape)}: need {tuple(x.shape)}")


def along(plan: Plan, source: NoiseSource) -> NoiseSource:
    """``source`` for the terms of ``plan``, where some share noise: each part is drawn once.

    It is ``source`` itself where none do. Parts are remembered until their last use in a run.
    """
    if not plan.stochastic:
        return source
    terms = [term for row in plan.rows for term in row.noise]
    parts = independent(terms)
    uses = Counter(part for term in terms for part, _ in parts[term.key])
    if (
        all(parts[term.key] == ((term.key, 1.0),) for term in terms)
        and max(uses.values(), default=1) == 1
    ):
        return source
    memory: dict[Noise, Tensor] = {}
    left = dict(uses)

    def drawn(part: Noise, like: Tensor) -> Tensor:
        z = memory.pop(part) if part in memory else source(part, like)
        left[part] -= 1
        if left[part] > 0:
            memory[part] = z
        return z

    def shared(term: Noise, like: Tensor) -> Tensor:
        (first, weight), *others = parts[term.key]
        z = drawn(first, like)
        z = z if weight == 1 else weight * z
        for part, weight in others:
            z = z + weight * drawn(part, like)
        return z

    return shared


def _takes_sigmas(function: Callable[..., Tensor]) -> bool:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of C
        return False
    return names[:2] == ["sigma", "sigma_next"]


def _of_sigmas(sampler: Callable[..., Tensor]) -> NoiseSource:
    def source(term: Noise, like: Tensor) -> Tensor:
        ends = (math.exp(-lam) for lam in (term.lam_from, term.lam_to))
        return sampler(*(torch.tensor(end, dtype=like.dtype, device=like.device) for end in ends))

    return source


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


def _from_generators(generators: Sequence[torch.Generator]) -> NoiseSource:
    def source(term: Noise, like: Tensor) -> Tensor:
        if len(generators) != len(like):
            raise ValueError(f"noise has {len(generators)} generators: need {len(like)}")
        return torch.stack([_draw(like.shape[1:], like, generator) for generator in generators])

    return source


def _from_tensors(tensors: Iterator[Tensor]) -> NoiseSource:
    def source(term: Noise, like: Tensor) -> Tensor:
        z = next(tensors, None)
        if z is None:
            raise ValueError("noise has fewer tensors than the plan has noise terms")
        return _fitting(z, like)

    return source
