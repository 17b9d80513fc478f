"""``logsnr nfe``: schedulers on the user's own diffusers pipeline, against a converged solution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from logsnr.benchmarks.cli.command_line import (
    folder,
    json_object,
    numbers,
    options,
    progress,
    working,
    wrote,
)
from logsnr.benchmarks.cli.pipeline_options import CallArgs, Device, Dtype, Height, Width
from logsnr.benchmarks.harness.written import split


def nfe(
    pipeline: Annotated[
        str,
        typer.Option(help="Folder of save_pretrained, ID on the Hub, or the embedded digits."),
    ] = "embedded",
    prompt: Annotated[
        str | None, typer.Option(help="Prompt; a digit for the embedded model.")
    ] = None,
    solvers: Annotated[
        str | None,
        typer.Option(
            help="Solvers with options as in unipc:order=3:karras, 'stock' for the pipeline's own "
            "scheduler, schedulers of diffusers as DPMSolverMultistep. Default: some of each."
        ),
    ] = None,
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "5,8,10,20",
    seeds: Annotated[str, typer.Option(help="Seeds of the starting noise.")] = "0-3",
    out: Annotated[
        Path, typer.Option(help="Folder of the records and the report; kept results are reused.")
    ] = Path("results/nfe"),
    height: Height = None,
    width: Width = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance.")
    ] = None,
    call_args: CallArgs = "{}",
    dtype: Dtype = "float32",
    device: Device = None,
    reference_nfe: Annotated[
        str,
        typer.Option(help="Evaluations of the converged solution, and of its error bar."),
    ] = "200,150",
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Fit the grid's location to the pipeline: 84 more evaluations a seed."
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of the table.")
    ] = False,
) -> None:
    """Compare solvers on your own pipeline: how far are they from the converged solution?

    The pipeline runs as it is, only its scheduler is exchanged. A run that was killed goes on where
    it stopped when it is started again.

    Example: logsnr nfe --pipeline ./my-model --prompt "a red fox" --nfe 5,10,20 --out results/fox
    """
    with options():
        counts, picked = tuple(sorted(numbers("nfe", nfe))), numbers("seeds", seeds)
        given = json_object(call_args)

    import torch

    from logsnr.benchmarks.harness.comparison import check_study
    from logsnr.benchmarks.harness.contenders import default_contenders, parse_contender
    from logsnr.benchmarks.harness.files import locked
    from logsnr.benchmarks.harness.records import RECORDS
    from logsnr.benchmarks.harness.study import Study
    from logsnr.benchmarks.harness.subjects.opening import open_pipeline
    from logsnr.benchmarks.reports.nfe_page import (
        ERROR_PLOT,
        PICTURES,
        REPORT,
        notes,
        summary,
        write_findings,
    )
    from logsnr.benchmarks.studies.nfe import evaluations, measure
    from logsnr.benchmarks.studies.nfe_fit import fit_study, with_pasted

    with options():
        # Everything that can be checked without the weights comes first.
        chosen = None if solvers is None else tuple(map(parse_contender, split(solvers, ",")))
        accuracy = _accuracy(reference_nfe)
        subject = open_pipeline(
            pipeline,
            prompt=prompt,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            dtype=dtype,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            call_args=given,
        )
        chosen = chosen or default_contenders(subject.pipe.scheduler)
        study = Study(with_pasted(chosen) if fit else chosen, counts, picked, accuracy)
        check_study(study, subject)
        trial = fit_study(study, subject) if fit else None
        folder(out)
    with working(kept=out):
        with locked(out), progress(evaluations(study, trial), "evaluations") as update:
            findings = measure(study, subject, out, update, trial)
        write_findings(findings, out)
    if json_:
        typer.echo(json.dumps(findings.as_json(), indent=2))
    else:
        from rich.console import Console

        Console().print(summary(findings))
        for line in notes(findings):
            typer.echo(line)
        wrote(out, (REPORT, ERROR_PLOT, PICTURES, RECORDS))
    if any(record["status"] == "failed" for _, record in findings.records):
        raise typer.Exit(1)


def _accuracy(reference_nfe: str) -> tuple[int, int]:
    given = numbers("reference_nfe", reference_nfe)
    if len(given) != 2:
        raise ValueError(f"reference_nfe={reference_nfe!r}: need two numbers, as in 200,150")
    return given[0], given[1]
