"""The rows of a report as tables: HTML for the page, Markdown beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from logsnr.benchmarks.metrics.spread import Spread
from logsnr.benchmarks.reports.charts import swatch
from logsnr.benchmarks.reports.quantities import Quantity, short, with_spread
from logsnr.benchmarks.reports.rows import Row, Table

GAP = "–"


def value_text(value: Spread | None) -> str:
    """Mean ± deviation, or a dash."""
    return GAP if value is None else with_spread(value.mean, value.deviation)


def missing(row: Row | None) -> str:
    """What stands in place of a value: how the run ended, or a dash."""
    if row is None or not row.failures or row.seeds:
        return GAP
    return row.failures[0].split(": ", 1)[1].split(" ")[0]


def incomplete(table: Table, row: Row) -> str:
    """How many of the setting's seeds a row has, if not all."""
    count, all_ = len(row.seeds), len(table.seeds)
    return "" if count == all_ else f"{count}/{all_} seeds"


# HTML


def head_cell(text: str, *, nfe: int | None = None, left: bool = False) -> str:
    """A heading that sorts its column."""
    more = "" if nfe is None else f' data-nfe="{nfe}"'
    more += ' class="text"' if left else ""
    return f'<th scope="col"{more}><button type="button">{escape(text)}</button></th>'


def name_cell(table: Table, name: str, styles: Mapping[str, int]) -> str:
    """A contender with its line."""
    mark = swatch(styles[name], table.ours[name])
    return f'<th scope="row" data-v="{escape(name)}">{mark}{escape(name)}</th>'


def by_nfe(table: Table, found: Quantity, styles: Mapping[str, int]) -> str:
    """One quantity: a row a contender, a column a NFE; the best of a column is bold."""
    head = head_cell("contender", left=True)
    head += "".join(head_cell(f"{nfe} NFE", nfe=nfe) for nfe in table.nfe)
    best = {nfe: table.best(found.key, nfe) for nfe in table.nfe}
    even = {
        (row.contender, row.nfe)
        for least in best.values()
        if least is not None
        for row in table.as_good(found.key, least)
    }
    lines = []
    for name in table.contenders:
        cells = []
        for nfe in table.nfe:
            row, least = table.row(name, nfe), best[nfe]
            kind = "cell"
            if row is not None and row is least:
                kind += " best"
            elif (name, nfe) in even:
                kind += " even"
            cells.append(_cell(table, row, found, kind, _heat(row, least, found), nfe))
        first = name_cell(table, name, styles)
        lines.append(f'<tr data-solver="{escape(name)}">{first}{"".join(cells)}</tr>')
    return _table(f"<tr>{head}</tr>", lines)


def everything(table: Table, styles: Mapping[str, int]) -> str:
    """All quantities: a row a contender and NFE."""
    head = head_cell("contender", left=True) + head_cell("NFE") + head_cell("seeds")
    head += "".join(head_cell(f"{q.heading} {q.arrow}".strip()) for q in table.quantities)
    lines = []
    for row in table.rows:
        cells = "".join(_cell(table, row, q, "", 0.0) for q in table.quantities)
        lines.append(
            f'<tr data-solver="{escape(row.contender)}" data-nfe="{row.nfe}">'
            f"{name_cell(table, row.contender, styles)}"
            f'<td data-v="{row.nfe}">{row.nfe}</td>'
            f'<td data-v="{len(row.seeds)}">{len(row.seeds)}</td>{cells}</tr>'
        )
    return _table(f"<tr>{head}</tr>", lines, tall=True)


def plain(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Words in a table; the first of each row is its heading."""
    top = "".join(f'<th scope="col" class="text">{escape(text)}</th>' for text in head)
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td><code>{escape(text)}</code></td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    ]
    return _table(f"<tr>{top}</tr>" if head else "", lines, "plain")


def _cell(
    table: Table,
    row: Row | None,
    found: Quantity,
    kind: str,
    heat: float,
    nfe: int | None = None,
) -> str:
    more = "" if nfe is None else f' data-nfe="{nfe}"'
    value = None if row is None else row.values.get(found.key)
    if row is None or value is None:
        why = "; ".join(row.failures) if row is not None else ""
        return f'<td class="gap"{more} title="{escape(why)}">{escape(missing(row))}</td>'
    mean, pm, deviation = value_text(value).partition(" ± ")
    spread = f' <span class="pm">± {deviation}</span>' if pm else ""
    few = incomplete(table, row) if nfe is not None else ""
    few = f' <span class="pm">({few})</span>' if few else ""
    style = f' style="--h:{heat:.2f}"' if heat > 0 else ""
    kinds = f' class="{kind}"' if kind else ""
    return f'<td{kinds}{more} data-v="{value.mean:.9g}"{style}>{mean}{spread}{few}</td>'


def _heat(row: Row | None, best: Row | None, found: Quantity) -> float:
    """1 for the best of a column, 0 from twice as bad on (or half of the best)."""
    value, least = (None if r is None else r.mean(found.key) for r in (row, best))
    if value is None or least is None or value * least <= 0:
        return 0.0
    ratio = value / least if found.better < 0 else least / value
    return max(0.0, 1 - math.log2(max(ratio, 1.0)))


def _table(head: str, lines: Sequence[str], kind: str = "", *, tall: bool = False) -> str:
    box = "scroll tall" if tall else "scroll"
    kinds = f' class="{kind}"' if kind else ""
    top = f"<thead>{head}</thead>" if head else ""
    return f'<div class="{box}"><table{kinds}>{top}<tbody>{"".join(lines)}</tbody></table></div>'


# Who is best


@dataclass(frozen=True)
class Win:
    """The best at a number of evaluations, what is as good, and the best of the other camp."""

    nfe: int
    best: Row
    even: tuple[Row, ...]
    other: Row | None

    def ratio(self, key: str) -> float | None:
        """Best over the best of the other camp, or None."""
        if self.other is None:
            return None
        value, other = self.best.values[key].mean, self.other.values[key].mean
        return value / other if other > 0 and value > 0 else None


def wins(table: Table, found: Quantity) -> list[Win]:
    """Who is best at each NFE; the other camp is diffusers' if ours is best, else ours."""
    result = []
    for nfe in table.nfe:
        best = table.best(found.key, nfe)
        if best is not None:
            other = table.best(found.key, nfe, ours=not table.ours[best.contender])
            result.append(Win(nfe, best, tuple(table.as_good(found.key, best)), other))
    return result


def wins_html(table: Table, qualities: Sequence[Quantity]) -> str:
    """The best by NFE and quality."""
    head = '<th scope="col">NFE</th>' + "".join(
        f'<th scope="col" class="text">{escape(found.title)}</th>' for found in qualities
    )
    found = {quality.key: {win.nfe: win for win in wins(table, quality)} for quality in qualities}
    lines = []
    for nfe in table.nfe:
        cells = []
        for quality in qualities:
            win = found[quality.key].get(nfe)
            cells.append(f"<td>{GAP if win is None else _win_html(win, quality)}</td>")
        lines.append(f'<tr data-nfe="{nfe}"><th scope="row">{nfe}</th>{"".join(cells)}</tr>')
    return _table(f"<tr>{head}</tr>", lines, "wins")


def _win_html(win: Win, quality: Quantity) -> str:
    names = [win.best.contender, *(row.contender for row in win.even)]
    text = f"<b>{escape(names[0])}</b> {value_text(win.best.values[quality.key])}"
    if len(names) > 1:
        more = ", ".join(names[1:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        text += f'<span class="pm">as good: {escape(more)}</span>'
    if win.other is not None:
        ratio = win.ratio(quality.key)
        times = "against" if ratio is None else f"{short(ratio)} ×"
        other = f"{win.other.contender} ({value_text(win.other.values[quality.key])})"
        text += f'<span class="pm">{times} {escape(other)}</span>'
    return text


# Markdown


def markdown_by_nfe(table: Table, found: Quantity) -> str:
    """One quantity: a row a contender, a column a NFE; the best of a column is bold."""
    best = {nfe: table.best(found.key, nfe) for nfe in table.nfe}
    body = []
    for name in table.contenders:
        cells = []
        for nfe in table.nfe:
            row = table.row(name, nfe)
            value = None if row is None else row.values.get(found.key)
            if row is None or value is None:
                cells.append(missing(row))
                continue
            few = incomplete(table, row)
            text = value_text(value) + (f" ({few})" if few else "")
            cells.append(f"**{text}**" if row is best[nfe] else text)
        body.append([name, *cells])
    return markdown(["contender", *(f"{nfe} NFE" for nfe in table.nfe)], body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *(["---"] if text else ["---:"]) * (len(head) - 1)]
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in line] for line in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
