"""What k-diffusion's world gives for noise, as a noise source of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Node, Noise, NoiseSchedule, Plan
from logsnr.solvers.checks import is_whole
from logsnr.solvers.counter_noise import normals
from logsnr.solvers.noise import check_sigmas, fitting

ROUNDING = 1e-12
MOST = 2**64  # ComfyUI's seeds have 64 bits


def sampler_noise(
    noise_sampler: Any,
    extra_args: Mapping[str, Any] | None,
    nodes: Sequence[Node],
    schedule: NoiseSchedule,
    levels: Tensor,
) -> Any:
    """The ``noise=`` of `sample` for what a sampler of k-diffusion was given.

    A function is one of (sigma, sigma_next), unless it is a source of ours, (term, like) -> z.
    Without one, ``extra_args["seed"]``, which ComfyUI sends, is the seed of `CounterNoise`.

    Raises ValueError for a seed that is none.
    """
    if noise_sampler is None:
        seed = (extra_args or {}).get("seed")
        return None if seed is None else _seeded(seed)
    if isinstance(noise_sampler, torch.Generator) or not callable(noise_sampler):
        return noise_sampler
    if hasattr(noise_sampler, "check") or _names(noise_sampler)[:2] == ["term", "like"]:
        return noise_sampler
    return _OfLevels(noise_sampler, nodes, schedule, levels)


def _seeded(seed: Any) -> Any:
    if not is_whole(seed, 0) or seed >= MOST:
        raise ValueError(f"extra_args['seed']={seed!r}: need a whole number in 0..2^64 - 1")
    return lambda term, like: normals([(seed, i) for i in range(len(like))], term, like)


def _names(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of C
        return []


class _OfLevels:
    """A noise_sampler, asked at the very numbers of ``sigmas``.

    A Brownian path is defined between them, not one rounding off.
    """

    def __init__(
        self,
        sampler: Callable[[Tensor, Tensor], Tensor],
        nodes: Sequence[Node],
        schedule: NoiseSchedule,
        levels: Tensor,
    ):
        self.sampler, self.schedule, self.levels = sampler, schedule, levels
        self.known = {node.lam: node.sigma for node in nodes}

    def check(self, plan: Plan, x: Tensor) -> None:
        """ValueError if ``plan`` has noise that such a function cannot draw."""
        check_sigmas(plan, "noise_sampler")

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        z = self.sampler(self._sigma(term.lam_from), self._sigma(term.lam_to))
        return fitting(z, like, "noise_sampler")

    def _sigma(self, lam: float) -> Tensor:
        if lam not in self.known:  # readings of a clock are lambda up to rounding
            nearest = min(self.known, key=lambda known: abs(known - lam))
            lam = nearest if abs(nearest - lam) <= ROUNDING * (1 + abs(lam)) else lam
        known = self.known[lam] if lam in self.known else self.schedule.time(lam)
        return self.levels.new_tensor(known)
