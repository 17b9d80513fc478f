"""A comparison as a page: Markdown tables, the error-against-NFE plot, and the picture grid.

Everything is made from the records and the samples that lie in the comparison's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from logsnr.benchmarks.comparison import (
    FINE,
    GRID,
    METHODS,
    RECORDS,
    REFERENCE,
    Settings,
    kept_samples,
)
from logsnr.benchmarks.results import Record

REPORT, ERROR_PLOT, PICTURES = "report.md", "error.png", "samples.png"
SHOWN = 5  # digits in a cell of the picture grid
ZOOM, DPI = 2, 110
INK, MUTED = "#1b1f24", "#6e7781"

# A solver and its counterparts in diffusers have one hue. diffusers' lines are broken: dotted as
# the model's config says, dash-dotted for "trailing", dashed for "karras".
_STYLE = {
    "ddim": ("#7a828c", "o", "-"),
    "heun": ("#9467bd", "P", "-"),
    "dpm++2s": ("#7fbf7b", "v", "-"),
    "dpm++3s": ("#1b7837", "^", "-"),
    "dpm++2m": ("#4393c3", "s", "-"),
    "dpm++3m": ("#08519c", "D", "-"),
    "unipc-2": ("#f08a4b", "p", "-"),
    "unipc-3": ("#ca0020", "h", "-"),
    "dpm-v3": ("#762a83", "*", "-"),
    "stock-ddim": ("#7a828c", "o", ":"),
    "stock-ddim-trailing": ("#7a828c", "o", "-."),
    "stock-dpm++2m": ("#4393c3", "s", ":"),
    "stock-dpm++2m-trailing": ("#4393c3", "s", "-."),
    "stock-dpm++2m-karras": ("#4393c3", "s", "--"),
    "stock-unipc-2": ("#f08a4b", "p", ":"),
    "stock-unipc-2-trailing": ("#f08a4b", "p", "-."),
    "stock-unipc-2-karras": ("#f08a4b", "p", "--"),
}


def write_report(folder: Path, settings: Settings, records: Sequence[Record]) -> Path:
    """Write the plot, the picture grid and the page into ``folder``; returns the page's path.

    records : as `compare` returns them, the reference first.
    """
    _save(error_plot(settings, records), folder / ERROR_PLOT, colours=128)
    _save(picture_grid(folder, settings, records), folder / PICTURES, colours=24)
    path = folder / REPORT
    path.write_text(markdown(settings, records))
    return path


def best(records: Sequence[Record], nfe: int, *, stock: bool) -> Record | None:
    """The record of least RMSE at ``nfe`` among ours, or among diffusers'; None without any."""
    found = [
        record
        for record in records
        if record["nfe"] == nfe and _ok(record) and METHODS[record["solver"]].stock is stock
    ]
    return min(found, key=lambda record: record["rmse"], default=None)


def verdict(settings: Settings, records: Sequence[Record]) -> str:
    """One sentence: the best of ours against the best of diffusers, at 10 NFE if that was run."""
    nfe = 10 if 10 in settings.nfe else sorted(settings.nfe)[len(settings.nfe) // 2]
    ours, stock = (best(records, nfe, stock=stock) for stock in (False, True))
    parts = [
        f"{METHODS[record['solver']].title}, RMSE {record['rmse']:.4f}"
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
    """A line a solver: its title, then ``cell`` of its record at each NFE ("diverged")."""
    at = {(record["solver"], record["nfe"]): record for record in records}
    return [
        [METHODS[name].title]
        + [cell(at[name, n]) if _ok(at[name, n]) else "diverged" for n in settings.nfe]
        for name in settings.solvers
    ]


def markdown(settings: Settings, records: Sequence[Record]) -> str:
    """The page."""
    reference = records[0]
    least = {
        n: min((r["rmse"] for r in records if r["nfe"] == n and _ok(r)), default=None)
        for n in settings.nfe
    }

    def error(record: Record) -> str:
        text = f"{record['rmse']:.4f}"
        return f"**{text}**" if record["rmse"] == least[record["nfe"]] else text

    tables = [
        ("RMSE to the converged solution", error),
        ("PSNR to the converged solution, dB", lambda r: f"{r['psnr']:.1f}"),
        (
            f"MNIST-feature FID (the converged solution itself: {reference['fid']:.2f})",
            lambda r: f"{r['fid']:.2f}",
        ),
        ("Wall time, seconds", lambda r: f"{r['seconds']:.2f}"),
        ("Network evaluations counted at the network", lambda r: f"{r['nfe_counted']:g}"),
    ]
    page = [
        "# Solvers on the embedded digits model",
        verdict(settings, records),
        f"![Error against NFE]({ERROR_PLOT})",
        f"![Samples]({PICTURES})",
    ]
    for title, cell in tables:
        page.append(f"## {title}")
        page.append(
            _table(["solver", *(f"{n} NFE" for n in settings.nfe)], rows(settings, records, cell))
        )
    page.append("## How it was measured")
    page.append("\n".join(f"* {line}" for line in _method(settings, reference)))
    return "\n\n".join(page) + "\n"


def _method(settings: Settings, reference: Record) -> list[str]:
    """How the numbers of the page came about, and what they do not say."""
    guided = settings.guidance != 1
    guidance = f"scale {settings.guidance:g}, two network rows an evaluation" if guided else "off"
    return [
        f"{settings.samples} starts x_T ~ N(0, 1) with seed {settings.seed}, labels 0 to 9 in "
        f"turn; guidance {guidance}. Every method gets the same starts and labels.",
        "Every method ends at training step 0 (t = 1/1000), where noise of sigma = 0.03 is left: "
        'ours by default, diffusers\' with `final_sigmas_type="sigma_min"` and, for DDIM, '
        "`set_alpha_to_one=False`.",
        f"Ours run on the grid `{GRID}`, diffusers' on the timestep spacing of the model's config "
        "or of the row's name.",
        f"The converged solution of the probability-flow ODE is UniPC-3 with {FINE[0]} "
        f"evaluations, which is {reference['error_bar']:.1e} (root mean square) away from "
        f"{FINE[1]} evaluations; docs/demo.md checks it against torchdiffeq. Both together took "
        f"{reference['seconds']:.0f} s.",
        f"The FID of {settings.samples} samples is biased upwards: compare it within this page "
        "only. It measures the network's errors with the solver's, so the converged solution's is "
        "the one to reach.",
        f"{torch.get_num_threads()} threads, torch {_release('torch')}, diffusers "
        f"{_release('diffusers')}, logsnr {_release('logsnr')}. Records: `{RECORDS}`.",
    ]


def error_plot(settings: Settings, records: Sequence[Record]) -> Figure:
    """RMSE against NFE, both logarithmic; the legend lists the lines from top to bottom.

    The shaded band is the error bar of the reference, where it comes near the errors.
    """
    figure = Figure(figsize=(8.4, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    lines = {}
    for name in settings.solvers:
        found = [r for r in records if r["solver"] == name and _ok(r)]
        points = sorted((r["nfe"], r["rmse"]) for r in found)
        if points:
            stock = METHODS[name].stock
            colour, marker, dashes = _STYLE[name]
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor="white" if stock else colour,
                linestyle=dashes,
                linewidth=1.3 if stock else 1.8,
                label=METHODS[name].title,
            )
            lines[line] = points[-1][1]
    errors = [r["rmse"] for r in records[1:] if _ok(r)]
    bar = records[0]["error_bar"]
    if errors and bar > min(errors) / 5:
        axes.axhspan(bar / 10, bar, color=MUTED, alpha=0.15, lw=0)
        axes.set_ylim(bottom=min(bar, *errors) * 0.7)
    axes.set_xticks(settings.nfe, [str(n) for n in settings.nfe])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations (NFE)")
    axes.set_ylabel("RMSE to the converged solution")
    axes.grid(which="both", color="#d0d7de", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        order = sorted(lines, key=lambda line: lines[line], reverse=True)
        figure.legend(handles=order, loc="outside right center", frameon=False, fontsize=9)
    return figure


def picture_grid(folder: Path, settings: Settings, records: Sequence[Record]) -> Figure:
    """Rows are solvers under the converged solution, columns NFE; all cells have the same starts.

    Below each cell stands its RMSE.
    """
    at = {(record["solver"], record["nfe"]): record for record in records}
    names = [REFERENCE, *settings.solvers]
    # In pixels, so that a pixel of a sample is a square of ZOOM x ZOOM of the picture.
    cell, gap, side, left, top = (ZOOM * 28 * SHOWN, ZOOM * 28), 20, 16, 240, 30
    width = left + (cell[0] + side) * len(settings.nfe)
    height = top + (cell[1] + gap) * len(names)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for i, name in enumerate(names):
        bottom = height - top - i * (cell[1] + gap) - cell[1]
        title = "converged solution" if name == REFERENCE else METHODS[name].title
        middle = (bottom + cell[1] / 2) / height
        figure.text((left - 14) / width, middle, title, ha="right", va="center", color=INK)
        for j, nfe in enumerate(settings.nfe):
            record = at[name, None if name == REFERENCE else nfe]
            x = left + j * (cell[0] + side)
            place = (x / width, bottom / height, cell[0] / width, cell[1] / height)
            axes = figure.add_axes(place, xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name == REFERENCE:
                axes.set_title(f"{nfe} NFE", fontsize=11, color=INK, pad=5)
            if not _ok(record):
                axes.text(0.5, 0.5, "diverged", ha="center", va="center", color=MUTED)
                continue
            strip = _strip(kept_samples(folder, record))
            axes.imshow(strip, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            if "rmse" in record:
                axes.set_xlabel(f"{record['rmse']:.3f}", fontsize=8, color=MUTED, labelpad=2)
    return figure


def _save(figure: Figure, path: Path, *, colours: int) -> None:
    """Write a PNG of so few colours that it is several times smaller, and looks the same."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(colours).save(path, optimize=True)


def _strip(samples: Tensor) -> np.ndarray:
    """Some of the samples side by side."""
    return torch.cat(list(samples[:SHOWN, 0]), dim=1).numpy()


def _ok(record: Record) -> bool:
    return record["status"] == "ok"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _release(package: str) -> str:
    return version(package).split("+")[0]
