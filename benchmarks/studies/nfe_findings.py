r"""The distances of a study, computed from the states that its runs left.

The RMSE is pooled over seeds and entries of the state; the PSNR takes the range of the reference
as its peak, since latents have no fixed one:

    RMSE = sqrt(mean (x - x_ref)^2),    PSNR = 20 log10((max x_ref - min x_ref) / RMSE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logsnr.benchmarks.harness.contenders import Contender
from logsnr.benchmarks.harness.files import load_tensor
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.study import Job, Study

if TYPE_CHECKING:
    from logsnr.benchmarks.studies.nfe_fit import PipelineFit

SDE = "SDE"  # what stands in the place of a distance to the solution of the ODE


@dataclass(frozen=True)
class Cell:
    """One contender at one NFE over all seeds that have come to an end.

    ``rmse`` and ``psnr`` are None for stochastic schedulers, which do not solve the ODE, and where
    no run came to an end; ``note`` then says why.
    """

    contender: str
    nfe: int
    rmse: float | None
    psnr: float | None
    note: str | None
    nfe_counted: float | None
    seconds: float | None
    rounding: float | None
    pictures: tuple[str | None, ...]
    """One a seed, None where there is none."""


@dataclass(frozen=True)
class Findings:
    """The distances of a study, as far as its records go."""

    study: Study
    problem: Mapping[str, Any]
    records: tuple[tuple[Job, Record], ...]
    folder: Path
    fit: PipelineFit | None = None

    @cached_property
    def _states(self) -> dict[Job, Tensor]:
        kept = [(job, record) for job, record in self.records if record["files"]]
        return {job: load_tensor(self.folder / record["files"][0]) for job, record in kept}

    @cached_property
    def references(self) -> dict[int, Tensor]:
        """The converged state of each seed."""
        return {job.seed: x for job, x in self._states.items() if job.contender is None}

    @cached_property
    def error_bar(self) -> float:
        """RMSE between the two reference solutions."""
        coarse = {
            job.seed: load_tensor(self.folder / record["files"][1])
            for job, record in self.records
            if job.contender is None
        }
        return _rmse([x - self.references[seed] for seed, x in coarse.items()])

    @cached_property
    def range(self) -> float:
        """Largest minus smallest entry of the reference."""
        entries = [x.aminmax() for x in self.references.values()]
        return float(max(e.max for e in entries) - min(e.min for e in entries))

    def distances(self, contender: Contender, nfe: int) -> list[float]:
        """The RMSE of each seed that has come to an end."""
        return [_rmse([gap]) for gap in self._gaps(contender, nfe)]

    def _gaps(self, contender: Contender, nfe: int) -> list[Tensor]:
        found = {seed: self._states.get(Job(contender, nfe, seed)) for seed in self.references}
        return [x - self.references[seed] for seed, x in found.items() if x is not None]

    @cached_property
    def cells(self) -> dict[tuple[str, int], Cell]:
        """By (contender's text, NFE)."""
        study = self.study
        return {
            (contender.text, nfe): self._cell(contender, nfe)
            for contender in study.contenders
            for nfe in study.nfe
        }

    def _cell(self, contender: Contender, nfe: int) -> Cell:
        records = [r for job, r in self.records if (job.contender, job.nfe) == (contender, nfe)]
        ended = [record for record in records if record["status"] == "ok"]
        bad = next((record for record in records if record["status"] != "ok"), None)
        stochastic = any(record["stochastic"] for record in ended)
        gaps = self._gaps(contender, nfe)
        error = _rmse(gaps) if gaps and not stochastic and bad is None else None
        note = None
        if bad is not None:
            note = bad["status"]
        elif stochastic:
            note = SDE
        rounding = [r["rounding"] for r in ended if r["rounding"] is not None]
        return Cell(
            contender.text,
            nfe,
            rmse=error,
            psnr=None if error is None else _psnr(error, self.range),
            note=note,
            nfe_counted=ended[0]["nfe_counted"] if ended else None,
            seconds=sum(r["seconds"] for r in ended) / len(ended) if ended else None,
            rounding=max(rounding, default=None),
            pictures=tuple(next(iter(record["pictures"]), None) for record in records),
        )

    @property
    def failures(self) -> list[str]:
        """One line for each contender that failed or diverged, with the first message."""
        lines: dict[str, str] = {}
        for job, record in self.records:
            if record["status"] != "ok" and job.contender is not None:
                text = f"`{job.contender.text}` {record['status']} at {job.nfe} NFE"
                lines.setdefault(
                    job.contender.text, f"{text}: {record['note']}" if record["note"] else text
                )
        return list(lines.values())

    def as_json(self) -> dict[str, Any]:
        """The distances as JSON values; numbers that are not finite are None."""
        cells = [asdict(cell) for cell in self.cells.values()]
        for cell in cells:
            if cell["psnr"] is not None and not math.isfinite(cell["psnr"]):
                cell["psnr"] = None
        return {
            "problem": dict(self.problem),
            "seeds": list(self.study.seeds),
            "reference_nfe": list(self.study.reference_nfe),
            "error_bar": self.error_bar,
            "range": self.range,
            "fit": None if self.fit is None else self.fit.as_json(),
            "cells": cells,
        }


def _rmse(gaps: Sequence[Tensor]) -> float:
    squares = torch.cat([gap.double().flatten() ** 2 for gap in gaps])
    return float(squares.mean().sqrt())


def _psnr(error: float, range_: float) -> float:
    return 20 * math.log10(range_ / error) if error > 0 else math.inf
