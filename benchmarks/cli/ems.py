"""``logsnr ems``: the statistics of DPM-Solver-v3 of a pipeline, with their plot."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logsnr.benchmarks.cli.command_line import (
    Update,
    folder,
    json_object,
    options,
    progress,
    working,
    wrote,
)
from logsnr.benchmarks.cli.pipeline_options import CallArgs, Device, Dtype, Height, Width

if TYPE_CHECKING:
    from logsnr.solvers import EMS, Verdict

SHOWN = 7
"""Values of lambda in the table."""


def ems(
    pipeline: Annotated[
        str,
        typer.Option(help="Folder of save_pretrained, ID on the Hub, or the embedded digits."),
    ] = "embedded",
    prompt: Annotated[
        str | None,
        typer.Option(help="Prompt; a digit for the embedded model, which else takes all in turn."),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training data: a folder of images, or an .npy or .safetensors file of states "
            "(latents, for a latent model). Default: the model's own samples."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Intervals in lambda.")] = 120,
    samples: Annotated[int, typer.Option(help="Number of samples.")] = 256,
    stop: Annotated[
        float | None, typer.Option(help="Stop earlier, when standard errors are below this.")
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="Who shares a value: coordinate (nobody), channel, scalar (all).")
    ] = "coordinate",
    jacobian: Annotated[
        str,
        typer.Option(
            help="Forward mode (jvp) or differences of outputs (difference, the only way through "
            "a pipeline); auto: jvp if it works and agrees."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of samples, noise and signs.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="States in one call of the network. Default: 16 through a pipeline, else as many "
            "as memory holds."
        ),
    ] = None,
    height: Height = None,
    width: Width = None,
    call_args: CallArgs = "{}",
    dtype: Dtype = "float32",
    device: Device = None,
    shrink: Annotated[
        bool, typer.Option(help="Draw what is uncertain towards DPM-Solver++ (EMS.shrunk).")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(help="End with a comparison with DPM-Solver++, by which plans decide."),
    ] = True,
    half: Annotated[
        bool, typer.Option(help="Store half precision: a quarter of the size, three digits.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of the file, the plot and the unfinished work.")
    ] = Path("results/ems"),
    json_: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON instead of the table.")
    ] = False,
) -> None:
    """Estimate the statistics that DPM-Solver-v3 needs of a model, and plot them.

    The pipeline runs as it is, with its prompt and guidance. A run that was killed goes on where it
    stopped when it is started again; with more --samples a finished one is extended.

    Example: logsnr ems --pipeline ./my-model --prompt "a red fox" --samples 256 --out results/fox
    """
    import torch

    from logsnr.benchmarks.reports.ems_plot import PLOT, write_plot
    from logsnr.benchmarks.studies.ems import CHECKPOINT, FEWEST, FILE, Request, estimate, summary

    bar = ExitStack()
    update: Update | None = None

    def watch(done: int, total: int) -> None:
        nonlocal update
        if update is None:
            update = bar.enter_context(progress(total, "probes"))
        update(done, "statistics")

    request = Request(
        pipeline=pipeline,
        opened={
            "prompt": prompt,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "dtype": dtype,
            "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        },
        data=data,
        nodes=nodes,
        samples=samples,
        batch_size=batch_size,
        granularity=granularity,
        jacobian=jacobian,
        seed=seed,
        stop=stop,
        check=check,
        progress=watch,
    )
    with options():
        given = json_object(call_args)
        if shrink and samples < FEWEST:
            raise ValueError(f"samples={samples}: shrinking needs {FEWEST}, for standard errors")
        folder(out)
    with working(kept=out):
        with options(), bar:
            found = estimate(request, given, out / CHECKPOINT)
        written = found.shrunk() if shrink else found
        written.save(out / FILE, dtype=torch.float16 if half else torch.float64)
        write_plot(found, out / PLOT)
    if json_:
        typer.echo(json.dumps(summary(found) | {"file": str(out / FILE)}, indent=2))
        return
    print_table(found)
    if found.verdict is not None:
        print_verdict(found.verdict)
    wrote(out, (FILE, PLOT))
    typer.echo(f'  PlanScheduler.from_config(config, solver="dpm-solver-v3", ems="{out / FILE}")')


def print_table(found: EMS) -> None:
    """l, s and b at a few nodes with their standard errors, medians over the coordinates."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from logsnr.benchmarks.studies.ems import medians
    from logsnr.solvers.model_statistics.ems import DEGENERATE

    report = Table(
        title=f"{found.about['samples']} samples, {len(found.lam)} nodes, event {found.event}",
        caption="medians over coordinates; l = 1, s = b = 0 is DPM-Solver++",
    )
    report.add_column("lambda", justify="right")
    for name in DEGENERATE:
        report.add_column(name, justify="right")
    values = {name: medians(getattr(found, name)) for name in DEGENERATE}
    errors = {name: medians(error) for name, error in found.errors.items()}
    for k in torch.linspace(0, found.intervals, SHOWN).round().long().tolist():
        cells = (
            f"{values[name][k]:.3f}" + (f" +- {errors[name][k]:.3f}" if errors else "")
            for name in DEGENERATE
        )
        report.add_row(f"{found.lam[k]:.2f}", *cells)
    Console().print(report)


def print_verdict(verdict: Verdict) -> None:
    """The errors of the check, with the statistics and with those of DPM-Solver++."""
    from rich.console import Console
    from rich.table import Table

    report = Table(
        title=f"relative error with / without the statistics, {verdict.starts} starts",
        caption="* plans of this order and number of evaluations leave them out",
    )
    report.add_column("order", justify="right")
    for nfe in verdict.nfe:
        report.add_column(f"{nfe} NFE", justify="right")
    for order, errors in verdict.own.items():
        cells = (
            f"{own:.3g} / {without:.3g}{' *' if verdict.loses(order, nfe) else ''}"
            for nfe, own, without in zip(
                verdict.nfe, errors, verdict.degenerate[order], strict=True
            )
        )
        report.add_row(str(order), *cells)
    Console().print(report)
