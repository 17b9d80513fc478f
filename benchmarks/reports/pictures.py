"""What the pictures of the pages share."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
