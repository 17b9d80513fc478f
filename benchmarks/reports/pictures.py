"""What the pictures of the pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image

DPI = 110
INK, MUTED, LINES = "#1b1f24", "#6e7781", "#d0d7de"


def write_png(figure: Figure, path: Path, *, colours: int = 256) -> None:
    """Write a PNG of so few colours that it is several times smaller, and looks the same."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(colours).save(path, optimize=True)


def tidy(axes: Axes, which: str = "major") -> None:
    """A light grid, and no frame above and on the right."""
    axes.grid(which=which, color=LINES, linewidth=0.5)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)


def finish_error_plot(
    axes: Axes,
    counts: Sequence[int],
    lines: Mapping[Line2D, float],
    errors: Sequence[float],
    bar: float,
    near: float = 10,
) -> None:
    """Axes and legend of RMSE against NFE, and a band for the error bar of the truth.

    lines : with the last error of each, by which the legend lists them from top to bottom.
    near : the band is drawn where the smallest error is less than so many times ``bar``.
    """
    if errors and near * bar > min(errors):
        axes.axhspan(bar / 100, bar, color=MUTED, alpha=0.15, lw=0)
        axes.set_ylim(bottom=min(bar, *errors) * 0.7)
    axes.set_xticks(counts, [str(nfe) for nfe in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations (NFE)")
    axes.set_ylabel("RMSE to the converged solution")
    tidy(axes, "both")
    if lines:
        order = sorted(lines, key=lambda line: lines[line], reverse=True)
        axes.figure.legend(handles=order, loc="outside right center", frameon=False, fontsize=9)
