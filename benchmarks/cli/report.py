"""``logsnr report``: records of one folder or several as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from logsnr.benchmarks.cli.command_line import folder, options, working, wrote


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of records.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; the first DIR by default.")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the rows as JSON instead of the table.")
    ] = False,
) -> None:
    """Make one self-contained HTML page of the records in folders, with Markdown and PNG beside it.

    Records are compared only where their protocol agrees; the page says in what others differ.

    Example: logsnr report results/quick results/other --out results/report
    """
    from logsnr.benchmarks.reports.rows import as_json
    from logsnr.benchmarks.reports.terminal import print_tables
    from logsnr.benchmarks.reports.written import write_report

    for name in folders:
        with options({"folder": "DIR"}):
            if not name.is_dir():
                raise ValueError(f"folder={str(name)!r}: need a folder with records")
    where = folders[0] if out is None else out
    with options():
        folder(where)
    with working():
        tables, names = write_report(folders, where)
    if json_:
        typer.echo(json.dumps(as_json(tables), indent=2))
        return
    print_tables(tables)
    wrote(where, names)
