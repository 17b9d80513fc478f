"""The report's charts and pictures as PNG, for papers and READMEs."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image

from logsnr.benchmarks.reports.charts import ticks_between
from logsnr.benchmarks.reports.figures import Figure, against_nfe, against_time
from logsnr.benchmarks.reports.rows import Table
from logsnr.benchmarks.reports.samples import Samples

INK, MUTED, RULE = "#16191d", "#59636e", "#d9dee4"
COLOURS = (
    "#0b64b4", "#c8500b", "#0a8460", "#b04a8e", "#a97400", "#0d9fb5", "#6f4fa3", "#6c7a12",
)  # fmt: skip
MARKERS = "os^Dv"
DPI = 120


def quality_png(table: Table, styles: Mapping[str, int], path: Path) -> None:
    """Two qualities at most, each against NFE and time: RMSE and FID where they are there."""
    first = [q for q in table.qualities if q.key in ("rmse", "fid")] or table.qualities
    rows = []
    for quality in first[:2]:
        drawn = [against_nfe(table, quality, styles), against_time(table, quality, styles)]
        rows.append([figure for figure in drawn if figure is not None])
    drawing = Drawing(figsize=(10.6, 3.9 * len(rows) + 0.2), dpi=DPI, layout="constrained")
    if not rows:
        drawing.text(0.5, 0.5, "nothing to draw", ha="center", color=MUTED)
    handles: dict[str, Line2D] = {}
    for i, row in enumerate(rows):
        for j, figure in enumerate(row):
            axes = drawing.add_subplot(len(rows), len(row), i * len(row) + j + 1)
            handles |= _panel(axes, figure)
    if handles:
        drawing.legend(
            handles=list(handles.values()),
            loc="outside right center",
            frameon=False,
            fontsize=8.5,
        )
    _save(drawing, path)


def pictures_png(table: Table, shown: Samples, path: Path) -> None:
    """Rows are contenders, columns NFE; below each its error map."""
    counts = sorted({strip.nfe for strip in shown.strips})
    strips = {(strip.contender, strip.nfe): strip for strip in shown.strips}
    names = [name for name in table.contenders if any(name == key for key, _ in strips)]
    tall = 2 if any(strip.error is not None for strip in shown.strips) else 1
    shape = shown.strips[0].picture.size
    wide, high = 1.3, 1.3 * shape[1] / shape[0]
    rows = len(names) + (shown.converged is not None)
    width, height = 2.4 + wide * len(counts) * 1.06, 0.5 + rows * (tall * high + 0.16)
    drawing = Drawing(figsize=(width, height), dpi=DPI)

    def place(picture: Image.Image, column: int, top: float) -> Axes:
        left = (2.4 + column * wide * 1.06) / width
        box = (left, 1 - (top + high) / height, wide / width, high / height)
        axes = drawing.add_axes(box, xticks=[], yticks=[])
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.spines[:].set_visible(False)
        return axes

    def name(text: str, top: float, tall: float) -> None:
        y = 1 - (top + tall / 2) / height
        drawing.text(2.25 / width, y, text, ha="right", va="center", fontsize=8, color=INK)

    for j, nfe in enumerate(counts):
        x = (2.4 + (j * 1.06 + 0.5) * wide) / width
        drawing.text(x, 1 - 0.3 / height, f"{nfe} NFE", ha="center", fontsize=9, color=INK)
    top = 0.45
    if shown.converged is not None:
        place(shown.converged, 0, top)
        name("converged solution", top, high)
        top += high + 0.16
    for contender in names:
        name(contender, top, tall * high)
        for j, nfe in enumerate(counts):
            strip = strips.get((contender, nfe))
            if strip is not None:
                place(strip.picture, j, top)
                if strip.error is not None:
                    place(strip.error, j, top + high + 0.03)
        top += tall * high + 0.16
    _save(drawing, path)


def _panel(axes: Axes, figure: Figure) -> dict[str, Line2D]:
    axes.set_xscale("log")
    if figure.log_y and all(point.y > 0 for line in figure.lines for point in line.points):
        axes.set_yscale("log", nonpositive="clip")
    handles: dict[str, Line2D] = {}
    for line in figure.lines:
        colour = COLOURS[line.style % len(COLOURS)]
        x, y = [point.x for point in line.points], [point.y for point in line.points]
        spread = [point.spread for point in line.points]
        if any(spread):
            low = [b - s for b, s in zip(y, spread, strict=True)]
            high = [b + s for b, s in zip(y, spread, strict=True)]
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        (handles[line.name],) = axes.plot(
            x,
            y,
            label=line.name,
            color=colour,
            marker=MARKERS[line.style % len(MARKERS)],
            markersize=5,
            markerfacecolor=colour if line.ours else "white",
            linestyle="-" if line.ours else "--",
            linewidth=1.6 if line.ours else 1.2,
            zorder=3 if line.ours else 2,
        )
    for level in figure.levels:
        axes.axhline(level.y, color=MUTED, linestyle=":", linewidth=1)
        axes.annotate(level.text, (0.02, level.y), xycoords=("axes fraction", "data"),
                      fontsize=7.5, color=MUTED, va="bottom")  # fmt: skip
    if figure.front:
        x = [row.values[figure.x_key].mean for row in figure.front]
        y = [row.values[figure.key].mean for row in figure.front]
        axes.step(x, y, where="post", color=INK, alpha=0.2, linewidth=5, zorder=1)
    x_ticks = figure.ticks or ticks_between(*axes.get_xlim(), log=True)
    y_ticks = ticks_between(*axes.get_ylim(), log=axes.get_yscale() == "log")
    axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
    axes.set_yticks(y_ticks, [f"{tick:g}" for tick in y_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(figure.x_title, fontsize=9, color=INK)
    axes.set_ylabel(figure.y_title, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=MUTED, which="both")
    axes.grid(color=RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    return handles


def _save(drawing: Drawing, path: Path) -> None:
    """A PNG of at most 256 colours, which is several times smaller and looks the same."""
    buffer = BytesIO()
    drawing.savefig(buffer, format="png", facecolor="white")
    Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)
