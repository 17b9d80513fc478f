"""The page of `logsnr parallel`: tables and plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.reports.markdown import release, table
from logsnr.benchmarks.reports.pictures import DPI, tidy
from logsnr.benchmarks.studies.parallel_findings import (
    Findings,
    Needed,
    equal_error_rows,
    run_tables,
    verdict,
    words,
)

REPORT = "report.md"
PLOTS = ("convergence.png", "cost.png", "time.png")
COLOURS = {
    "published": "#6e7781",
    "literal": "#4393c3",
    "semilinear": "#1b7837",
    "ours": "#ca0020",
}
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^v"
_EQUAL = "Sweeps / evaluations, interpolated between the tolerances, and their ratios."


def write_findings(findings: Findings, folder: Path) -> None:
    """Write the plots and the page into ``folder``."""
    figures = (convergence_plot(findings), cost_plot(findings), time_plot(findings))
    for name, figure in zip(PLOTS, figures, strict=True):
        figure.savefig(folder / name, dpi=DPI)
    (folder / REPORT).write_text(markdown(findings))


def markdown(findings: Findings) -> str:
    """The page."""
    settings = findings.settings
    equal = equal_error_rows(findings)
    page = [
        "# Parallel in time",
        "\n".join(verdict(findings)),
        "## Beside the sequential run",
        "In brackets what was predicted.",
        *(f"{title}\n\n{table(rows[0], rows[1:])}" for title, rows in run_tables(findings)),
        *(["## At equal final error", _EQUAL, table(equal[0], equal[1:])] if equal else []),
        "## Convergence",
        f"![Residual and error after each sweep]({PLOTS[0]})",
        "## Cost",
        f"![Sweeps and evaluations against the final error]({PLOTS[1]})",
        f"![Wall time against the tolerance]({PLOTS[2]})",
        "## How it was measured",
        f"* Problem: {settings.problem}, {settings.batch} samples, seed {settings.seed}, "
        f"{settings.dtype} on {settings.device}, {torch.get_num_threads()} threads, torch "
        f"{release('torch')}.\n"
        "* Error: relative difference to the sequential result of the same plan, the largest of "
        "the batch.\n"
        "* Seconds are those of a single run each. Predictions come from the cost model with the "
        f"throughput {_throughput(findings)}.\n"
        f"* At most {settings.max_groups} groups in one network call. Records: `{RECORDS}`.",
    ]
    return "\n\n".join(page) + "\n"


def _throughput(findings: Findings) -> str:
    measured = findings.throughput.items()
    return ", ".join(f"{size}: {1000 * seconds:.3g} ms" for size, seconds in measured)


def convergence_plot(findings: Findings) -> Figure:
    """For each plan, the residual (dashed) and the sample's error (solid) after each sweep.

    Of the runs with the smallest tolerance; with several windows, those of the largest.
    """
    plans, tolerances = findings.settings.plans, findings.settings.tolerances
    figure, grid = _panels(findings, height=2.9, share=True)
    for axes, (solver, nfe) in zip(grid, plans, strict=True):
        axes.set_yscale("log")
        axes.set_title(f"{solver}, N = {nfe}", fontsize=10)
        axes.set_xlabel("sweep")
        window = _widest(findings, solver, nfe)
        for mode in findings.settings.modes:
            curve = findings.curve(solver, nfe, mode, window)
            if not curve:
                continue
            last, colour = curve[-1], COLOURS[mode]
            residuals = [(k, r) for k, r in enumerate(last["residuals"], start=1) if r]
            errors = [(k, e) for k, e in enumerate(last["errors"], start=1) if e]
            axes.plot(*_columns(residuals), "--", color=colour, lw=1, alpha=0.75)
            axes.plot(*_columns(errors), "-o", color=colour, lw=1.7, ms=3.5, label=mode)
        for tolerance in tolerances if len(tolerances) < 4 else tolerances[-1:]:
            axes.axhline(tolerance, color="#8c959f", lw=0.8, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_left(grid, findings, "error of the sample\n(dashed: largest residual)")
    _legend(figure, grid)
    return figure


def cost_plot(findings: Findings) -> Figure:
    """Sweeps above, evaluations below, against the final error, a column for each plan."""
    plans = findings.settings.plans
    figure = Figure(figsize=(max(2.7 * len(plans), 5.0) + 1.0, 5.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(plans), squeeze=False, sharex="col")
    for column, (solver, nfe) in enumerate(plans):
        for name, axes in zip(Needed._fields, grid[:, column], strict=True):
            axes.set_xscale("log")
            for mode, window, style in _lines(findings, solver, nfe):
                curve = [r for r in findings.curve(solver, nfe, mode, window) if r["error"] > 0]
                points = [(record["error"], record[name]) for record in curve]
                axes.plot(*_columns(points), **style, ms=4)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
        grid[0, column].set_title(f"{solver}, N = {nfe}", fontsize=10)
        grid[1, column].invert_xaxis()
        grid[1, column].set_xlabel("final error")
    for name, axes in zip(Needed._fields, grid[:, 0], strict=True):
        axes.set_ylabel(name)
    for axes in grid.flat:
        tidy(axes)
    _legend(figure, grid.flat)
    return figure


def time_plot(findings: Findings) -> Figure:
    """Wall time in units of the sequential run against the tolerance, a panel for each plan."""
    plans = findings.settings.plans
    figure, grid = _panels(findings, height=2.8)
    for axes, (solver, nfe) in zip(grid, plans, strict=True):
        axes.set_xscale("log")
        axes.set_title(f"{solver}, N = {nfe}", fontsize=10)
        axes.set_xlabel("tolerance")
        for mode, window, style in _lines(findings, solver, nfe):
            points = [
                (job.tolerance, record["seconds"] / findings.sequential(job))
                for job, record in findings.runs
                if job[:4] == (solver, nfe, mode, window) and record["status"] == "ok"
            ]
            axes.plot(*_columns(points), **style, ms=4)
        axes.axhline(1, color="#1b1f24", lw=0.8)
        axes.set_ylim(bottom=0)
        axes.invert_xaxis()
    _label_left(grid, findings, "wall time / sequential")
    _legend(figure, grid)
    return figure


def _lines(
    findings: Findings, solver: str, nfe: int
) -> Iterable[tuple[str, int | None, dict[str, Any]]]:
    """(mode, window, style): colours tell modes, dashes and markers windows."""
    windows = [window for s, n, window in findings.windows if (s, n) == (solver, nfe)]
    known = list(dict.fromkeys(window for _, _, window in findings.windows))
    for mode in findings.settings.modes:
        for window in windows:
            place = known.index(window)
            name = mode if len(known) == 1 else f"{mode}, {words(window)}"
            yield (
                mode,
                window,
                {
                    "color": COLOURS[mode],
                    "ls": DASHES[place % len(DASHES)],
                    "marker": MARKERS[place % len(MARKERS)],
                    "label": name,
                },
            )


def _panels(findings: Findings, *, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A row for each solver, a column for each N."""
    rows, columns = len(findings.settings.solvers), len(findings.settings.steps)
    size = (max(2.9 * columns, 3.4) + 1.2, height * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = list(
        figure.subplots(rows, columns, squeeze=False, sharey="row" if share else False).flat
    )
    for axes in grid:
        tidy(axes)
    return figure, grid


def _label_left(grid: Sequence[Axes], findings: Findings, text: str) -> None:
    for axes in grid[:: len(findings.settings.steps)]:
        axes.set_ylabel(text)


def _legend(figure: Figure, grid: Iterable[Axes]) -> None:
    """One legend for all panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9
    )


def _widest(findings: Findings, solver: str, nfe: int) -> int | None:
    windows = [window for s, n, window in findings.windows if (s, n) == (solver, nfe)]
    return max(windows, key=lambda window: math.inf if window is None else window)


def _columns(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]
