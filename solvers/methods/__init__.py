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
    er_sde,
    euler_maruyama,
    heun,
    ipndm,
    lms,
    sa_solver,
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
    "er_sde",
    "euler_maruyama",
    "heun",
    "ipndm",
    "lms",
    "sa_solver",
    "unipc",
]
