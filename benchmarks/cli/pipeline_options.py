"""Options that the commands which drive a pipeline share."""

from __future__ import annotations

from typing import Annotated

import typer

Height = Annotated[int | None, typer.Option(help="Height of the picture.")]
Width = Annotated[int | None, typer.Option(help="Width of the picture.")]
CallArgs = Annotated[
    str, typer.Option(help="More arguments of the pipeline's call, as a JSON object.")
]
Dtype = Annotated[str, typer.Option(help="Weights: float32, bfloat16, float16.")]
Device = Annotated[str | None, typer.Option(help="Default: cuda where there is one, else cpu.")]
