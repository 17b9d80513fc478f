"""One file a solver family. Importing this package fills the registry."""

from . import ddim, dpm_solver, heun, unipc

__all__ = ["ddim", "dpm_solver", "heun", "unipc"]
