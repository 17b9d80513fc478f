"""Samples and error maps on the page: a row a contender, a column a number of evaluations."""

from __future__ import annotations

from html import escape

from PIL import Image

from logsnr.benchmarks.reports import tables
from logsnr.benchmarks.reports.quantities import short
from logsnr.benchmarks.reports.rows import Table
from logsnr.benchmarks.reports.samples import DARKEST, Samples, Strip, data_uri

WIDE, NARROW, FEW = 200, 132, 4
"""Pixels that a strip of samples has on the page, about: with few columns, and with more."""


def samples_html(table: Table, shown: Samples | None) -> str:
    """The pictures of a setting; nothing where there are none."""
    if shown is None:
        return ""
    strips = {(strip.contender, strip.nfe): strip for strip in shown.strips}
    counts = sorted({nfe for _, nfe in strips})
    names = [name for name in table.contenders if any(name == key for key, _ in strips)]
    wide = WIDE if len(counts) <= FEW else NARROW
    head = '<th scope="col">contender</th>' + "".join(
        f'<th scope="col" class="text" data-nfe="{nfe}">{nfe} NFE</th>' for nfe in counts
    )
    lines = []
    if shown.converged is not None:
        lines.append(
            f'<tr><th scope="row">converged solution</th><td colspan="{len(counts)}">'
            f"{_image(shown.converged, 'converged solution', wide)}</td></tr>"
        )
    for name in names:
        cells = "".join(
            f'<td data-nfe="{nfe}">{_strip(table, strips.get((name, nfe)), wide)}</td>'
            for nfe in counts
        )
        lines.append(
            f'<tr data-solver="{escape(name)}"><th scope="row">{escape(name)}</th>{cells}</tr>'
        )
    return (
        f'<h3>Samples and error maps</h3><p class="about">{_about(shown)}</p><div class="scroll">'
        f'<table class="pictures"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _about(shown: Samples) -> str:
    text = f"Seed {escape(str(shown.seed))}, the same starts everywhere."
    if any(strip.error is not None for strip in shown.strips):
        text += (
            " Below each, the distance to the converged solution, mean over channels, on a "
            f"logarithmic scale: {short(DARKEST * shown.scale)} and less"
            f'<span class="bar"></span>{short(shown.scale)} and more.'
        )
    return text


def _strip(table: Table, strip: Strip | None, wide: int) -> str:
    if strip is None:
        return f'<span class="gap">{tables.GAP}</span>'
    text = f"{strip.contender}, {strip.nfe} NFE"
    parts = [_image(strip.picture, text, wide)]
    if strip.error is not None:
        error = _image(strip.error, f"error of {text}", wide)
        parts.append(f'<div class="space"></div>{error}')
    row = table.row(strip.contender, strip.nfe)
    rmse = None if row is None else row.mean("rmse")
    if rmse is not None:
        parts.append(f"<small>RMSE {short(rmse)}</small>")
    return "".join(parts)


def _image(picture: Image.Image, text: str, wide: int) -> str:
    """The picture, its pixels magnified by a whole number."""
    zoom = max(1, round(wide / picture.width))
    kind = "" if zoom > 1 else ' class="smooth"'
    return (
        f'<img{kind} alt="{escape(text)}" width="{picture.width * zoom}" '
        f'height="{picture.height * zoom}" src="{data_uri(picture)}">'
    )
