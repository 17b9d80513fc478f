r"""Linear multistep in sigma, as k-diffusion has it: DEIS rhoAB that keeps its order to sigma = 0.

    x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j eps_j int_{rho_s}^{rho_t} L_j d rho,

with L_j the Lagrange polynomials of the last ``order`` values of rho = sigma / alpha. The only
difference from ``deis`` with ``variant="rhoab"`` is the step to sigma = 0, where eps is
extrapolated as everywhere else, and which is of order 1 there.
"""

from __future__ import annotations

from ..checks import check_order
from ..grids import Grid
from ..plan import Plan
from ..registry import count_steps, solver
from .deis import in_rho
from .multistep import multistep


@solver(
    "lms",
    order=lambda options: options["order"],
    nfe_per_step=1,
    title="Linear multistep in sigma (k-diffusion)",
    when="to compare with k-diffusion",
    paper="zhang2023deis",
    spaces=("noise",),
)
def lms(grid: Grid, nfe: int | None = None, *, order: int = 4) -> Plan:
    """Linear multistep of order 1 to 9, one evaluation a step.

    Raises ValueError for another order, or nfe < order.
    """
    check_order(order, range(1, 10))
    nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
    rows = multistep(
        nodes, in_rho, order=order, space="noise", lower_order_final=False, through_zero=True
    )
    return Plan(tuple(rows))
