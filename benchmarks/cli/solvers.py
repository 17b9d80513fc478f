"""``logsnr solvers``: what there is to choose from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

SHORT = 10


def solvers(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the solvers: names, orders, cost, and when to use which.

    A name may be given in any case, and by the names that other programs use; a number behind it
    is the order, as in unipc-3.

    Example: logsnr solvers --json
    """
    from logsnr.benchmarks.reports.solver_list import listed

    found = listed()
    if json_:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("solver", no_wrap=True)
    table.add_column("order", justify="right", no_wrap=True)
    table.add_column("of noise\nstrong, weak", justify="right", no_wrap=True)
    table.add_column("calls\na step", justify="right", no_wrap=True)
    table.add_column("when", ratio=3)
    table.add_column("also", ratio=2)
    for entry in found:
        first, last = entry.orders[0], entry.orders[-1]
        orders = f"{first}" if first == last else f"{first} to {last}"
        # The classes of diffusers would not fit; --json has them.
        short = (alias.replace("-", "_") for alias in entry.aliases if len(alias) <= SHORT)
        orders_of_noise = (entry.strong, entry.weak)
        noisy = ", ".join("-" if each is None else f"{each:g}" for each in orders_of_noise)
        noisy = "" if entry.weak is None else noisy
        table.add_row(entry.name, orders, noisy, str(entry.cost), entry.when, ", ".join(short))
    Console().print(table)
