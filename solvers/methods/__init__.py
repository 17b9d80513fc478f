"""One file a solver family. Importing this package fills the registry."""

from . import adams, ddim, deis, dpm_solver, heun, ipndm, lms, unipc

__all__ = ["adams", "ddim", "deis", "dpm_solver", "heun", "ipndm", "lms", "unipc"]
