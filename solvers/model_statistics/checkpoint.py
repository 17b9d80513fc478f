"""What an estimation that goes on takes from its folder, so that it does as it did before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..processes import present
from .accumulators import read_settings
from .derivatives import Steps, Ways


@contextmanager
def work_folder(checkpoint: str | Path | None) -> Iterator[Path]:
    """The folder of the accumulators: the one that was named, or a temporary one."""
    if checkpoint is not None:
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="logsnr-ems-") as folder:
        yield Path(folder)


def of_process(folder: Path) -> Path:
    """The part of the folder that belongs to this process."""
    return folder / f"process{present().rank}"


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of an estimation that goes on; none of one that begins."""
    return read_settings(of_process(folder)) or {}


def stored_group(checkpoint: str | Path | None) -> int | None:
    """The group of an estimation that goes on, which more samples must not change."""
    return None if checkpoint is None else stored_settings(Path(checkpoint)).get("group")


def stored_ways(stored: dict[str, Any], wanted: Ways, lam_step: float | None) -> Ways | None:
    """How derivatives were had when the estimation began, where ``wanted`` leaves it open."""
    if not stored:
        return None
    return Ways(
        stored["jacobian"] if wanted.jacobian == "auto" else wanted.jacobian,
        stored["derivative"] if wanted.derivative == "auto" else wanted.derivative,
        Steps(*stored["steps"]) if lam_step is None else wanted.steps,
        stored["derivatives"],
    )
