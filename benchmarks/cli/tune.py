"""``logsnr tune``: plans fitted to a model, written as cards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logsnr.benchmarks.cli.command_line import (
    folder,
    json_object,
    json_value,
    numbers,
    options,
    progress,
    working,
    wrote,
)
from logsnr.benchmarks.cli.pipeline_options import CallArgs, Device, Dtype, Height, Width

if TYPE_CHECKING:
    from logsnr.solvers import Cards

Model = Annotated[
    str | None,
    typer.Option(
        help="What bench takes as a subject: faces, digits, unet=./folder, edm=module:function, "
        "problem=six-gaussians. Default: faces."
    ),
]
Pipeline = Annotated[
    str | None, typer.Option(help="Folder of save_pretrained, or an ID on the Hub.")
]
Prompt = Annotated[str | None, typer.Option(help="One prompt for all samples.")]
Prompts = Annotated[
    Path | None, typer.Option(help="File with a prompt a line, which the samples take in turn.")
]
Guidance = Annotated[
    str | None,
    typer.Option(help="Scale of classifier-free guidance; of networks also a range, as in 1:7."),
]
Nfe = Annotated[str, typer.Option(help="Numbers of network evaluations, a card each.")]
Starts = Annotated[int, typer.Option(help="Start states, those for validation among them.")]
Seed = Annotated[int, typer.Option(help="Seed of the starts.")]
ReferenceNfe = Annotated[int, typer.Option(help="Evaluations of the converged solutions.")]
BatchSize = Annotated[int, typer.Option(help="Starts that run at once.")]
Out = Annotated[Path, typer.Option(help="Folder of the cards; finished work in it is kept.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for another rank, under torchrun.")]
Json = Annotated[bool, typer.Option("--json", help="Print the cards as JSON, not as a table.")]


def tune(
    model: Model = None,
    pipeline: Pipeline = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    guidance_scale: Guidance = None,
    nfe: Nfe = "5,8,10",
    level: Annotated[
        str,
        typer.Option(
            help="What is fitted: grid (nodes), coefficients, full (both, and the time that the "
            "network is told). Without gradients, nodes alone: location, lattice, proxy, search."
        ),
    ] = "full",
    starts: Starts = 256,
    seed: Seed = 1000,
    iterations: Annotated[
        int | None, typer.Option(help="Steps of the fit. Default: the level's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Another option of tune as key=value: rows=free, rate=0.05. Repeatable."
        ),
    ] = None,
    reference_nfe: ReferenceNfe = 200,
    batch_size: BatchSize = 32,
    height: Height = None,
    width: Width = None,
    call_args: CallArgs = "{}",
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = Path("cards"),
    timeout: Timeout = 1800.0,
    json_: Json = False,
) -> None:
    """Fit the best plan for your own model at a few evaluations, and write it as a card.

    A validation split decides: where nothing that was fitted is better beyond doubt, the card holds
    the best known plan. A killed run goes on where it stopped when it is started again. Processes
    share the converged solutions: torchrun --nproc-per-node 2 -m logsnr.benchmarks tune ...

    Example: logsnr tune --pipeline ./my-model --prompts prompts.txt --nfe 5,8 --out cards
    """
    said: dict[str, Any] = {} if iterations is None else {"iterations": iterations}
    with options():
        said |= dict(map(fit_option, set_ or ()))
    asked: dict[str, Any] = dict(nfe=nfe, level=level, options=said, starts=starts, seed=seed)
    asked |= dict(reference_nfe=reference_nfe, batch_size=batch_size)
    opened: dict[str, Any] = dict(model=model, pipeline=pipeline, prompt=prompt, prompts=prompts)
    opened |= dict(height=height, width=width, dtype=dtype, device=device, call_args=call_args)
    make_cards(asked, opened, guidance_scale, out, timeout, json_)


def fit_option(text: str) -> tuple[str, Any]:
    """The option of key=value; ValueError where it is written otherwise."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"set={text!r}: need key=value")
    return key, json_value(value)


def make_cards(
    request: dict[str, Any],
    opened: dict[str, Any],
    guidance: str | None,
    out: Path,
    timeout: float,
    json_: bool,
) -> None:
    """What ``tune`` and ``auto`` do, with their options as they were written."""
    from logsnr.benchmarks.reports.tuning_plot import PLOT, write_plot
    from logsnr.benchmarks.studies.tuning import Request, fit_cards, references
    from logsnr.benchmarks.studies.tuning_subjects import fitting_of, guidance_range
    from logsnr.solvers.processes import ranks

    with options():
        counts = tuple(sorted(numbers("nfe", request["nfe"])))
        asked = Request(**{**request, "nfe": counts})
        call = json_object(opened["call_args"])
        scales = guidance_range(guidance)
        folder(out)
    with ranks(timeout=timeout) as here, ExitStack() as stack:
        with options():
            fitted = stack.enter_context(fitting_of(scales, **{**opened, "call_args": call}))
        with working(kept=out):
            targets = references(asked, fitted, out, here, progress)
            if here.rank != 0:
                return
            cards = fit_cards(asked, fitted, out, targets, progress)
            write_plot(cards, out / PLOT)
    if json_:
        typer.echo(json.dumps([card.about() for card in cards.values()], indent=2))
        return
    print_cards(cards)
    wrote(out, [f"card-{n}.json" for n in cards] + [PLOT])
    typer.echo(f'  PlanScheduler.from_config(pipe.scheduler.config, plan="{out}")')


def print_cards(cards: Cards) -> None:
    """Errors before and after, by number of evaluations."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{cards.model.name}: errors of validation starts")
    for name in ("NFE", "plan", "median", "untuned", "ratio", "RMSE", "untuned"):
        table.add_column(name, justify="left" if name == "plan" else "right")
    for nfe, card in cards.items():
        after, before = card.after, card.before
        table.add_row(
            str(nfe),
            card.level,
            f"{after['median']:.4g}",
            f"{before['median']:.4g}",
            f"{after['median'] / before['median']:.2f}" if before["median"] else "",
            f"{after['rmse']:.4g}",
            f"{before['rmse']:.4g}",
        )
    Console().print(table)
