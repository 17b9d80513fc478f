"""What the network is told at the evaluations of a run, and where in it a call of ``step`` is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import Node
from logsnr.solvers.running import version

HALF_TYPES = (torch.bfloat16, torch.float16)


class Timetable:
    """The ``timesteps`` and ``sigmas`` of a run, as pipelines read them, and their nodes.

    Pipelines hand views of ``timesteps`` to ``step``, whose offset is the place; no value has to be
    read for that. A copy is searched by value.

    Parameters
    ----------
    told, levels : the values of the two, on the CPU.
    nodes : of the evaluations.
    device, levels_device : where pipelines want the two.
    values : the two as lists, to be kept.

    Attributes
    ----------
    told, levels : the values, kept here to notice when a caller writes others.
    """

    def __init__(
        self,
        told: Tensor,
        levels: Tensor,
        nodes: Sequence[Node],
        device: Any = None,
        levels_device: Any = None,
        values: tuple[list[float], list[float]] | None = None,
    ):
        self.told: list[float]
        self.levels: list[float]
        self.told, self.levels = values or (told.tolist(), levels.tolist())
        self.nodes = list(nodes)
        # Tensors of inference mode do not count their changes.
        mode = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        with mode:
            self.timesteps = told.clone().to(device)
            self.sigmas = levels.clone().to(levels_device)
        self.show_slices(self.timesteps, self.sigmas)

    def show(self, timesteps: Tensor, sigmas: Tensor) -> None:
        """Let callers read these tensors, which hold the values of the table or their rounding."""
        self.timesteps, self.sigmas = timesteps, sigmas
        self.told = [float(told) for told in timesteps.tolist()]
        self.levels = sigmas.tolist()
        self.show_slices(timesteps, sigmas)

    def show_slices(self, timesteps: Tensor, sigmas: Tensor) -> None:
        """Let callers read these slices of the tensors of the table."""
        self._shown = timesteps, sigmas
        self._watch()

    def _watch(self) -> None:
        self._storage = self.timesteps.untyped_storage().data_ptr()
        self._offset, self._stride = self.timesteps.storage_offset(), self.timesteps.stride(0)
        self._versions = version(self.timesteps), version(self.sigmas)

    def __getstate__(self) -> dict[str, Any]:
        as_it_was = self._versions == (version(self.timesteps), version(self.sigmas))
        return {**self.__dict__, "_storage": as_it_was}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        as_it_was = self._storage
        self._watch()
        if not as_it_was:
            self._versions = -1, -1

    @property
    def nfe(self) -> int:
        return len(self.told)

    def untouched(self, timesteps: Any, sigmas: Any) -> bool:
        """Whether these are the tensors that are shown, without a change in place."""
        shown = self._shown
        return (
            timesteps is shown[0]
            and sigmas is shown[1]
            and (version(timesteps), version(sigmas)) == self._versions
        )

    def check_values(self) -> None:
        """Notice changes that are not counted (by way of ``data`` or numpy), where that is free."""
        if self.timesteps.device.type == self.sigmas.device.type == "cpu":
            if self.timesteps.tolist() != self.told or self.sigmas.tolist() != self.levels:
                self._versions = -1, -1

    def tells(self, values: Sequence[float]) -> bool:
        """Whether ``values`` are those of ``timesteps``, perhaps rounded to a half type."""
        return _rounded(self.told, values)

    def has_levels(self, values: Sequence[float]) -> bool:
        """Whether ``values`` are those of ``sigmas``, perhaps rounded to a half type."""
        return _rounded(self.levels, values)

    def slice_at(self, timesteps: Tensor, sigmas: Tensor) -> int | None:
        """Where ``timesteps`` begins as a slice of the table's, None for anything else."""
        if (version(self.timesteps), version(self.sigmas)) != self._versions:
            return None
        begins = _slice_of(self.timesteps, timesteps), _slice_of(self.sigmas, sigmas)
        return begins[0] if begins[1] in (0, begins[0]) else None

    def is_view(self, timestep: Any) -> bool:
        """Whether ``timestep`` is a part of ``timesteps``, not a copy."""
        return (
            isinstance(timestep, Tensor)
            and timestep.untyped_storage().data_ptr() == self._storage
            and timestep.dtype == self.timesteps.dtype
        )

    def place_of_view(self, timestep: Any) -> int | None:
        """Where ``timestep`` is in ``timesteps``, None if it is no view of one entry."""
        if not self.is_view(timestep) or (timestep.numel() > 1 and any(timestep.stride())):
            return None
        return int(timestep.storage_offset() - self._offset) // self._stride

    def place_of_value(self, timestep: Any, expected: Sequence[int]) -> int:
        """Where a copy is: at the first of the ``expected`` places if its value leaves a choice.

        ValueError for a time that is none of the table's, and for one that occurs elsewhere twice.
        """
        value = _single(timestep)
        if 0 <= expected[0] < self.nfe and self.told[expected[0]] == value:
            return expected[0]
        half = isinstance(timestep, Tensor) and timestep.dtype in HALF_TYPES
        found = self.places(value, timestep.dtype if half else None)
        if not found:
            raise ValueError(
                f"timestep={value:g} is not one of the run's timesteps {_around(self.told, value)}"
                ": hand over an entry of timesteps, or lay out others with set_timesteps"
            )
        likely = [place for place in expected if place in found]
        if not likely and len(found) > 1:
            raise ValueError(
                f"timestep={value:g} occurs more than once in timesteps: hand over an entry of "
                "timesteps itself, not a copy, or call set_begin_index"
            )
        return (likely or found)[0]

    def places(self, value: float, kind: torch.dtype | None = None) -> list[int]:
        """Where ``value`` is told, as a number of the half-precision type ``kind``.

        None is any number: where it is told as it is, else where it is as one of those types.
        """
        exact = [k for k, told in enumerate(self.told) if told == value and kind is None]
        if exact or not math.isfinite(value):
            return exact
        told = torch.tensor(self.told, dtype=torch.float64)
        kinds = HALF_TYPES if kind is None else (kind,)
        rounded = torch.stack([told.to(each).double() == value for each in kinds])
        return rounded.any(0).nonzero().flatten().tolist()

    def all_places(self, timesteps: Tensor, here: int | None) -> list[int] | None:
        """Where each of ``timesteps`` is, None unless all of them are in the table.

        ``here`` is the place of the step to come, which is meant where a time occurs twice.
        """
        if self.is_view(timesteps):
            every = torch.arange(self.nfe * self._stride) // self._stride
            offset = timesteps.storage_offset() - self._offset
            return every.as_strided(timesteps.shape, timesteps.stride(), offset).flatten().tolist()
        kind = timesteps.dtype if timesteps.dtype in HALF_TYPES else None
        values, known = timesteps.flatten().tolist(), set(self.told)
        places: dict[float, int] = {}
        for value in set(values):
            # Rounding tells nothing of another type: training may have drawn this time.
            found = self.places(value, kind) if kind is not None or value in known else []
            if not found:
                return None
            places[value] = here if here in found else found[0]
        return [places[value] for value in values]

    def rewrite(self, begin: int, nodes: Sequence[Node], told: Tensor, levels: Tensor) -> None:
        """Other evaluations from ``begin`` on, written where pipelines will read them.

        ``levels`` may have the end beside those of the evaluations.
        """
        end = begin + len(nodes)
        self.nodes[begin:end] = nodes
        self.told[begin:end] = told.tolist()
        levels_end = begin + len(levels)
        self.levels[begin:levels_end] = levels.tolist()
        self.timesteps[begin:end] = told.to(self.timesteps)
        self.sigmas[begin:levels_end] = levels.to(self.sigmas)
        self._watch()


def _single(timestep: Any) -> float:
    """The number that ``timestep`` is, for one sample or for all of them."""
    try:
        values = torch.as_tensor(timestep, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"timestep={timestep!r}: need a number") from error
    if len(set(values)) != 1:
        raise ValueError(f"timestep={values}: need one number, the same for all samples")
    return values[0]


def _around(told: Sequence[float], value: float) -> str:
    near = sorted(set(told), key=lambda each: abs(each - value))[:2] if value == value else told[:2]
    return f"(the nearest are {', '.join(f'{each:g}' for each in near)})"


def _rounded(ours: Sequence[float], values: Sequence[float]) -> bool:
    if len(values) != len(ours):
        return False
    exact, given = (torch.tensor(v, dtype=torch.float64) for v in (ours, values))
    return any(torch.equal(exact.to(kind).double(), given) for kind in (exact.dtype, *HALF_TYPES))


def _slice_of(whole: Tensor, part: Tensor) -> int | None:
    """Where ``part`` begins in ``whole``, as a slice without gaps; None if it is no such slice."""
    shared = part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    if not shared or part.dtype != whole.dtype or part.stride() != whole.stride() or not len(part):
        return None
    return (part.storage_offset() - whole.storage_offset()) // whole.stride(0)
