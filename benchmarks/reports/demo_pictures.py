"""The pictures of a comparison: errors against NFE, and samples with their distance to the truth.

Each shows a few methods, so that it can be read: all that were asked for if they are few, else the
highlights, which are ours beside the best of diffusers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from logsnr.benchmarks.harness.comparison import kept_states
from logsnr.benchmarks.harness.protocol import Record
from logsnr.benchmarks.reports.pictures import DPI, INK, MUTED, finish_error_plot
from logsnr.benchmarks.studies.demo import Settings
from logsnr.benchmarks.studies.demo_methods import PASTED, TUNED

LINES, ROWS, COLUMNS = 6, 3, 2
"""Methods in the plot, methods and numbers of evaluations in the pictures, at most."""
SAMPLES = 5  # in a cell
STRIP = 420
"""Pixels of the samples of a cell, side by side."""
FAR = 1.0
"""Distance at which the maps of errors are darkest; the data lie in [-1, 1]."""

# A solver and its counterparts in diffusers have one hue. diffusers' lines are broken: dotted as
# the model's config says, dash-dotted for "trailing" and a shift, dashed for "karras".
_STYLE = {
    PASTED: ("#1b1f24", "o", "-"),
    TUNED: ("#b8860b", "X", "-"),
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
    "stock-euler": ("#7a828c", "o", ":"),
    "stock-euler-karras": ("#7a828c", "o", "--"),
    "stock-heun": ("#9467bd", "P", ":"),
    "stock-unipc-2-shift": ("#f08a4b", "p", "-."),
    "stock-unipc-2": ("#f08a4b", "p", ":"),
    "stock-unipc-2-trailing": ("#f08a4b", "p", "-."),
    "stock-unipc-2-karras": ("#f08a4b", "p", "--"),
}


_LOOK: dict[str, Any] = {"cmap": "gray_r", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
"""Of pictures with one channel; the colours of others are their own."""


def few(given: Sequence[str], most: int, highlights: Sequence[str]) -> list[str]:
    """At most ``most`` of the methods: all that are given, or the highlights among them first."""
    if len(given) <= most:
        return list(given)
    first = [name for name in highlights if name in given]
    return [*first, *(name for name in given if name not in first)][:most]


def error_plot(settings: Settings, records: Sequence[Record]) -> Figure:
    """RMSE against NFE, both logarithmic; the legend lists the lines from top to bottom.

    The shaded band is the error bar of the reference, where it comes near the errors.
    """
    figure = Figure(figsize=(8.4, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    lines = {}
    for name in few(settings.solvers, LINES, settings.lineup.highlights):
        found = [r for r in records if r["solver"] == name and is_ok(r)]
        points = sorted((r["nfe"], r["rmse"]) for r in found)
        if points:
            stock = settings.methods[name].stock
            colour, marker, dashes = _STYLE[name]
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor="white" if stock else colour,
                linestyle=dashes,
                linewidth=2.6 if name == PASTED else 1.3 if stock else 1.8,
                label=settings.methods[name].title,
            )
            lines[line] = points[-1][1]
    errors = [r["rmse"] for r in records[1:] if is_ok(r)]
    finish_error_plot(axes, settings.nfe, lines, errors, records[0]["error_bar"], near=5)
    return figure


def picture_grid(folder: Path, settings: Settings, records: Sequence[Record]) -> Figure:
    """The converged solution, then a row a method: samples, and below each where it is wrong.

    All cells have the same starts. The maps show |x - converged|, white for 0.
    """
    at = {(record["solver"], record["nfe"]): record for record in records}
    truth = kept_states(folder, records[0])[:SAMPLES]
    names = few(settings.solvers, ROWS, settings.lineup.shown)
    columns = settings.nfe[:COLUMNS]
    # In pixels, so that a pixel of a sample is a square of whole pixels of the picture.
    size = settings.embedded.shape[-1]
    tall = STRIP // (SAMPLES * size) * size
    strip = SAMPLES * tall
    gap, side, left, top = 26, 24, 230, 34
    width = left + (strip + side) * len(columns)
    height = top + tall + gap + (2 * tall + gap) * len(names)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def place(x: int, y: int) -> Axes:
        """Axes of one strip whose upper left corner is (x, y)."""
        box = (x / width, 1 - (y + tall) / height, strip / width, tall / height)
        axes = figure.add_axes(box, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def title(y: float, text: str, colour: str = INK, size: float = 11) -> None:
        figure.text(
            (left - 16) / width,
            1 - y / height,
            text,
            ha="right",
            va="center",
            color=colour,
            fontsize=size,
        )

    title(top + tall / 2, "converged solution")
    for j, nfe in enumerate(columns):
        axes = place(left + j * (strip + side), top)
        axes.set_title(f"{nfe} evaluations", fontsize=12, color=INK, pad=7)
        axes.imshow(_strip(truth), **_LOOK)
    for i, name in enumerate(names):
        y = top + tall + gap + i * (2 * tall + gap)
        title(y + tall / 2, settings.methods[name].title.replace(", ", ",\n"))
        title(y + 1.5 * tall, "its error", MUTED, 9.5)
        for j, nfe in enumerate(columns):
            record, x = at.get((name, nfe)), left + j * (strip + side)
            if record is None:  # cards are for some numbers of evaluations
                continue
            upper, lower = place(x, y), place(x, y + tall)
            if not is_ok(record):
                upper.text(0.5, 0.5, "diverged", ha="center", va="center", color=MUTED)
                continue
            samples = kept_states(folder, record)[:SAMPLES]
            upper.imshow(_strip(samples), **_LOOK)
            error = (samples - truth[: len(samples)]).abs().mean(1, keepdim=True)
            lower.imshow(_strip(error), cmap="Reds", vmin=0, vmax=FAR, interpolation="nearest")
            text = f"RMSE {record['rmse']:.3f}"
            lower.set_xlabel(text, fontsize=9, color=MUTED, labelpad=3)
    return figure


def is_ok(record: Record) -> bool:
    """Whether the run came to an end."""
    return record["status"] == "ok"


def _strip(samples: Tensor) -> np.ndarray:
    """The samples side by side: grey ones (H, B W) as they are, others (H, B W, 3) in [0, 1]."""
    side_by_side = torch.cat(list(samples), dim=2)
    if len(side_by_side) == 1:
        return side_by_side[0].numpy()
    return ((side_by_side.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
