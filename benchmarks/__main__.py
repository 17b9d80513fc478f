"""The command line ``logsnr``, also ``python -m logsnr.benchmarks``.

A command is a function in a module of its own, imported when the command is called, and what it
computes with is imported when it runs: ``--help`` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import logsnr

COMMANDS = {
    "demo": "Compare solvers on the embedded model of digits, next to diffusers' schedulers.",
    "solvers": "List the solvers: names, orders, cost, and when to use which.",
    "bench": "Run suites: error, FID and cost of contenders, kept and shared over processes.",
    "nfe": "Compare solvers on your own diffusers pipeline with a converged solution.",
    "tune": "Fit plans to a model at a few evaluations, and write them as cards.",
    "auto": "Choose solver and grid for a model by measurement, and write them as cards.",
    "report": "Make a page of the records in folders: tables, charts, pictures, protocol.",
    "parallel": "Measure parallel-in-time sampling: sweeps, errors, wall time.",
    "ems": "Estimate the statistics that DPM-Solver-v3 needs of a model, and plot them.",
    "overhead": "Time a step of each solver against the step of diffusers' scheduler.",
    "conformance": "Check the solvers against reference cases of official implementations.",
    "order": "Measure the order of convergence of each solver.",
}
"""Command NAME is the function NAME of the module ``logsnr.benchmarks.cli.NAME``."""


class OnDemand(TyperGroup):
    """A group that knows its commands by name and imports only the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            app = typer.Typer(add_completion=False)
            module = import_module(f"logsnr.benchmarks.cli.{name}")
            app.command(name)(getattr(module, name))
            command = typer.main.get_command(app)
        return name, command, rest


app = typer.Typer(cls=OnDemand, no_args_is_help=True)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"logsnr {logsnr.__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Numerical solvers for pretrained diffusion models: measurements.

    Example: logsnr demo
    """


def main() -> None:
    """The entry point."""
    app(prog_name="logsnr")


if __name__ == "__main__":
    main()
