"""What a config says of the grid: its spacing, its ends, its shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logsnr.solvers import DiscreteVP
from logsnr.solvers.spacings import Parameters

from .noise_schedules import sigma_range
from .resolution_shift import ResolutionShift, resolution_shift
from .sigma_models import is_edm
from .spacing_keys import flagged_spacing, spacing_of


@dataclass(frozen=True)
class GridOptions:
    """Where the nodes of a run are to be.

    Attributes
    ----------
    spacing : a name of ``SPACINGS``.
    named : what ``timestep_spacing`` says, whatever the flags beside it.
    flag : the spacing that a key of diffusers' own asks for, if any.
    parameters : the numbers of the spacing; the location is None where nobody gave one.
    to_zero : whether a run ends at sigma = 0, and not at the smallest level of training.
    offset : ``steps_offset``, which only "leading" has.
    least_lam : ``lambda_min_clipped``, None for none.
    sigma_min, sigma_max : the ends of spacings by sigma, None for those of training.
    shift : the resolution shift of a flow model, None for others.
    exact_sigmas : whether the sigmas given to a flow model are its times as they are.
    """

    spacing: str
    named: str | None
    flag: str | None
    parameters: Parameters
    to_zero: bool
    offset: int
    least_lam: float | None
    sigma_min: Any
    sigma_max: Any
    shift: ResolutionShift | None
    exact_sigmas: bool

    def placed(self, location: float) -> Parameters:
        """The numbers of the spacing, with ``location`` where nobody gave one."""
        if self.parameters.location is not None:
            return self.parameters
        return Parameters(self.parameters.rho, location, self.parameters.scale)

    @property
    def has_sigma_ends(self) -> bool:
        """Whether the config gives an end of the spacings by sigma."""
        return self.sigma_min is not None or self.sigma_max is not None

    def sigma_range(self, steps: DiscreteVP) -> tuple[float, float]:
        """sigma / alpha of the last and the first node of a spacing by sigma; see `sigma_range`."""
        return sigma_range(self.sigma_min, self.sigma_max, steps)


def grid_options(config: Mapping[str, Any], solver: str) -> GridOptions:
    """What ``config`` says of the grid, for runs of ``solver``.

    Raises ValueError for a spacing, and a number of it, that is not there or out of range.
    """
    spacing, least = spacing_of(config), config.get("lambda_min_clipped")
    return GridOptions(
        spacing=spacing,
        named=config.get("timestep_spacing"),
        flag=flagged_spacing(config),
        parameters=parameters_of(config, spacing),
        to_zero=final_sigma(config, solver) == "zero",
        offset=offset_of(config, spacing),
        least_lam=None if least is None or least == -math.inf else float(least),
        sigma_min=config.get("sigma_min"),
        sigma_max=config.get("sigma_max"),
        shift=resolution_shift(config),
        exact_sigmas=bool(config.get("exact_sigmas")),
    )


def parameters_of(config: Mapping[str, Any], spacing: str) -> Parameters:
    """The numbers of the config's spacing.

    Raises ValueError for one that is out of range, or that ``spacing`` does not have.
    """
    keys = ["location", "scale"]
    if spacing == "karras" or not is_edm(config):  # the key of EDM schedulers, whatever they space
        keys.append("rho")
    said = {key: config[key] for key in keys if config.get(key) is not None}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r}: need a number")
    parameters = Parameters(**said)
    parameters.check_used_by(spacing)
    return parameters


def final_sigma(config: Mapping[str, Any], solver: str) -> str:
    """``final_sigmas_type``, or for DDIM ``set_alpha_to_one``, which says the same."""
    kind = config.get("final_sigmas_type")
    if kind is None:
        kept = solver == "ddim" and config.get("set_alpha_to_one") is False
        kind = "sigma_min" if kept else "zero"
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={kind!r}: choose 'zero' or 'sigma_min'")
    return kind


def offset_of(config: Mapping[str, Any], spacing: str) -> int:
    """``steps_offset``, which only "leading" has; ValueError unless whole and at least 0."""
    offset = (config.get("steps_offset") or 0) if spacing == "leading" else 0
    if isinstance(offset, bool) or offset < 0 or int(offset) != offset:
        raise ValueError(f"steps_offset={offset!r}: need a whole number of at least 0")
    return int(offset)
