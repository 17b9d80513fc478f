r"""Where the noise of a stochastic plan comes from.

A row's noise term names its interval of a clock (see `noise_terms`), so a source may make it
consistent between rows and between plans.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .counter_noise import CounterNoise, check_seed, normals
from .noise_terms import Noise
from .plan import Plan
from .shared_noise import NoiseSource, draws, sharing

FORMS = (
    "None, a seed, a list of seeds (one a sample), a torch.Generator or a list of them, a list of "
    "tensors (one a noise term), a function (term, like) -> z, or noise_sampler(sigma, sigma_next)"
)


def noise_source(noise: object, plan: Plan | None = None) -> NoiseSource:
    """Normalise the ``noise=`` argument of ``sample`` to a function (term, like) -> z.

    z is standard normal with the shape, dtype and device of ``like``. Accepted are

    * None: torch's global generator,
    * a whole number: the seed of `CounterNoise`, with which the noise of sample i of a batch
      depends on (seed, i, interval) alone: not on the batch, the device or the dtype,
    * a sequence of B whole numbers, one seed a sample,
    * a torch.Generator, or a sequence of B of them, one a sample,
    * a sequence of tensors, used in order (one a noise term; see `shared_noise.draws`),
    * a function (term, like) -> z, such as `CounterNoise` and `BrownianPath`,
    * a function of parameters named (sigma, sigma_next), as k-diffusion's noise samplers: sigma is
      sigma / alpha at the ends of the interval. They have no Levy areas (`Noise` of moment 1).

    With a ``plan`` each of the tensors is that of a term, whenever it is asked for.

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
            return _from_tensors(iter(noise)) if plan is None else _by_term(noise, plan)
    raise ValueError(f"noise={noise!r}: need {FORMS}")


def check_noise(noise: object, plan: Plan, x: Tensor) -> None:
    """Raise ValueError if ``noise`` does not fit that of ``plan`` on states x (B, *event).

    A source that is asked here too has a method ``check(plan, x)`` of its own.
    """
    if not plan.stochastic:
        return
    if isinstance(noise, Sequence):
        _check_sequence(noise, draws(plan), x)
    elif callable(check := getattr(noise, "check", None)):
        check(plan, x)
    elif callable(noise) and _takes_sigmas(noise):
        check_sigmas(plan, "noise")


def _check_sequence(noise: Sequence[object], count: int, x: Tensor) -> None:
    if isinstance(noise[0], int | torch.Generator) and len(noise) != len(x):
        kind = "seeds" if isinstance(noise[0], int) else "generators"
        raise ValueError(f"noise has {len(noise)} {kind}: need one a sample, {len(x)}")
    if isinstance(noise[0], Tensor):
        if len(noise) < count:
            raise ValueError(f"noise has {len(noise)} tensors: the plan has {count} noise terms")
        for z in noise[:count]:
            fitting(z, x)


def check_sigmas(plan: Plan, name: str) -> None:
    """ValueError if ``plan`` has noise that a function of (sigma, sigma_next) cannot draw."""
    for part in (part for parts in sharing(plan).fresh for part in parts):
        if part.moment != 0:
            raise ValueError(
                f"{name}: noise_sampler(sigma, sigma_next) has increments only, and the plan needs "
                f"the Levy area over [{part.start:g}, {part.end:g}] of clock {part.clock!r} too: "
                "give a seed, or a BrownianPath"
            )
        _ = part.lam_from, part.lam_to  # raises for a clock of which no sigma is known


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
        return fitting(function(term, like), like)

    return source


def fitting(z: object, like: Tensor, name: str = "noise") -> Tensor:
    """z in the dtype and on the device of ``like``; ValueError if it has another shape."""
    if not isinstance(z, Tensor):
        raise ValueError(f"{name} returned {type(z).__name__}: need a tensor")
    if z.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(z.shape)}: need {tuple(like.shape)}")
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
        return fitting(z, like)

    return source


def _by_term(tensors: Sequence[Tensor], plan: Plan) -> NoiseSource:
    parts = (part for fresh in sharing(plan).fresh for part in fresh)
    known = dict(zip(parts, tensors, strict=False))
    return lambda term, like: fitting(known[term.key], like)
