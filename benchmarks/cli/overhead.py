"""``logsnr overhead``: what a step of PlanScheduler costs beside one of diffusers' schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from logsnr.benchmarks.cli.command_line import file, options, progress, working


def overhead(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of the samples, as 8x4x128x128; may be repeated."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of 20 steps for each number.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time a step of each solver against the step of diffusers' scheduler.

    Without the network, float32, one thread; medians over the steps in the middle of runs that
    take turns.

    Example: logsnr overhead --shape 1x4x64x64 --runs 50 --out overhead.json
    """
    from logsnr.benchmarks.studies.overhead import PAIRS, ROWS, measure, parse_shape, table, traffic

    with options():
        shapes = [parse_shape(text) for text in shape or ("1x4x8x8", "8x4x128x128")]
        file(out)
    jobs = [(name, size) for size in shapes for name in PAIRS]
    costs = []
    with working(), progress(len(jobs), "pairs") as update:
        for name, size in jobs:
            costs.append(measure(name, size, runs))
            update(len(costs), f"{name} {'x'.join(map(str, size))}")
        sums = {(size, row): traffic(size, runs, row) for size in shapes for row in ROWS}
        text = json.dumps([cost.record() for cost in costs], indent=2)
        if out is not None:
            out.write_text(text + "\n")
    if json_:
        typer.echo(text)
        return
    from rich.console import Console

    Console().print(table(costs))
    for (size, row), (combine, copy) in sums.items():
        typer.echo(
            f"one row of 4 terms from {row}, at {'x'.join(map(str, size))}: {combine:.1f} µs, "
            f"{combine / copy:.2f} times a copy of as many bytes ({copy:.1f} µs)"
        )
