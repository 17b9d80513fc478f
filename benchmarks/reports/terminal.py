"""The rows of a report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from logsnr.benchmarks.reports.quantities import short
from logsnr.benchmarks.reports.rows import Row, Table
from logsnr.benchmarks.reports.tables import missing

SHOWN = ("rmse", "rmse_median", "fid")


def _text(row: Row | None, key: str) -> str:
    value = None if row is None else row.mean(key)
    return missing(row) if value is None else short(value)


def print_tables(tables: Sequence[Table]) -> None:
    """RMSE, its median and FID of each setting by NFE, or the first quality without them."""
    console = Console()
    for table in tables:
        qualities = [q for q in table.qualities if q.key in SHOWN] or table.qualities[:1]
        for quality in qualities:
            title = f"{quality.heading} {quality.arrow}, {table.setting.name}"
            printed = Printed(
                title=escape(title), caption="means over seeds; the spread is in the page"
            )
            printed.add_column("contender", overflow="fold")
            for nfe in table.nfe:
                printed.add_column(f"{nfe} NFE", justify="right")
            for name in table.contenders:
                cells = []
                for nfe in table.nfe:
                    row = table.row(name, nfe)
                    text = _text(row, quality.key)
                    best = row is not None and row is table.best(quality.key, nfe)
                    cells.append(f"[bold]{text}[/bold]" if best else text)
                printed.add_row(escape(name), *cells)
            console.print(printed)
