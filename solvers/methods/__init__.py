"""One file a solver family. Importing this package fills the registry."""

from . import (
    adams,
    ancestral,
    cps,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    dpm_solver_v3,
    euler_maruyama,
    heun,
    ipndm,
    lms,
    unipc,
)

__all__ = [
    "adams",
    "ancestral",
    "cps",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_v3",
    "euler_maruyama",
    "heun",
    "ipndm",
    "lms",
    "unipc",
]
