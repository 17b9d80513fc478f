r"""DPM-Solver (Lu et al. 2022a) and DPM-Solver++ (Lu et al. 2022b); monograph sections 9.4, 9.5.

The exact solution over h = lambda_t - lambda_s is, with z = -h, S = alpha_t in data space
(DPM-Solver++) and z = h, S = sigma_t in noise space (DPM-Solver),

    x_t = a x_s - S z (phi_1(z) g_s + phi_2(z) h g'_s + phi_3(z) h^2 g''_s + ...)

where ' is d/d lambda. The solvers differ in how they estimate the derivatives:

* multistep, from the last evaluations; D1 estimates h g' and D2 estimates h^2 g''. The published
  third-order weights use half of that D2, which leaves order 2 (``weights="published"``);
  ``weights="taylor"`` restores order 3.
* singlestep, from evaluations inside the step. ``solver_type="dpmsolver"`` replaces phi_2 by
  phi_1 / 2 at order 2, as published; "taylor" keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import scalar
from ..checks import check_choice, check_order
from ..grids import Grid
from ..phi import z_phi
from ..plan import Node, Plan, Row
from ..registry import count_steps, solver
from .multistep import SPACES, Weights, exponential, first_order, multistep
from .singlestep import blocks, budget, singlestep
from .unipc import unic

SOLVER_TYPES = ("dpmsolver", "taylor")
STEPS = ("multistep", "singlestep", "singlestep_fixed")


def _order(options: Mapping[str, Any]) -> int:
    order = options["order"]
    multistep_3 = order == 3 and options["steps"] == "multistep"
    attained = 2 if multistep_3 and options["weights"] == "published" else order
    return attained + bool(options["corrector"])


def _build(
    grid: Grid,
    nfe: int | None,
    space: str,
    order: int,
    steps: str,
    solver_type: str,
    weights: str,
    corrector: bool,
    lower_order_final: bool,
    keep_first: bool = False,
) -> Plan:
    check_order(order, (1, 2, 3))
    check_choice("steps", steps, STEPS)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    check_choice("weights", weights, ("published", "taylor"))
    if corrector and steps != "multistep":
        raise ValueError(f"corrector=True needs steps='multistep', not {steps!r}")
    if steps == "multistep":
        nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
        doubled = 2.0 if weights == "taylor" else 1.0
        rows = multistep(
            nodes,
            lambda past, end: multistep_weights(space, past, end, solver_type, doubled),
            order=order,
            space=space,
            lower_order_final=lower_order_final,
            keep_first=keep_first,
            corrector=unic(space) if corrector else None,
        )
    else:
        count = count_steps(grid, nfe, at_least=order if steps == "singlestep_fixed" else 1)
        fixed = [order] * (count // order)
        orders = fixed if steps == "singlestep_fixed" else budget(order, count)
        rows = singlestep(
            blocks(grid, orders, fixed=steps == "singlestep_fixed"),
            lambda nodes, base, outputs: stages(space, nodes, base, outputs, solver_type),
            space=space,
        )
    return Plan(tuple(rows))


@solver(
    "dpm-solver++",
    order=_order,
    nfe_per_step=lambda o: 1 if o["steps"] == "multistep" else o["order"],
    title="DPM-Solver++: exponential integrator of the data prediction in lambda",
    when="as unipc, without its corrector: guided models, at order 2",
    paper="lu2022dpmpp",
    spaces=("data",),
)
def dpm_solver_pp(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 2,
    steps: str = "multistep",
    solver_type: str = "dpmsolver",
    weights: str = "published",
    corrector: bool = False,
    lower_order_final: bool = True,
    keep_first: bool = True,
) -> Plan:
    """DPM-Solver++ of order 1, 2 or 3; see the module's text for the update rule.

    Parameters
    ----------
    steps : "multistep" (one evaluation a step, 2M and 3M), "singlestep" (blocks of up to
        ``order`` evaluations that add up to ``nfe``, 2S and 3S), "singlestep_fixed"
        (nfe // order blocks of exactly ``order`` evaluations).
    solver_type : "dpmsolver" or "taylor", the published variants of the correction term.
    weights : of the third-order multistep method: "published" (order 2) or "taylor" (order 3).
    corrector : correct every step but the last with UniC, which adds one order (multistep).
    lower_order_final : lower the order towards the last steps (multistep).
    keep_first : keep what the network said of pure noise (alpha = 0: flow models, zero terminal
        SNR) for the later steps (multistep), see `multistep`; False drops it, as published.

    Raises ValueError for a value that is not listed here, or nfe < order.
    """
    return _build(
        grid,
        nfe,
        "data",
        order,
        steps,
        solver_type,
        weights,
        corrector,
        lower_order_final,
        keep_first,
    )


@solver(
    "dpm-solver",
    order=_order,
    nfe_per_step=lambda o: 1 if o["steps"] == "multistep" else o["order"],
    title="DPM-Solver: exponential integrator of the noise prediction in lambda",
    when="the method of the paper, on noise predictions",
    paper="lu2022dpm",
    spaces=("noise",),
)
def dpm_solver(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 2,
    steps: str = "singlestep",
    solver_type: str = "dpmsolver",
    weights: str = "published",
    corrector: bool = False,
    lower_order_final: bool = True,
) -> Plan:
    """DPM-Solver of order 1, 2 or 3: as `dpm_solver_pp`, combining noise predictions."""
    return _build(
        grid, nfe, "noise", order, steps, solver_type, weights, corrector, lower_order_final
    )


def multistep_weights(
    space: str,
    past: Sequence[Node],
    end: Node,
    solver_type: str,
    doubled: float,
    decay: float = 0.0,
) -> Weights:
    """Weights of the multistep step of order len(past) <= 3; ``doubled`` scales D2.

    ``decay`` is that of a step with noise, in which the derivatives are still those in lambda.
    """
    a, scale, z = exponential(space, past[0], end, decay)
    if len(past) == 1:
        return a, [-scale * scalar.expm1(z)]
    h = end.lam - past[0].lam
    r0 = (past[0].lam - past[1].lam) / h
    if len(past) == 2:
        slope = 0.5 * scalar.expm1(z) if solver_type == "dpmsolver" else z_phi(2, z)
        return a, [-scale * (scalar.expm1(z) + slope / r0), scale * slope / r0]
    r1 = (past[1].lam - past[2].lam) / h
    near = (1 / r0, -1 / r0, 0.0)  # first divided differences, each times h
    far = (0.0, 1 / r1, -1 / r1)
    d2 = [(p - q) / (r0 + r1) for p, q in zip(near, far, strict=True)]
    d1 = [p + r0 * q for p, q in zip(near, d2, strict=True)]
    terms = zip((1.0, 0.0, 0.0), d1, d2, strict=True)
    z1, z2, z3 = z_phi(1, z), z_phi(2, z), doubled * z_phi(3, z)
    return a, [-scale * (z1 * p + z2 * q + z3 * r) for p, q, r in terms]


def stages(
    space: str, nodes: Sequence[Node], base: int, outputs: Sequence[int], solver_type: str
) -> Row:
    """The next row of a singlestep block.

    ``nodes`` are the block's start, inner nodes and end; ``base`` is the row of its start and
    ``outputs`` are the rows evaluated so far. With as many outputs as the block has steps, the
    row is the block's end.
    """
    start, end = nodes[0], nodes[len(outputs)]
    a, scale, z = exponential(space, start, end)
    if len(outputs) == 1:
        a, b = first_order(SPACES[space], start, end)
        return Row(end, ((base, a),), ((outputs[0], b),))
    r = [(node.lam - start.lam) / (end.lam - start.lam) for node in nodes[1 : len(outputs)]]
    final = len(outputs) == len(nodes) - 1
    if len(outputs) == 2:
        published = solver_type == "dpmsolver" and final
        slope = (0.5 * z_phi(1, z) if published else z_phi(2, z)) / r[0]
        weights = [z_phi(1, z) - slope, slope]
    elif solver_type == "dpmsolver":
        slope = z_phi(2, z) / r[1]
        weights = [z_phi(1, z) - slope, 0.0, slope]
    else:
        r1, r2 = r
        d1 = [r2 / r1 / (r2 - r1), -r1 / r2 / (r2 - r1)]  # of g_1 - g_0 and g_2 - g_0
        d2 = [-2 / r1 / (r2 - r1), 2 / r2 / (r2 - r1)]
        slopes = [z_phi(2, z) * p + z_phi(3, z) * q for p, q in zip(d1, d2, strict=True)]
        weights = [z_phi(1, z) - sum(slopes), *slopes]
    used = tuple((j, -scale * w) for j, w in zip(outputs, weights, strict=True) if w != 0)
    return Row(end, ((base, a),), used)
