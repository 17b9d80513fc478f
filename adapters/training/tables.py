"""What scripts read of diffusers' schedulers beside a run: tables of training, and the shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from logsnr.solvers import DiscreteVP, FlowMatching
from logsnr.solvers.running import version

from ..config.description import Description
from ..config.model import model_of
from ..config.noise_schedules import betas_of

if TYPE_CHECKING:
    from ..config.store import Config

_DOUBLE = torch.float64


class TrainingTables:
    """Attributes of diffusers' schedulers, as far as the model has them.

    Tables are float32, with an entry for each training step, in the order of training. Those of
    betas are missing (AttributeError) where a model has none: flow matching, EDM.

    A table of betas, alphas or alphas_cumprod that is replaced, or changed in place, is the model's
    noise schedule from then on, and is kept in the config as ``trained_betas``. ValueError for one
    that is no noise schedule of as many steps.
    """

    _kept: tuple[Tensor, int, DiscreteVP] | None = None  # alphas_cumprod, its version, its steps

    if TYPE_CHECKING:
        config: Config
        timesteps: Tensor
        num_inference_steps: int | None
        register_to_config: Callable[..., None]

        @property
        def _description(self) -> Description: ...

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of each training step."""
        steps, kept = self._steps("alphas_cumprod"), self._kept
        if kept is None or kept[2] is not steps:
            with torch.inference_mode(False):  # whose tensors do not count their changes
                table = steps.alphas_cumprod.float()
            kept = self._kept = table, version(table), steps
        return kept[0]

    @alphas_cumprod.setter
    def alphas_cumprod(self, table: Tensor) -> None:
        self._kept = table, version(table), self._replace("alphas_cumprod", table)

    @property
    def betas(self) -> Tensor:
        """1 - alpha_i^2 / alpha_{i-1}^2, the variance that training step i adds."""
        logs = self._steps("betas").log_alphas
        return -torch.expm1(2 * torch.diff(logs, prepend=logs.new_zeros(1))).float()

    @betas.setter
    def betas(self, table: Tensor) -> None:
        if not _rounds_to(self.betas, table):
            betas = torch.as_tensor(table, dtype=_DOUBLE)
            self._replace("betas", torch.exp(torch.log1p(-betas).cumsum(0)))

    @property
    def alphas(self) -> Tensor:
        """1 - beta."""
        logs = self._steps("alphas").log_alphas
        return torch.exp(2 * torch.diff(logs, prepend=logs.new_zeros(1))).float()

    @alphas.setter
    def alphas(self, table: Tensor) -> None:
        if not _rounds_to(self.alphas, table):
            self._replace("alphas", torch.as_tensor(table, dtype=_DOUBLE).cumprod(0))

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """alpha^2 where a DDIM run ends: 1, or that of training step 0 (``set_alpha_to_one``)."""
        first = self._steps("final_alpha_cumprod").alphas_cumprod[0].float()
        return first if self.config["set_alpha_to_one"] is False else torch.ones_like(first)

    @property
    def alpha_t(self) -> Tensor:
        """alpha of each training step."""
        return self._steps("alpha_t").alphas_cumprod.sqrt().float()

    @property
    def sigma_t(self) -> Tensor:
        """sigma of each training step."""
        return (1 - self._steps("sigma_t").alphas_cumprod).sqrt().float()

    @property
    def lambda_t(self) -> Tensor:
        """log(alpha / sigma) of each training step."""
        steps = self._steps("lambda_t")
        t = torch.arange(1, steps.steps + 1, dtype=torch.float64) / steps.steps
        return steps.lam(t).float()

    @property
    def shift(self) -> float | None:
        """The resolution shift of a flow model, None for others."""
        if not isinstance(self._description.model.schedule, FlowMatching):
            return None
        key = "flow_shift" if self.config["shift"] is None else "shift"
        return float(self.config[key])

    @shift.setter
    def shift(self, shift: float) -> None:
        self.set_shift(shift)

    def set_shift(self, shift: float) -> None:
        """Another resolution shift, from the next ``set_timesteps`` on; ValueError unless > 0."""
        key = "flow_shift" if self.config["shift"] is None else "shift"
        if not isinstance(self._description.model.schedule, FlowMatching):
            raise ValueError(f"shift={shift!r} is for flow models")
        if not 0 < float(shift) < float("inf"):
            raise ValueError(f"shift={shift!r}: need a positive number")
        self.config[key] = float(shift)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """Where ``timestep`` is in ``timesteps``, the second place if it occurs several times.

        Raises ValueError if it does not occur.
        """
        given = self.timesteps if schedule_timesteps is None else schedule_timesteps
        places = (given == timestep).nonzero().flatten().tolist()
        if not places:
            raise ValueError(f"timestep={timestep!r} is not one of the timesteps")
        return places[min(1, len(places) - 1)]

    def previous_timestep(self, timestep: Any) -> Any:
        """The timestep that follows ``timestep`` on the way to the data, -1 after the last."""
        if self.num_inference_steps is None:
            return timestep - 1
        place = self.index_for_timestep(timestep) + 1
        return self.timesteps[place] if place < len(self.timesteps) else torch.tensor(-1)

    def _hear_tables(self) -> None:
        """Follow what was written into ``alphas_cumprod``."""
        if self._kept is not None and version(self._kept[0]) != self._kept[1]:
            self.alphas_cumprod = self._kept[0]

    def _replace(self, name: str, alphas_cumprod: Tensor) -> DiscreteVP:
        """The training steps of another table, which was given as ``name``."""
        steps = model_of(self.config).steps
        if steps is None:
            raise ValueError(f"{name} was set on a scheduler without training steps")
        if _rounds_to(steps.alphas_cumprod, alphas_cumprod):
            return steps
        betas = betas_of(name, alphas_cumprod, steps.steps)
        # They say all that these keys say.
        said = {"rescale_betas_zero_snr": False, "snr_shift_scale": 1.0}
        self.register_to_config(trained_betas=betas, **said)
        return cast(DiscreteVP, model_of(self.config).steps)

    def _steps(self, name: str) -> DiscreteVP:
        steps = self._description.model.steps
        if steps is None:
            raise AttributeError(f"a scheduler without training steps has no {name}")
        return steps


def _rounds_to(ours: Tensor, table: Any) -> bool:
    """Whether ``table`` is ours, perhaps moved or rounded from what was read here."""
    table = torch.as_tensor(table).detach().cpu()
    kinds = (ours, ours.float())
    return any(ours.shape == table.shape and torch.equal(k.to(table.dtype), table) for k in kinds)
