"""One file a solver family. Importing this package fills the registry."""

from . import adams, ddim, deis, dpm_solver, dpm_solver_v3, heun, ipndm, lms, unipc

__all__ = ["adams", "ddim", "deis", "dpm_solver", "dpm_solver_v3", "heun", "ipndm", "lms", "unipc"]
