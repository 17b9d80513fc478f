"""Where the noise of a run's steps comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.solvers import Noise, Plan
from logsnr.solvers.noise import check_noise, noise_source
from logsnr.solvers.shared_noise import NoiseSource, sharing

if TYPE_CHECKING:
    from ..config.store import Config


class RunNoise:
    """The part of a scheduler that says where the noise of its runs comes from."""

    _noise: Any = None

    if TYPE_CHECKING:
        config: Config

    @property
    def noise(self) -> Any:
        """Where the noise of stochastic solvers comes from.

        What was set here, anything that ``noise=`` of `sample` takes, else the config's
        ``noise_seed``. Where there is neither, it is None, and noise is drawn from the generators
        that the steps are given. What is set here is not saved with the config.
        """
        return self.config.noise_seed if self._noise is None else self._noise

    @noise.setter
    def noise(self, noise: Any) -> None:
        if noise is not None:
            noise_source(noise)
        self._noise = noise


class StepNoise:
    """Noise of the rows of ``plan`` on states like ``sample``: (term, like) -> z.

    What was given to a step as ``variance_noise`` comes first, then the ``noise`` of the run (as
    ``noise=`` of `sample`), then the step's generator, from which diffusers' schedulers draw.

    Raises ValueError for noise that does not fit the plan or the batch.
    """

    def __init__(self, plan: Plan, sample: Tensor, noise: Any = None):
        self.plan, self.shape, self.dtype = plan, sample.shape, sample.dtype
        self.generator: Any = None
        self.given: dict[Noise, Tensor] = {}
        self.stored = False
        self._follow(noise, sample)

    def __getstate__(self) -> dict[str, Any]:
        # The generator and the noise of a step are the caller's.
        state = {**self.__dict__, "generator": None, "given": {}}
        del state["source"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.source = self._source(self.noise)

    def _follow(self, noise: Any, sample: Tensor) -> None:
        if noise is not None:
            check_noise(noise, self.plan, sample)
        self.noise, self.source = noise, self._source(noise)

    def _source(self, noise: Any) -> NoiseSource | None:
        return None if noise is None else noise_source(noise, self.plan)

    def goes_on(self, noise: Any, generator: Any) -> bool:
        """Whether the step draws as the last one did; then there is nothing to `take`."""
        same = noise is self.noise and generator is self.generator
        return same and not self.given and not self.stored

    def take(
        self,
        rows: range,
        sample: Tensor,
        *,
        noise: Any,
        generator: Any,
        variance_noise: Tensor | Sequence[Tensor] | None,
        stored: bool,
    ) -> None:
        """What the step that fills in ``rows`` draws from.

        Parameters
        ----------
        stored : its state is known, and nothing is drawn.
        """
        if noise is not self.noise:
            self._follow(noise, sample)
        if generator is not None and generator is not self.generator:
            _check_generator(generator, len(sample))
        self.generator, self.stored = generator, stored
        self.given = {} if variance_noise is None else self._given(rows, variance_noise)

    def _given(self, rows: range, variance_noise: Tensor | Sequence[Tensor]) -> dict[Noise, Tensor]:
        parts = [part for k in rows for part in sharing(self.plan).fresh[k]]
        single = isinstance(variance_noise, Tensor)
        listed = [variance_noise] if isinstance(variance_noise, Tensor) else [*variance_noise]
        # As in diffusers it is given at every step, also at those that add none.
        if len(listed) != len(parts) and (parts or not single):
            raise ValueError(
                f"variance_noise is {'one tensor' if single else f'a list of {len(listed)}'}: this "
                f"step draws {len(parts)} independent normals, and needs a list of as many"
            )
        for z in listed:
            if not isinstance(z, Tensor):
                raise ValueError(f"variance_noise has a {type(z).__name__}: need tensors")
            try:
                z.expand(self.shape)
            except RuntimeError as error:
                raise ValueError(
                    f"variance_noise has shape {tuple(z.shape)}: need that of sample, "
                    f"{tuple(self.shape)}"
                ) from error
        return dict(zip(parts, listed, strict=False))

    def __call__(self, term: Noise, like: Tensor) -> Tensor:
        if self.stored:
            return torch.zeros_like(like)
        if self.given:
            return self.given[term.key].to(like).expand_as(like)
        if self.source is not None:
            return self.source(term, like)
        return from_generator(self.generator, like, self.dtype)


def from_generator(generator: Any, like: Tensor, dtype: torch.dtype) -> Tensor:
    """What diffusers' schedulers draw for samples of ``dtype``, in the precision of ``like``."""
    drawn = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype)
    return drawn.to(like.dtype)


def _check_generator(generator: Any, batch: int) -> None:
    """ValueError for what is no generator, and for lists that are not one a sample."""
    if isinstance(generator, torch.Generator):
        return
    listed = list(generator) if isinstance(generator, list | tuple) else [None]
    if not all(isinstance(entry, torch.Generator) for entry in listed):
        raise ValueError(
            f"generator={generator!r}: need a torch.Generator, or a list of one for each sample; a "
            "seed is given to the scheduler, as noise_seed"
        )
    if len(listed) not in (1, batch):
        raise ValueError(f"generator has {len(listed)} entries: need one a sample, {batch}")
