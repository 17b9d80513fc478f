"""The picture of statistics: l, s and b over lambda, with their spread and standard errors."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from logsnr.solvers import EMS
from logsnr.solvers.model_statistics.ems import DEGENERATE

PLOT = "ems.png"
FEW = 6  # coordinates that get a line each; more are shown by their quantiles
BAND = 2.0  # standard errors on either side
DPI = 110
COLOURS = ("#0571b0", "#ca0020", "#1b7837", "#e08214", "#8073ac", "#4d5560")
INK, MUTED, LINES = "#1b1f24", "#6e7781", "#d0d7de"
TITLES = {
    "l": "l: slope of the network's noise in x",
    "s": "s: slope of df/dλ in f",
    "b": "b: intercept of df/dλ",
}


def write_plot(ems: EMS, path: Path) -> None:
    """Write `figure` as a PNG of few colours."""
    buffer = BytesIO()
    figure(ems).savefig(buffer, format="png", dpi=DPI)
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


def figure(ems: EMS) -> Figure:
    """Three panels, l, s and b over lambda; broken lines are the values of DPM-Solver++.

    Few coordinates have a line each with a band of two standard errors. Of many it is the median
    that has the line, the median standard error the dark band, and the light band holds the
    middle 80 % of the coordinates.
    """
    drawing = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, name in zip(drawing.subplots(1, 3), DEGENERATE, strict=True):
        values = getattr(ems, name).reshape(len(ems.lam), -1)
        error = ems.errors.get(name)
        panel(axes, ems.lam, values, None if error is None else error.reshape(values.shape))
        axes.axhline(DEGENERATE[name], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(TITLES[name], fontsize=10, color=INK, loc="left")
        axes.set_xlabel("λ   (noise → data)", color=INK)
        axes.margins(x=0)
        axes.grid(color=LINES, linewidth=0.6)
        axes.tick_params(colors=MUTED, labelsize=8)
        for spine in axes.spines.values():
            spine.set_color(LINES)
    if drawing.axes[0].get_legend_handles_labels()[0]:
        drawing.axes[0].legend(fontsize=8, frameon=False, loc="best")
    return drawing


def panel(axes: Axes, lam: Tensor, values: Tensor, errors: Tensor | None) -> None:
    """One statistic: ``values`` and ``errors`` (nodes, coordinates)."""
    count = values.shape[1]
    if count > FEW:
        low, middle, high = torch.quantile(
            values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1
        )
        colour = COLOURS[0]
        axes.fill_between(
            lam, low, high, color=colour, alpha=0.15, linewidth=0, label="80 % of coordinates"
        )
        lines = [(middle, None if errors is None else errors.median(dim=1).values, "median")]
    else:
        names = [""] if count == 1 else [f"channel {i}" for i in range(count)]
        lines = [
            (values[:, i], None if errors is None else errors[:, i], names[i]) for i in range(count)
        ]
    for (value, error, name), colour in zip(lines, COLOURS, strict=False):
        if error is not None:
            axes.fill_between(
                lam,
                value - BAND * error,
                value + BAND * error,
                color=colour,
                alpha=0.35,
                linewidth=0,
                label=f"± {BAND:.0f} standard errors" if colour == COLOURS[0] else None,
            )
        axes.plot(lam, value, color=colour, linewidth=1.6, label=name or None)
