"""The command line ``logsnr``, also ``python -m logsnr.benchmarks``.

A command is a function in a module of its own, imported when the command is called: ``--help``
answers at once, and no command waits for the imports of another.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "demo": "Compare solvers on the embedded model of digits, next to diffusers' schedulers.",
    "nfe": "Compare solvers on your own diffusers pipeline with a converged solution.",
    "parallel": "Measure parallel-in-time sampling: sweeps, errors, wall time.",
    "ems": "Estimate the statistics that DPM-Solver-v3 needs of a model, and plot them.",
    "overhead": "Time a step of each solver against the step of diffusers' scheduler.",
    "conformance": "Check the solvers against reference cases of official implementations.",
    "order": "Measure the order of convergence of each solver.",
}
"""Command NAME is the function NAME of the module ``logsnr.benchmarks.NAME``."""


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
            app.command(name)(getattr(import_module(f"logsnr.benchmarks.{name}"), name))
            command = typer.main.get_command(app)
        return name, command, rest


app = typer.Typer(cls=OnDemand, add_completion=False, no_args_is_help=True)


@app.callback()
def logsnr() -> None:
    """Numerical solvers for pretrained diffusion models: measurements.

    Example: logsnr demo
    """


def main() -> None:
    """The entry point."""
    app(prog_name="logsnr")


if __name__ == "__main__":
    main()
