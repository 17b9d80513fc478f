r"""What parallel-in-time runs took, as tables and sentences.

The same tolerance gives different errors in different modes, so modes are also compared at equal
final error: between neighbouring tolerances the sweeps and evaluations are taken as linear in the
logarithm of the error. Outside the tolerances that were measured nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.studies.parallel import SEQUENTIAL, Job, Settings

LEVELS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Final errors at which modes are compared."""


@dataclass(frozen=True)
class Findings:
    """The records of `run_all`, with the jobs that they belong to; the throughput has none."""

    settings: Settings
    records: tuple[tuple[Job | None, Record], ...]

    @property
    def throughput(self) -> dict[int, float]:
        """Groups -> seconds of one network call."""
        record = next(record for job, record in self.records if job is None)
        return dict(zip(record["options"]["sizes"], record["seconds"], strict=True))

    @property
    def runs(self) -> list[tuple[Job, Record]]:
        """The parallel runs."""
        return [(j, r) for j, r in self.records if j is not None and j.mode != SEQUENTIAL]

    def sequential(self, job: Job) -> float:
        """Seconds of the sequential run of the job's plan."""
        alone = Job(job.solver, job.nfe)
        return next(record["seconds"] for found, record in self.records if found == alone)

    def curve(self, solver: str, nfe: int, mode: str, window: int | None) -> list[Record]:
        """The runs that did not diverge, from the largest tolerance to the smallest."""
        wanted = (solver, nfe, mode, window)
        found = [(j, r) for j, r in self.runs if j[:4] == wanted and r["status"] == "ok"]
        return [record for _, record in sorted(found, key=lambda run: -(run[0].tolerance or 0.0))]

    @property
    def windows(self) -> list[tuple[str, int, int | None]]:
        """(solver, N, window) of all runs."""
        return list(dict.fromkeys((j.solver, j.nfe, j.window) for j, _ in self.runs))

    def as_json(self) -> list[Record]:
        """The records."""
        return [record for _, record in self.records]


class Needed(NamedTuple):
    """What a mode takes to a given error; numbers between two runs."""

    sweeps: float
    evaluations: float


def needed(curve: Sequence[Mapping[str, Any]], error: float) -> Needed | None:
    """What the runs of ``curve``, in order of falling tolerance, take to a final ``error``.

    Where an error rises again with a smaller tolerance, the later of the crossings counts. None
    if the runs do not bracket the error.
    """
    for before, after in reversed(list(zip(curve, curve[1:], strict=False))):
        if before["error"] >= error >= after["error"] and before["error"] > after["error"] > 0:
            share = math.log(before["error"] / error) / math.log(before["error"] / after["error"])
            return Needed(
                *((1 - share) * before[name] + share * after[name] for name in Needed._fields)
            )
    return None


def run_tables(findings: Findings) -> Iterator[tuple[str, list[list[str]]]]:
    """For each plan and window, a title, and head and rows: what happened (what was predicted)."""
    for solver, nfe, window in findings.windows:
        alone = Job(solver, nfe)
        rows = [["tolerance", "mode", "sweeps", "evaluations", "error", "seconds", "speed-up"]]
        for job, record in findings.runs:
            if job[:2] == alone[:2] and job.window == window:
                rows.append([f"{job.tolerance:g}", job.mode, *_cells(findings, job, record)])
        title = f"{solver}, N = {nfe}, {words(window)}"
        yield f"{title}; sequential {findings.sequential(alone):.3g} s", rows


def _cells(findings: Findings, job: Job, record: Record) -> list[str]:
    if record["status"] != "ok":
        return [record["status"], "", "", "", ""]
    predicted, seconds = record["predicted"], record["seconds"]
    return [
        f"{record['sweeps']} ({predicted['sweeps']})",
        f"{record['evaluations']} ({predicted['evaluations']})",
        f"{record['error']:.1e}",
        f"{seconds:.3g}",
        f"{findings.sequential(job) / seconds:.2f} ({predicted['speedup']:.2f})",
    ]


def equal_error_rows(findings: Findings) -> list[list[str]]:
    """Head and rows of the comparison at equal error: sweeps / evaluations, and their ratios.

    Empty where no error is common to all modes, or there is one mode only.
    """
    modes = findings.settings.modes
    head = ["plan", "error", *modes, *(f"{mode} : {modes[0]}" for mode in modes[1:])]
    rows = []
    for solver, nfe, window in findings.windows:
        curves = [findings.curve(solver, nfe, mode, window) for mode in modes]
        for level in LEVELS:
            costs = [cost for curve in curves if (cost := needed(curve, level)) is not None]
            if len(costs) < len(modes) or len(modes) < 2:
                continue
            where = "" if window is None else f", {words(window)}"
            row = [f"{solver} {nfe}{where}", f"{level:g}"]
            row += [f"{cost.sweeps:.1f}/{cost.evaluations:.0f}" for cost in costs]
            first = costs[0]
            row += [
                f"{cost.sweeps / first.sweeps:.2f}/{cost.evaluations / first.evaluations:.2f}"
                for cost in costs[1:]
            ]
            rows.append(row)
    return [head, *rows] if rows else []


def verdict(findings: Findings) -> list[str]:
    """When it pays here, in sentences."""
    seconds, device = findings.throughput, findings.settings.device
    most = max(seconds)
    gain = most * seconds[1] / seconds[most]
    lines = [
        f"On this {device}, one network call on {most} groups takes "
        f"{seconds[most] / seconds[1]:.1f} times as long as on one: batching is worth a factor of "
        f"{gain:.1f}, and parallel sampling needs two to five times the evaluations."
    ]
    ran = [(job, record) for job, record in findings.runs if record["status"] == "ok"]
    if not ran:
        return lines
    gains = {job: findings.sequential(job) / record["seconds"] for job, record in ran}
    best = max(gains, key=lambda job: gains[job])
    slower = sum(gain < 1 for gain in gains.values())
    where = f"{best.solver} {best.nfe}, {best.mode}, tolerance {best.tolerance:g}"
    if slower == len(gains):
        lines.append(
            f"Sequential would be faster here, in all {slower} runs; the best parallel one "
            f"({where}) took {1 / gains[best]:.2f} times as long."
        )
    elif slower:
        lines.append(
            f"Sequential would be faster here in {slower} of {len(gains)} runs; the best speed-up "
            f"is {gains[best]:.2f} ({where})."
        )
    else:
        lines.append(
            f"Parallel was faster in all {len(gains)} runs; the best speed-up is "
            f"{gains[best]:.2f} ({where})."
        )
    return lines


def words(window: int | None) -> str:
    """The window in words."""
    return "whole window" if window is None else f"window {window}"
