"""``logsnr bench``: suites of contenders on subjects, kept, resumed, and shared over processes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from logsnr.benchmarks.cli.command_line import (
    folder,
    numbers,
    options,
    progress,
    working,
    wrote,
)
from logsnr.benchmarks.harness.written import split


def bench(
    suite: Annotated[
        str, typer.Argument(help="quick, full, paper-cifar10, pipeline, or a TOML file.")
    ] = "quick",
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/bench"),
    subjects: Annotated[
        str | None,
        typer.Option(
            help="In place of the suite's: faces, digits:guidance=3, pipeline=./folder:prompts="
            "file, unet=./folder, edm=module:function, problem=six-gaussians."
        ),
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            help="In place of all of the suite's: PlanScheduler, unipc:order=3, "
            "UniPCMultistep:karras, sample_heun of k-diffusion, a plan's file."
        ),
    ] = None,
    nfe: Annotated[str | None, typer.Option(help="Numbers of network evaluations.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the starting noise.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each seed.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Some of fid, kid, prdc, is, swd, moments; or none.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of an earlier run to compare with.")
    ] = None,
    fail_if_worse: Annotated[
        str | None,
        typer.Option(help="With --baseline: exit with 1 if a metric is worse by more, as in 2%."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for another rank, under torchrun.")
    ] = 1800.0,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the records as JSON instead of the table.")
    ] = False,
) -> None:
    """Compare contenders on subjects: error, FID and cost against network evaluations.

    A killed run goes on where it stopped when it is started again, bit for bit. Processes share it:
    torchrun --nproc-per-node 2 -m logsnr.benchmarks bench SUITE.

    Example: logsnr bench quick --out results/quick
    """
    with options():
        changes = {
            "subjects": _list(subjects),
            "contenders": _list(contenders),
            "nfe": None if nfe is None else list(numbers("nfe", nfe)),
            "seeds": None if seeds is None else list(numbers("seeds", seeds)),
            "samples": samples,
            "metrics": [] if metrics == "none" else _list(metrics),
        }

    from logsnr.benchmarks.harness.baseline import compare, open_baseline, tolerance
    from logsnr.benchmarks.harness.suite import load_suite
    from logsnr.benchmarks.studies.bench import measure, opened
    from logsnr.solvers.processes import ranks

    with options():
        asked = load_suite(suite, **changes)
        allowed = tolerance(fail_if_worse, baseline)
        earlier = None if baseline is None else open_baseline(baseline, out)
        folder(out)
    with ranks(timeout=timeout) as here:
        with options():
            subjects_ = opened(asked)
        with working(kept=out):
            shown = partial(progress, unit="evaluations")
            records = measure(asked, out, here, shown, subjects_)
        if here.rank != 0:
            return
    from logsnr.benchmarks.reports.terminal import print_tables
    from logsnr.benchmarks.reports.written import write_report

    with working(kept=out):
        tables, names = write_report([out], out)
    if json_:
        typer.echo(json.dumps(records, indent=2))
    else:
        print_tables(tables)
        wrote(out, names)
    worse = any(record["status"] == "failed" for record in records)
    if earlier is not None:
        with working(kept=out):
            verdict = compare(earlier, records, allowed)
        for line in verdict.lines:
            typer.echo(line, err=json_)  # what is printed beside them is JSON alone
        worse = worse or verdict.worse
    if worse:
        raise typer.Exit(1)


def _list(text: str | None) -> list[str] | None:
    return None if text is None else split(text, ",")
