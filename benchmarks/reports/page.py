"""A report as one HTML page that needs nothing else: style, script, charts and pictures are in it.

Order of a setting: who is best, quality against evaluations and time, tables, pictures, protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path

from logsnr.benchmarks.reports import tables
from logsnr.benchmarks.reports.charts import styles
from logsnr.benchmarks.reports.figures import Figure, against_nfe, against_time
from logsnr.benchmarks.reports.filters import filters_html
from logsnr.benchmarks.reports.gathered import Gathered
from logsnr.benchmarks.reports.protocol_page import differences_html, notes_html, protocol_html
from logsnr.benchmarks.reports.quantities import Quantity, short
from logsnr.benchmarks.reports.rows import Table
from logsnr.benchmarks.reports.samples import samples
from logsnr.benchmarks.reports.samples_page import samples_html

FOLDER = Path(__file__).parent
WINNERS = ("rmse", "rmse_median", "fid", "kid", "kl", "sliced_wasserstein")
"""Qualities whose best are named first, where records have them; three at most."""


def page(gathered: Gathered, found: Sequence[Table]) -> str:
    """The page of all settings."""
    names = list(dict.fromkeys(name for table in found for name in table.contenders))
    numbers = styles(names)
    qualities = list({q.key: q for table in found for q in table.qualities}.values())
    models = list(dict.fromkeys(table.setting.model for table in found))
    title = f"Solvers on {', '.join(models)}"
    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title>',
            f"<style>{style}</style></head><body>",
            f'<header><p class="by">logsnr report</p><h1>{escape(title)}</h1>',
            f'<p class="lead">{escape(lead(found))}</p></header><main>',
            filters_html(found, names, numbers, qualities),
            differences_html(gathered),
            *(_setting(table, numbers, several=len(found) > 1) for table in found),
            notes_html(gathered),
            f"</main><footer>{escape(_origin(found))}</footer>",
            f"<script>{script}</script></body></html>\n",
        ]
    )


def lead(found: Sequence[Table]) -> str:
    """How much was measured, in one sentence, and how values are to be read."""
    names = {name for table in found for name in table.contenders}
    nfe = sorted({value for table in found for value in table.nfe})
    seeds = max(len(table.seeds) for table in found)
    counts = sorted({table.setting.samples or 0 for table in found} - {0})
    each = f" of {' or '.join(f'{count:,}' for count in counts)} samples" if counts else ""
    settings = f", {len(found)} settings" if len(found) > 1 else ""
    spread = " Values are means over seeds ± one standard deviation." if seeds > 1 else ""
    return (
        f"{_plural(len(names), 'contender')} with {', '.join(map(str, nfe))} network evaluations, "
        f"{_plural(seeds, 'seed')}{each}{settings}.{spread}"
    )


def said(table: Table, quality: Quantity) -> list[str]:
    """What numbers of a quality are to be held against, a sentence each."""
    text = []
    exact, real = table.reference(quality.key), table.real(quality.key)
    if exact is not None:
        text.append(f"The converged solution has {tables.value_text(exact)}.")
    if real is not None:
        text.append(f"Real data against real data: {tables.value_text(real)}.")
    bar = table.reference("error_bar")
    if bar is not None and quality.key.startswith("rmse"):
        text.append(f"The converged solution itself is known to {short(bar.high)}.")
    return text


def _setting(table: Table, numbers: Mapping[str, int], *, several: bool) -> str:
    setting, qualities = table.setting, table.qualities
    winners = [q for q in qualities if q.key in WINNERS][:3] or qualities[:2]
    return "".join(
        [
            f'<section data-setting="{setting.letter}">',
            f"<h2>{escape(setting.name)}</h2>" if several else "",
            f'<h3>Who is best</h3><p class="about">{_how_good(table)} Last, the best of the other '
            "camp, logsnr or others, and how many times its value the best has.</p>",
            tables.wins_html(table, winners),
            "<h3>Quality against cost</h3>",
            *(_charts(table, quality, numbers) for quality in qualities),
            "<h3>By evaluations</h3>",
            *(_by_nfe(table, quality, numbers) for quality in qualities),
            '<h3>All numbers</h3><p class="about">A row for each contender and number of '
            "evaluations; a click on a heading sorts.</p>",
            tables.everything(table, numbers),
            samples_html(table, samples(table)),
            protocol_html(table),
            "</section>",
        ]
    )


def _how_good(table: Table) -> str:
    if len(table.seeds) < 2:
        return "There is one seed, so no spread is known: values that are near may be equal."
    return (
        "The best mean over seeds; “as good” is less than two standard errors of the difference "
        "away."
    )


def _charts(table: Table, quality: Quantity, numbers: Mapping[str, int]) -> str:
    drawn = [against_nfe(table, quality, numbers), against_time(table, quality, numbers)]
    figures = "".join(_figure(figure) for figure in drawn if figure is not None)
    return (
        f'<div data-metric="{quality.key}"><p class="about">{escape(quality.meaning)}</p>'
        f'<div class="charts">{figures}</div></div>'
    )


def _figure(figure: Figure) -> str:
    small = " <small>Grey: the Pareto front.</small>" if figure.front else ""
    return f"<figure><figcaption>{escape(figure.title)}{small}</figcaption>{figure.svg}</figure>"


def _by_nfe(table: Table, quality: Quantity, numbers: Mapping[str, int]) -> str:
    better = {-1: "Lower", 1: "Higher"}.get(quality.better)
    text = (
        f"{quality.heading}. {better} is better; the best of a column is bold, what is as good is "
        "underlined."
    )
    return (
        f'<div data-metric="{quality.key}">'
        f'<p class="about">{escape(" ".join([text, *said(table, quality)]))}</p>'
        f"{tables.by_nfe(table, quality, numbers)}</div>"
    )


def _origin(found: Sequence[Table]) -> str:
    entries = [entry for table in found for entry in table.setting.entries]
    folders = ", ".join(dict.fromkeys(entry.folder.name or "." for entry in entries))
    release = version("logsnr").split("+")[0]
    return (
        f"Made by logsnr {release} from the records in {folders}. The same numbers are in "
        "report.md and report.json."
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
