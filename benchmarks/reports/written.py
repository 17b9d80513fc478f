"""A report as files: the page, and the same as Markdown, JSON and PNG beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from logsnr.benchmarks.reports import tables
from logsnr.benchmarks.reports.charts import styles
from logsnr.benchmarks.reports.gathered import Gathered, gather
from logsnr.benchmarks.reports.page import lead, page, said
from logsnr.benchmarks.reports.plots import pictures_png, quality_png
from logsnr.benchmarks.reports.protocol_page import differences, facts, failures
from logsnr.benchmarks.reports.rows import Table, as_json, tabulate
from logsnr.benchmarks.reports.samples import samples

PAGE, MARKDOWN, JSON = "report.html", "report.md", "report.json"


def write_report(folders: Sequence[Path], out: Path) -> tuple[list[Table], list[str]]:
    """Write the report of the records in ``folders`` into the folder ``out``.

    Returns the tables and the names of the files. Raises ValueError for a folder without records.
    """
    gathered = gather(folders)
    if not gathered.settings:
        raise ValueError(
            f"folder={', '.join(map(str, folders))!r}: the records have no contender, only "
            "converged solutions"
        )
    found = [tabulate(setting) for setting in gathered.settings]
    names = [PAGE, MARKDOWN, JSON]
    (out / PAGE).write_text(page(gathered, found), encoding="utf-8")
    (out / JSON).write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
    images = {}
    contenders = list(dict.fromkeys(name for table in found for name in table.contenders))
    for table in found:
        ending = f"-{table.setting.letter}" if len(found) > 1 else ""
        shown = samples(table)
        images[table.setting.letter] = [f"quality{ending}.png"]
        quality_png(table, styles(contenders), out / f"quality{ending}.png")
        if shown is not None:
            images[table.setting.letter].append(f"samples{ending}.png")
            pictures_png(table, shown, out / f"samples{ending}.png")
        names += images[table.setting.letter]
    (out / MARKDOWN).write_text(markdown(gathered, found, images), encoding="utf-8")
    return found, names


def markdown(gathered: Gathered, found: Sequence[Table], images: dict[str, list[str]]) -> str:
    """The report without what only a page can do."""
    parts = ["# Report", lead(found)]
    if len(found) > 1:
        parts += [
            "Records are compared only where their protocol agrees. The settings differ in:",
            tables.markdown(*differences(gathered), text=True),
        ]
    for table in found:
        parts.append(f"## {table.setting.name}")
        parts += [f"![{name}]({name})" for name in images[table.setting.letter]]
        for quality in table.qualities:
            parts += [
                f"### {quality.heading} {quality.arrow}",
                quality.meaning,
                tables.markdown_by_nfe(table, quality),
                " ".join(said(table, quality)),
            ]
        parts += ["### Protocol", tables.markdown(["", ""], facts(table), text=True)]
        failed = [f"* {run}, {text}" for run, text in failures(table)]
        if failed:
            parts += ["### Runs without samples", "\n".join(failed)]
    if gathered.notes:
        parts += ["## Left out", "\n".join(f"* {note}" for note in gathered.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"
