"""Loader of the embedded model's statistics for DPM-Solver-v3.

They are those of the class-conditional network without guidance, all digits in turn, as
``logsnr demo`` samples it. `docs/ems.md` has the command that made them, and what they are worth.
"""

from __future__ import annotations

from pathlib import Path

from logsnr.solvers import EMS

EMS_FILE = Path(__file__).parent / "ems" / "ems.safetensors"


def load_ems() -> EMS:
    """The committed statistics; ``make_plan("dpm-solver-v3", ..., ems=load_ems())``."""
    return EMS.load(EMS_FILE)
