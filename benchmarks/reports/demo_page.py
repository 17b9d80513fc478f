"""A comparison as a page: Markdown tables beside the plot and the pictures.

Everything is made from the records and the samples that lie in the comparison's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.reports.demo_pictures import error_plot, is_ok, picture_grid
from logsnr.benchmarks.reports.markdown import release, table
from logsnr.benchmarks.reports.pictures import write_png
from logsnr.benchmarks.studies.demo import FINE, Settings

REPORT, ERROR_PLOT, PICTURES = "report.md", "error.png", "samples.png"


def write_report(folder: Path, settings: Settings, records: Sequence[Record]) -> Path:
    """Write the plot, the picture grid and the page into ``folder``; returns the page's path.

    records : as `compare` returns them, the reference first.
    """
    write_png(error_plot(settings, records), folder / ERROR_PLOT, colours=128)
    write_png(picture_grid(folder, settings, records), folder / PICTURES, colours=160)
    path = folder / REPORT
    path.write_text(markdown(settings, records))
    return path


def best(settings: Settings, records: Sequence[Record], nfe: int, *, stock: bool) -> Record | None:
    """The record of least RMSE at ``nfe`` among ours, or among diffusers'; None without any."""
    found = [
        record
        for record in records
        if record["nfe"] == nfe
        and is_ok(record)
        and settings.methods[record["solver"]].stock is stock
    ]
    return min(found, key=lambda record: record["rmse"], default=None)


def verdict(settings: Settings, records: Sequence[Record]) -> str:
    """One sentence: the best of ours against the best of diffusers, at 10 NFE if that was run."""
    nfe = 10 if 10 in settings.nfe else sorted(settings.nfe)[len(settings.nfe) // 2]
    ours, stock = (best(settings, records, nfe, stock=stock) for stock in (False, True))
    parts = [
        f"{settings.methods[record['solver']].title}, RMSE {record['rmse']:.4f}"
        for record in (ours, stock)
        if record is not None
    ]
    if ours is None or stock is None:
        return f"Best at {nfe} NFE: {(parts or ['all diverged'])[0]}."
    ratio = stock["rmse"] / ours["rmse"]
    return f"Best at {nfe} NFE: our {parts[0]}; {parts[1]} ({ratio:.2f} times as much)."


def rows(
    settings: Settings, records: Sequence[Record], cell: Callable[[Record], str]
) -> list[list[str]]:
    """A line a solver: its title, then ``cell`` of its record at each NFE ("diverged").

    Where it has none, nothing.
    """
    at = {(record["solver"], record["nfe"]): record for record in records}

    def text(name: str, nfe: int) -> str:
        record = at.get((name, nfe))
        if record is None:
            return ""
        return cell(record) if is_ok(record) else "diverged"

    return [
        [settings.methods[name].title, *(text(name, n) for n in settings.nfe)]
        for name in settings.solvers
    ]


def markdown(settings: Settings, records: Sequence[Record]) -> str:
    """The page."""
    reference = records[0]
    least = {
        n: min((r["rmse"] for r in records if r["nfe"] == n and is_ok(r)), default=None)
        for n in settings.nfe
    }

    def error(record: Record) -> str:
        text = f"{record['rmse']:.4f}"
        return f"**{text}**" if record["rmse"] == least[record["nfe"]] else text

    tables = [
        ("RMSE of the median sample", lambda r: f"{r['rmse_median']:.4f}"),
        ("RMSE to the converged solution", error),
        ("PSNR to the converged solution, dB", lambda r: f"{r['psnr']:.1f}"),
        (
            f"FID in the classifier's features (the converged solution: {reference['fid']:.2f})",
            lambda r: f"{r['fid']:.2f}",
        ),
        ("Wall time, seconds", lambda r: f"{r['seconds']:.2f}"),
        ("Network evaluations counted at the network", lambda r: f"{r['nfe_counted']:g}"),
    ]
    page = [
        f"# Solvers on the embedded model of {settings.model}",
        verdict(settings, records),
        f"![Error against NFE]({ERROR_PLOT})",
        f"![Samples]({PICTURES})",
    ]
    for title, cell in tables:
        page.append(f"## {title}")
        page.append(
            table(["solver", *(f"{n} NFE" for n in settings.nfe)], rows(settings, records, cell))
        )
    page.append("## How it was measured")
    page.append("\n".join(f"* {line}" for line in _method(settings, reference)))
    return "\n\n".join(page) + "\n"


def _method(settings: Settings, reference: Record) -> list[str]:
    """How the numbers of the page came about, and what they do not say."""
    guided = settings.guidance != 1
    guidance = f"scale {settings.guidance:g}, two network rows an evaluation" if guided else "off"
    return [
        f"{settings.samples} starts x_T ~ N(0, 1) with seed {settings.seed}, "
        f"{settings.lineup.labels}; guidance {guidance}. Every method gets the same starts and "
        "labels.",
        settings.lineup.ends,
        "`PlanScheduler, nothing said` is the line that is pasted into a pipeline, with the solver "
        f"and the grid that it chooses; our other solvers run on the grid "
        f"`{settings.lineup.grid}`, diffusers' on "
        "the timestep spacing of the model's config or of the row's name.",
        f"The converged solution of the probability-flow ODE is UniPC-3 with {FINE[0]} "
        f"evaluations, which is {reference['error_bar']:.1e} (root mean square) away from "
        f"{FINE[1]} evaluations; docs/demo.md checks it against torchdiffeq. Both together took "
        f"{reference['seconds']:.0f} s.",
        f"The FID of {settings.samples} samples is biased upwards: compare it within this page "
        "only. It measures the network's errors with the solver's, so the converged solution's is "
        "the one to reach.",
        f"{torch.get_num_threads()} threads, torch {release('torch')}, diffusers "
        f"{release('diffusers')}, logsnr {release('logsnr')}. Records: `{RECORDS}`.",
    ]
