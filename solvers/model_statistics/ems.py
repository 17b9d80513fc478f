r"""The empirical model statistics (EMS) of DPM-Solver-v3 (Zheng et al. 2023, section 3.1).

Three functions of lambda, one value a coordinate (products are coordinate by coordinate):

    l   the mean of the diagonal of sigma d eps / d x: how linear the network is in its state,
    s   the slope and
    b   the intercept of the regression of df/d lambda on f = (sigma eps - l x) / alpha,

over the states of the model's own trajectories. l = 1, s = b = 0 are the degenerate statistics,
with which DPM-Solver-v3 is DPM-Solver++. Neither statistic depends on the scale of x, so they
belong to a network and lambda, not to a way of writing its schedule.

Any l, s, b give a consistent solver, only a better or worse one: they choose what is approximated
by a polynomial. Errors in them cost accuracy at few steps, never convergence.

Statistics that several coordinates share must be those of a regression over all of them. They are
not the means of the coordinates' own s and b, which belong together (s f + b is the mean of f1) and
lose that when they are averaged: so the granularity is chosen when they are estimated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks import is_whole
from ..grids import check_range
from ..schedule_notes import same_schedule, schedule_note
from ..schedules import NoiseSchedule
from .verdict import Verdict

DEGENERATE = {"l": 1.0, "s": 0.0, "b": 0.0}
"""The values with which DPM-Solver-v3 is DPM-Solver++."""

_FORMAT = "logsnr-ems-1"
_FILE = "ems.safetensors"


@dataclass(frozen=True, eq=False)
class EMS:
    """Statistics l, s, b of a model on a uniform grid of lambda.

    Parameters
    ----------
    lam : (N + 1,) float64, rising uniformly from lambda(t_start) to lambda(t_end).
    l, s, b : (N + 1, *event) float64; event axes of size 1 are shared by the coordinates, and
        without event axes one number a node holds for all.
    errors : standard errors of l, s and b under those keys, of the same shapes, if known.
    verdict : whether they help, if that was checked (see `estimate_ems`, `check_ems`).
    about : where they came from: JSON values (schedule, t_start, t_end, samples, seed, ...).
        "schedule" is the schedule's ``repr``, "path" times and alpha at some lambda (see
        `schedule_note`); `fits` compares them.

    Raises ValueError naming the argument that is not as described.
    """

    lam: Tensor
    l: Tensor
    s: Tensor
    b: Tensor
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        for name in ("lam", *DEGENERATE):
            object.__setattr__(self, name, _float64(name, getattr(self, name)))
        unknown = sorted(set(self.errors) - set(DEGENERATE))
        if unknown:
            raise ValueError(f"errors has {unknown[0]!r}: need some of {', '.join(DEGENERATE)}")
        errors = {name: _float64(f"errors[{name!r}]", e) for name, e in self.errors.items()}
        object.__setattr__(self, "errors", errors)
        object.__setattr__(self, "about", dict(self.about))
        _check_grid(self.lam)
        for name in DEGENERATE:
            _check_values(name, getattr(self, name), self.l.shape, len(self.lam))
        for name, error in errors.items():
            if error.shape != self.l.shape or not (error >= 0).all():
                raise ValueError(
                    f"errors[{name!r}] has shape {tuple(error.shape)}: need {tuple(self.l.shape)}, "
                    "as l has, and no negative value"
                )

    @property
    def intervals(self) -> int:
        """N, the number of intervals of the grid."""
        return len(self.lam) - 1

    @property
    def event(self) -> tuple[int, ...]:
        """The event shape of the statistics; () if one number a node holds for all coordinates."""
        return tuple(self.l.shape[1:])

    def __repr__(self) -> str:
        first, last = self.lam[0].item(), self.lam[-1].item()
        shape = self.event or "one value"
        return f"<EMS of {shape}, {len(self.lam)} nodes, lambda {first:.4g}..{last:.4g}>"

    def describe(self) -> dict[str, Any]:
        """What a plan notes of them: ``about``, the grid and the shape, as JSON values."""
        ends = [round(lam, 6) for lam in self.lam[[0, -1]].tolist()]
        about = {key: value for key, value in self.about.items() if key != "path"}
        return {**about, "nodes": len(self.lam), "lam": ends, "event": list(self.event)}

    # files

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float64) -> None:
        """Write safetensors with ``about`` as metadata; into ``ems.safetensors`` of a folder.

        ``dtype`` is that of l, s, b and their errors on disk: float16 takes a quarter of the room
        and keeps three digits, mostly more than standard errors leave.

        Raises ValueError if ``about`` holds what JSON cannot say, or ``dtype`` cannot hold a value.
        """
        try:
            values = {"format": _FORMAT, "about": self.about}
            if self.verdict is not None:
                values["verdict"] = self.verdict.to_json()
            body = json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"about={dict(self.about)!r}: need JSON values: {error}") from error
        tensors = {"l": self.l, "s": self.s, "b": self.b}
        tensors |= {f"error_{name}": error for name, error in self.errors.items()}
        stored = {
            name: tensor.to(dtype, copy=True).contiguous() for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            if (stored[name].isfinite() != tensor.isfinite()).any():
                raise ValueError(f"dtype={dtype}: {name} has values beyond its range")
        stored["lam"] = self.lam.clone()
        save_file(stored, _file(path), metadata={"ems": body})

    @classmethod
    def load(cls, path: str | Path) -> EMS:
        """Read what ``save`` wrote, from the file or its folder; ValueError for another file."""
        path = _file(path)
        if not path.is_file():
            raise ValueError(f"path={str(path)!r} does not exist: need a file that EMS.save wrote")
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"path={str(path)!r} holds no statistics: {error}") from error
        with opened as file:
            body = json.loads((file.metadata() or {}).get("ems", "{}"))
            if body.get("format") != _FORMAT:
                raise ValueError(f"path={str(path)!r} holds no statistics ({_FORMAT})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        names = [name for name in tensors if name.startswith("error_")]
        errors = {name.removeprefix("error_"): tensors.pop(name) for name in names}
        lam, l, s, b = (tensors[name] for name in ("lam", *DEGENERATE))
        verdict = Verdict.from_json(body["verdict"]) if "verdict" in body else None
        return cls(lam, l, s, b, errors, body["about"], verdict)

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        schedule: NoiseSchedule,
        *,
        t_start: float | None = None,
        t_end: float | None = None,
    ) -> EMS:
        """Read the layout of the official code: ``l.npz`` and ``sb.npz`` of a folder, or one npz.

        Those files hold l, s and b (N + 1, *event) and say nothing of the grid: it is uniform in
        lambda between t_start and t_end of ``schedule`` (by default the schedule's own ends).
        Nothing is unpickled. Raises ValueError if a file or an array is missing.
        """
        path = Path(path)
        files = [path / "l.npz", path / "sb.npz"] if path.is_dir() else [path]
        arrays: dict[str, Tensor] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(f"path={str(path)!r}: {file.name} does not exist")
            with np.load(file, allow_pickle=False) as stored:
                arrays |= {k: torch.from_numpy(stored[k]) for k in DEGENERATE if k in stored}
        missing = [name for name in DEGENERATE if name not in arrays]
        if missing:
            raise ValueError(f"path={str(path)!r} has no array {missing[0]!r}: need l, s and b")
        lam, about = _grid_of(schedule, t_start, t_end, len(arrays["l"]))
        l, s, b = (arrays[name] for name in DEGENERATE)
        return cls(lam, l, s, b, about={**about, "source": path.name})

    @classmethod
    def degenerate(
        cls,
        schedule: NoiseSchedule,
        *,
        t_start: float | None = None,
        t_end: float | None = None,
        intervals: int = 240,
    ) -> EMS:
        """The degenerate statistics, one value for all coordinates, on a grid of ``schedule``."""
        lam, about = _grid_of(schedule, t_start, t_end, intervals + 1)
        l, s, b = (torch.full_like(lam, value) for value in DEGENERATE.values())
        return cls(lam, l, s, b, about=about)

    # uncertainty

    def shrunk(self, *, window: int = 4) -> EMS:
        r"""The statistics drawn towards the degenerate ones by as much as they are uncertain.

        With q0 the degenerate value and e the standard error of an estimate q,

            q0 + tau^2 / (tau^2 + e^2) (q - q0),     tau^2 = max(0, mean((q - q0)^2 - e^2)),

        the mean over the coordinates of a node and of the ``window`` nodes on either side. This is
        the posterior mean for deviations drawn from N(0, tau^2), with tau^2 estimated from all of
        them together (Efron and Morris 1973); for equal e it is James and Stein's estimator, whose
        mean square error is below both that of q and, but for a term of 2 in the number of
        coordinates, that of q0. With too few samples tau^2 vanishes and the solver is
        DPM-Solver++; with many the factor goes to 1. One coordinate and ``window=0`` leave
        max(0, 1 - e^2 / (q - q0)^2). This is about the error of the statistics; that of the
        samples follows it in the measurements of docs/solvers/dpm-solver-v3.md. A verdict stays:
        `check_ems` gives the shrunk statistics their own.

        Raises ValueError if the standard errors are not known.
        """
        missing = [name for name in DEGENERATE if name not in self.errors]
        if missing:
            raise ValueError(f"errors has no {missing[0]!r}: shrinking needs the standard errors")
        if not is_whole(window, 0):
            raise ValueError(f"window={window!r}: need a whole number of nodes, at least 0")
        l, s, b = (
            _shrink(getattr(self, name), self.errors[name], value, window)
            for name, value in DEGENERATE.items()
        )
        return replace(self, l=l, s=s, b=b, about={**self.about, "shrunk": True})

    # does it fit

    def fits(
        self,
        schedule: NoiseSchedule,
        lams: Iterable[float] = (),
        event: tuple[int, ...] | None = None,
    ) -> None:
        """ValueError unless the statistics are of ``schedule``, cover ``lams`` and fit ``event``.

        An infinite lambda needs no statistics (see `dpm_solver_v3`); the shape fits if it
        broadcasts to ``event``.
        """
        first, last = self.lam[0].item(), self.lam[-1].item()
        if not same_schedule(self.about, schedule_note(schedule, first, last)):
            raise ValueError(f"ems was made for {self.about['schedule']}, not for {schedule!r}")
        slack = 1e-6 * (last - first) / self.intervals
        for lam in lams:
            if math.isfinite(lam) and not first - slack <= lam <= last + slack:
                ends = ", ".join(
                    f"{name}={schedule.time(end):.6g}"
                    for name, end in (("t_start", first), ("t_end", last))
                )
                raise ValueError(
                    f"ems covers lambda {first:.6g} to {last:.6g}, but the grid has {lam:.6g}: "
                    f"sample within {ends}, or estimate the statistics on the wider range"
                )
        if event is not None:
            check_event(self.event, event)


def check_event(shape: tuple[int, ...], event: tuple[int, ...]) -> None:
    """ValueError unless coefficients of ``shape`` broadcast to states with ``event`` axes."""
    axes = len(shape) in (0, len(event))
    if not axes or any(a not in (1, n) for a, n in zip(shape, event, strict=False)):
        raise ValueError(
            f"ems holds statistics of shape {tuple(shape)}, but x has event shape {tuple(event)}: "
            "need the same axes, each of the same size or 1"
        )


def _float64(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}={value!r}: need a tensor")
    return value.detach().to("cpu", torch.float64, copy=True)


def _check_grid(lam: Tensor) -> None:
    if lam.ndim != 1 or len(lam) < 2 or not torch.isfinite(lam).all():
        raise ValueError(f"lam has shape {tuple(lam.shape)}: need at least 2 finite numbers")
    step = float(lam[-1] - lam[0]) / (len(lam) - 1)
    if step <= 0 or not ((lam.diff() - step).abs() <= 1e-6 * step).all():
        raise ValueError(f"lam runs {lam[0]:.6g} .. {lam[-1]:.6g}: need a uniform rising grid")


def _check_values(name: str, value: Tensor, shape: torch.Size, nodes: int) -> None:
    if value.shape != shape or value.ndim < 1 or len(value) != nodes:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: need ({nodes}, *event), one event shape for "
            "l, s and b"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} has values that are not finite")


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / _FILE if path.is_dir() else path


def _grid_of(
    schedule: NoiseSchedule, t_start: float | None, t_end: float | None, nodes: int
) -> tuple[Tensor, dict[str, Any]]:
    """The uniform grid of lambda between two times, and the note of them."""
    start = float(schedule.t_start if t_start is None else t_start)
    end = float(schedule.t_end if t_end is None else t_end)
    check_range(schedule, start, end)
    ends = schedule.lam(start), schedule.lam(end)
    if not all(map(math.isfinite, ends)):
        raise ValueError(
            f"t_start={start!r}, t_end={end!r} have lambda {ends}: need finite values, give both"
        )
    about = {**schedule_note(schedule, *ends), "t_start": start, "t_end": end}
    return torch.linspace(*ends, nodes, dtype=torch.float64), about


def _shrink(value: Tensor, error: Tensor, target: float, window: int) -> Tensor:
    deviation = value - target
    error = error.clamp(max=1e100)  # an unknown one may be infinite; its square must not be
    excess = (deviation**2 - error**2).reshape(len(value), -1).mean(1)
    reach = torch.arange(len(value))
    near = ((reach[:, None] - reach).abs() <= window).to(excess)
    variance = ((near @ excess) / near.sum(1)).clamp(min=0).view(-1, *[1] * (value.ndim - 1))
    factor = torch.where(error > 0, variance / (variance + error**2), 1.0)
    return target + factor * deviation
