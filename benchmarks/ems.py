"""``logsnr ems``: the statistics of DPM-Solver-v3 of a pipeline, with their plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from logsnr.adapters import run_pipeline, statistics
from logsnr.benchmarks.comparison import DIGITS, Problem, schedule
from logsnr.benchmarks.embedded import load_unet
from logsnr.benchmarks.ems_plot import PLOT, write_plot
from logsnr.benchmarks.nfe import bad_parameter, json_object
from logsnr.benchmarks.pipeline_runs import DTYPES, EMBEDDED, open_pipeline
from logsnr.solvers import EMS, estimate_ems
from logsnr.solvers.ems import DEGENERATE

EVENT = (1, 28, 28)
"""Of the embedded model."""
FILE, CHECKPOINT = "ems.safetensors", "checkpoint"
STEPS = 10
"""Of the pipeline's call. The estimation takes its own number, on its own range."""
FEWEST = 8
"""Samples that have standard errors: two groups of four."""
SHOWN = 7
"""Values of lambda in the table."""


@dataclass(frozen=True)
class Request:
    """What is estimated: arguments of ``estimate_ems`` and of ``open_pipeline``."""

    pipeline: str
    opened: Mapping[str, Any]
    data: str | None
    nodes: int
    samples: int
    batch_size: int
    granularity: str
    jacobian: str
    seed: int
    stop: float | None

    @property
    def estimation(self) -> dict[str, Any]:
        """The arguments that both ways of an estimation take."""
        names = ("nodes", "samples", "granularity", "seed", "stop")
        return {name: getattr(self, name) for name in names}


def ems(
    pipeline: Annotated[
        str,
        typer.Option(help="Folder of save_pretrained, ID on the Hub, or the embedded digits."),
    ] = EMBEDDED,
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
    batch_size: Annotated[int, typer.Option(help="States in one call of the network.")] = 16,
    height: Annotated[int | None, typer.Option(help="Height of the picture.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the picture.")] = None,
    call_args: Annotated[
        str, typer.Option(help="More arguments of the pipeline's call, as a JSON object.")
    ] = "{}",
    dtype: Annotated[str, typer.Option(help=f"Weights: {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="Default: cuda where there is one, else cpu.")
    ] = None,
    shrink: Annotated[
        bool, typer.Option(help="Draw what is uncertain towards DPM-Solver++ (EMS.shrunk).")
    ] = False,
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
    )
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={str(out)!r}: need a folder, or a path that does not exist")
        if shrink and samples < FEWEST:
            raise ValueError(f"samples={samples}: shrinking needs {FEWEST}, for standard errors")
        found = estimate(request, json_object(call_args), out / CHECKPOINT)
    except ValueError as error:
        raise bad_parameter(error) from error
    written = found.shrunk() if shrink else found
    written.save(out / FILE, dtype=torch.float16 if half else torch.float64)
    write_plot(found, out / PLOT)
    if json_:
        print(json.dumps(summary(found) | {"file": str(out / FILE)}, indent=2))
        return
    console = Console()
    console.print(table(found))
    for name in (FILE, PLOT):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)
    console.print(
        f'  PlanScheduler.from_config(config, solver="dpm-solver-v3", ems="{out / FILE}")',
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def estimate(request: Request, call_args: Mapping[str, Any], checkpoint: Path) -> EMS:
    """The statistics that were asked for, with where they came from; kept in ``checkpoint``.

    Raises ValueError naming the option that is not possible.
    """
    embedded = request.pipeline == EMBEDDED
    if embedded and call_args:
        raise ValueError(f"call_args={dict(call_args)!r}: the embedded model takes none")
    found = (
        of_digits(request, checkpoint) if embedded else of_pipeline(request, call_args, checkpoint)
    )
    model = {"model": request.pipeline, "prompt": request.opened["prompt"]}
    scale = request.opened["guidance_scale"]
    if scale is not None:
        model["guidance_scale"] = scale
    return replace(found, about={**found.about, **model, "version": version("logsnr")})


def of_digits(request: Request, checkpoint: Path) -> EMS:
    """Of the embedded model: of one digit, or of all in turn."""
    opened = request.opened
    prompt = opened["prompt"]
    # This checks the options; the weights are small.
    open_pipeline(EMBEDDED, **{**opened, "prompt": "0" if prompt is None else prompt})
    if prompt is None and request.data is not None:
        raise ValueError("prompt=None: data have no labels here, need the digit that they show")
    labels = torch.arange(request.samples) % DIGITS
    if prompt is not None:
        labels[:] = int(prompt)
    device = opened["device"]
    network = load_unet(DTYPES[opened["dtype"]], device)
    guidance = 1.0 if opened["guidance_scale"] is None else opened["guidance_scale"]
    problem = Problem(network, schedule(), torch.empty(0), labels.to(device), guidance)
    return estimate_ems(
        problem.denoiser(problem.labels),
        request.data,
        **request.estimation,
        batch_size=request.batch_size,
        jacobian=request.jacobian,
        shape=EVENT,
        checkpoint=checkpoint,
        progress=True,
    )


def of_pipeline(request: Request, call_args: Mapping[str, Any], checkpoint: Path) -> EMS:
    """Of any other pipeline, through its own call."""
    if request.jacobian == "jvp":
        raise ValueError("jacobian='jvp': a pipeline gives outputs only, need difference or auto")
    # Nothing is sampled, so nothing has to be decoded.
    subject = open_pipeline(
        request.pipeline, **request.opened, call_args={"output_type": "latent", **call_args}
    )
    options = request.estimation
    algorithm = statistics(
        request.data,
        groups=request.batch_size,
        **options,
        checkpoint=checkpoint,
        progress=True,
    )
    run = run_pipeline(
        subject.pipe,
        algorithm,
        **subject.arguments,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(request.seed),
    )
    about = {"weights": subject.problem["weights"], "class": subject.problem["class"]}
    return replace(run.result, about={**run.result.about, **about})


def summary(found: EMS) -> dict[str, Any]:
    """What was found, as JSON values: medians over the coordinates of each node."""
    values: dict[str, Any] = {"about": dict(found.about), "event": list(found.event)}
    values["lam"] = found.lam.tolist()
    for name in DEGENERATE:
        values[name] = _medians(getattr(found, name))
        if found.errors:
            values[f"error_{name}"] = _medians(found.errors[name])
    return values


def table(found: EMS) -> Table:
    """l, s and b at a few nodes with their standard errors, medians over the coordinates."""
    report = Table(
        title=f"{found.about['samples']} samples, {len(found.lam)} nodes, event {found.event}",
        caption="medians over coordinates; l = 1, s = b = 0 is DPM-Solver++",
    )
    report.add_column("lambda", justify="right")
    for name in DEGENERATE:
        report.add_column(name, justify="right")
    values = {name: _medians(getattr(found, name)) for name in DEGENERATE}
    errors = {name: _medians(error) for name, error in found.errors.items()}
    for k in torch.linspace(0, found.intervals, SHOWN).round().long().tolist():
        cells = (
            f"{values[name][k]:.3f}" + (f" +- {errors[name][k]:.3f}" if errors else "")
            for name in DEGENERATE
        )
        report.add_row(f"{found.lam[k]:.2f}", *cells)
    return report


def _medians(values: torch.Tensor) -> list[float]:
    return values.reshape(len(values), -1).median(dim=1).values.tolist()
