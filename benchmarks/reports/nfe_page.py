"""The findings of ``logsnr nfe`` as a page: Markdown tables, a plot, and the grid of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from logsnr.benchmarks.harness.comparison import load_picture
from logsnr.benchmarks.harness.contenders import Contender
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.harness.study import Job
from logsnr.benchmarks.reports.markdown import release, table
from logsnr.benchmarks.reports.pictures import (
    DPI,
    INK,
    LINES,
    MUTED,
    finish_error_plot,
    write_png,
)
from logsnr.benchmarks.studies.nfe_findings import SDE, Cell, Findings

REPORT, ERROR_PLOT, PICTURES = "report.md", "error.png", "pictures.png"
ROUNDED = 0.01
"""A told time further than this from its node, in training steps, is reported as rounded."""
OURS = ("#ca0020", "#0571b0", "#1b7837", "#e08214", "#8073ac", "#b2182b", "#2166ac", "#35978f")
THEIRS = ("#7a828c", "#4d5560", "#a5acb5", "#333a42")
MARKERS = "ohsD^vPX"
SMALL = 64  # pixels: up to this size, pictures of several seeds stand side by side
WIDE = 240  # pixels of a cell that is magnified, at most
CELL = 160  # pixels of a cell that is reduced


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write the plot, the pictures and the page into ``folder``; returns the page's path."""
    write_png(error_plot(findings), folder / ERROR_PLOT)
    pictures = picture_grid(findings)
    if pictures is not None:
        write_png(pictures, folder / PICTURES)
    path = folder / REPORT
    path.write_text(markdown(findings, pictures is not None))
    return path


def cell_text(findings: Findings, cell: Cell, *, digits: int = 3) -> str:
    """The RMSE with a mark where the reference is not good enough to tell it from zero."""
    if cell.rmse is None:
        return cell.note or "-"
    text = f"{cell.rmse:.{digits}g}" if cell.rmse < 1e-3 else f"{cell.rmse:.4f}"
    if cell.rmse < 3 * findings.error_bar:
        text = f"{text} ~"
    if cell.nfe_counted != cell.nfe:
        text = f"{text} ({cell.nfe_counted})"
    return text


def rows(findings: Findings, text: Callable[[Cell], str]) -> list[list[str]]:
    """A line a contender: its name, then ``text`` of its cells."""
    study = findings.study
    return [
        [contender.text, *(text(findings.cells[contender.text, nfe]) for nfe in study.nfe)]
        for contender in study.contenders
    ]


def best(findings: Findings, nfe: int) -> float | None:
    """The least RMSE at ``nfe``; None without any."""
    errors = [cell.rmse for (_, n), cell in findings.cells.items() if n == nfe]
    return min((error for error in errors if error is not None), default=None)


def notes(findings: Findings) -> list[str]:
    """What the numbers mean and do not mean."""
    study, cells = findings.study, findings.cells.values()
    fine, coarse = study.reference_nfe
    lines = [
        f"Converged solution: UniPC-3 with {fine} evaluations; {coarse} evaluations are "
        f"{findings.error_bar:.2e} away (RMSE), which is its error bar. Its entries span "
        f"{findings.range:.3g}.",
    ]
    if findings.fit is not None:
        lines.insert(0, findings.fit.text)
    if any(cell.rmse is not None and cell.rmse < 3 * findings.error_bar for cell in cells):
        lines.append(
            "~ less than three error bars: the error of the reference is a good part of it. Raise "
            "--reference-nfe."
        )
    if any(cell.nfe_counted not in (cell.nfe, None) for cell in cells):
        lines.append("(n) the evaluations counted, where a scheduler cannot make the number asked.")
    if any(cell.note == SDE for cell in cells):
        lines.append(
            f"{SDE}: adds noise on its way, so it has no distance to the solution of the ODE."
        )
    rounded = {c.contender: c.rounding for c in cells if c.rounding and c.rounding > ROUNDED}
    if rounded:
        worst = max(rounded.values())
        lines.append(
            f"{', '.join(rounded)}: the network is told whole training steps, up to {worst:.2f} "
            "steps from where the state is; this sets a floor under the error that more "
            "evaluations do not lower."
        )
    return [*lines, *findings.failures]


def summary(findings: Findings) -> Table:
    """RMSE by scheduler and NFE, the least of each column in bold."""
    study = findings.study
    count = len(study.seeds)
    shown = Table(
        title=f"RMSE to the converged solution, {count} seed{'s' if count > 1 else ''}",
        caption=f"error bar {findings.error_bar:.1e}",
    )
    shown.add_column("scheduler", no_wrap=True)
    for nfe in study.nfe:
        shown.add_column(f"{nfe} NFE", justify="right")
    least = {nfe: best(findings, nfe) for nfe in study.nfe}
    for contender in study.contenders:
        cells = [findings.cells[contender.text, nfe] for nfe in study.nfe]
        texts = [
            f"[bold]{cell_text(findings, cell)}[/bold]"
            if cell.rmse is not None and cell.rmse == least[cell.nfe]
            else cell_text(findings, cell)
            for cell in cells
        ]
        shown.add_row(contender.text, *texts)
    return shown


def markdown(findings: Findings, pictures: bool) -> str:
    """The page."""
    study, problem = findings.study, findings.problem
    head = ["scheduler", *(f"{nfe} NFE" for nfe in study.nfe)]

    def error(cell: Cell) -> str:
        text = cell_text(findings, cell)
        return f"**{text}**" if cell.rmse is not None and cell.rmse == best_at[cell.nfe] else text

    best_at = {nfe: best(findings, nfe) for nfe in study.nfe}
    tables = [
        ("RMSE to the converged solution", error),
        (
            "PSNR to the converged solution, dB",
            lambda cell: "-" if cell.psnr is None else f"{cell.psnr:.1f}",
        ),
        (
            "Seconds a sample",
            lambda cell: "-" if cell.seconds is None else f"{cell.seconds:.2f}",
        ),
    ]
    page = [
        f"# {problem['class']}: `{problem['pipeline']}`",
        f"![RMSE against NFE]({ERROR_PLOT})",
    ]
    if pictures:
        page.append(f"![Pictures: rows are schedulers, columns NFE, same noise]({PICTURES})")
    for title, text in tables:
        page += [f"## {title}", table(head, rows(findings, text))]
    call = ", ".join(f"{key}={value!r}" for key, value in problem["call"].items())
    seeds = ", ".join(map(str, study.seeds))
    page += [
        "## How it was measured",
        "\n".join(
            f"* {line}"
            for line in [
                f"Call: {call or 'no arguments'}; dtype {problem['dtype']}; seeds {seeds}; the "
                f"pipeline's own scheduler (`stock`) is {problem['scheduler']}.",
                "The RMSE is that of the last state which the scheduler hands out, pooled over "
                "seeds and entries; an evaluation is one `scheduler.step`, as the pipeline calls "
                "it.",
                *notes(findings),
                f"torch {release('torch')}, diffusers {release('diffusers')}, logsnr "
                f"{release('logsnr')}. Records: `{RECORDS}`.",
            ]
        ),
    ]
    return "\n\n".join(page) + "\n"


def error_plot(findings: Findings) -> Figure:
    """RMSE against NFE, both logarithmic; the shaded band is within the error bar."""
    study = findings.study
    figure = Figure(figsize=(8.4, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    lines = {}
    for contender in study.contenders:
        cells = [findings.cells[contender.text, nfe] for nfe in study.nfe]
        points = [(cell.nfe_counted, cell.rmse) for cell in cells if cell.rmse]
        if points:
            colour, marker = _style(study.contenders, contender)
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=6 if contender.ours else 9,  # rings around ours where both agree
                zorder=2 if contender.ours else 3,
                markerfacecolor=colour if contender.ours else "none",
                linestyle="-" if contender.ours else "--",
                linewidth=1.8 if contender.ours else 1.3,
                label=contender.text,
            )
            lines[line] = points[-1][1]
    errors = [cell.rmse for cell in findings.cells.values() if cell.rmse]
    finish_error_plot(axes, study.nfe, lines, errors, findings.error_bar)
    return figure


def picture_grid(findings: Findings) -> Figure | None:
    """The converged picture, then a row a scheduler and a column a NFE; None without pictures.

    Small pictures stand side by side, one a seed; of large ones the first seed is shown. Below
    each cell stands its RMSE.
    """
    study = findings.study
    records = {job: record for job, record in findings.records}
    shown = study.seeds[:1]

    def strip(contender: Contender | None, nfe: int | None) -> Image.Image | None:
        found = [records.get(Job(contender, nfe, seed)) for seed in shown]
        names = [name for record in found if record for name in record["pictures"][:1]]
        return _beside([load_picture(findings.folder, name) for name in names])

    first = strip(None, None)
    if first is None:
        return None
    if max(first.size) <= SMALL:
        shown = study.seeds[: max(1, WIDE // (2 * first.width))]
        first = strip(None, None)
        assert first is not None
    small = max(first.size) <= WIDE
    scale = max(1, WIDE // max(first.size)) if small else CELL / max(first.size)
    cell = round(first.width * scale), round(first.height * scale)
    smooth = "nearest" if scale >= 1 else "antialiased"
    texts = ["converged", *(contender.text for contender in study.contenders)]
    gap, side, top = 22, 14, 30
    left = 30 + max(len(text) for text in texts) * 8
    width = left + (cell[0] + side) * len(study.nfe)
    height = top + (cell[1] + gap) * len(texts)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for i, contender in enumerate([None, *study.contenders]):
        bottom = height - top - i * (cell[1] + gap) - cell[1]
        middle = (bottom + cell[1] / 2) / height
        figure.text(
            (left - 14) / width, middle, texts[i], ha="right", va="center", color=INK, fontsize=9.5
        )
        for j, nfe in enumerate(study.nfe):
            x = left + j * (cell[0] + side)
            place = (x / width, bottom / height, cell[0] / width, cell[1] / height)
            axes = figure.add_axes(place, xticks=[], yticks=[])
            axes.spines[:].set(color=LINES, linewidth=0.6)
            if contender is None:
                axes.set_title(f"{nfe} NFE", fontsize=10, color=INK, pad=6)
            image = strip(contender, None if contender is None else nfe)
            if image is None:
                note = "failed" if contender is None else findings.cells[texts[i], nfe].note
                axes.text(0.5, 0.5, note or "none", ha="center", va="center", color=MUTED)
                continue
            axes.imshow(image, interpolation=smooth, aspect="auto")
            if contender is not None:
                text = cell_text(findings, findings.cells[contender.text, nfe])
                axes.set_xlabel(text, fontsize=8, color=MUTED, labelpad=3)
    return figure


def _beside(images: Sequence[Image.Image]) -> Image.Image | None:
    if not images:
        return None
    width = sum(image.width for image in images)
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        strip.paste(image, (x, 0))
        x += image.width
    return strip


def _style(contenders: Sequence[Contender], contender: Contender) -> tuple[str, str]:
    same = [entry for entry in contenders if entry.ours is contender.ours]
    palette = OURS if contender.ours else THEIRS
    place = same.index(contender)
    return palette[place % len(palette)], MARKERS[place % len(MARKERS)]
