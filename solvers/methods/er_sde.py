r"""ER-SDE-Solver, an extended reverse-time SDE (Cui et al. 2023).

In y = x / alpha and rho = sigma / alpha the SDE of a noise function phi is solved by

    x_t = (alpha_t / alpha_s) r x_s + alpha_t int D(rho) d(phi_t / phi(rho)) + n z,
    r = phi_t / phi_s,     n = alpha_t sqrt(rho_t^2 - rho_s^2 r^2),

with D the data prediction (see `noise_functions`). It is the SDE of strength tau(lambda) of
`stochastic` with tau^2 = dlog(phi / rho) / dlog rho: phi = rho is the ODE, rho^2 the reverse SDE.
Order p puts p evaluations into the integral, by the differences D[..] in rho,

    D(rho) = D_s + D[s, 1] (rho - rho_s) + D[s, 1, 2] (rho - rho_s)(rho - rho_1),

where the authors' third order has (rho - rho_s)^2 in the last term, which makes its order 2
(``weights="published"``), and sums the integrals over 100 rectangles
(``quadrature="published"``), which moves a run of ten steps by about 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .. import scalar
from ..checks import check_choice, check_order
from ..grids import Grid
from ..plan import DATA, Node, Plan, Row
from ..registry import count_steps, solver
from ..scalar import Number, plain
from .lagrange import noise_ratio
from .multistep import first_order
from .noise_functions import DEFAULT, QUADRATURES, Share, kept, moments, share_of
from .pure_noise import Frame
from .stochastic import Split


def _order(options: Mapping[str, Any]) -> int:
    return min(2, options["order"]) if options["weights"] == "published" else options["order"]


@solver(
    "er-sde",
    order=_order,
    nfe_per_step=1,
    strong=lambda options: 1.0,
    weak=lambda options: float(min(2, options["order"])),
    title="ER-SDE: an SDE whose noise is a function of sigma / alpha",
    when="much noise at high levels and little at low ones, at 10 evaluations and more",
    paper="cui2023ersde",
    spaces=("data",),
)
def er_sde(
    grid: Grid,
    nfe: int | None = None,
    *,
    order: int = 3,
    noise_function: str | int | Callable[..., Any] = DEFAULT,
    weights: str = "taylor",
    quadrature: str = "exact",
) -> Plan:
    """ER-SDE-Solver of order 1 to 3, one evaluation a step; see the module's text.

    Parameters
    ----------
    noise_function : phi, by name: "ode" (rho), "sde" (rho^2), "sde-1" to "sde-5" as the authors'
        code has them, there 1 to 7, "sde-5" being their choice, rho (e^(rho^0.3) + 10); or a
        function phi(rho) of one number, whose phi(rho) / rho does not fall as rho grows.
    weights : of the third order, "taylor" or "published" (order 2).
    quadrature : "exact", "published" (100 rectangles), or "comfyui" (200).

    Raises ValueError for a value that is not listed here, a phi that asks for noise of a negative
    variance, an inversion, or nfe < order.
    """
    check_order(order, (1, 2, 3))
    check_choice("weights", weights, ("published", "taylor"))
    check_choice("quadrature", quadrature, QUADRATURES)
    g = share_of(noise_function)
    nodes = grid.nodes(count_steps(grid, nfe, at_least=order))
    frame = Frame.of("data", nodes)
    if frame.inverted:
        raise ValueError(
            "solver='er-sde' runs from noise to data only: take a deterministic solver to invert"
        )
    rows = [Row(nodes[0], target=DATA)]
    history: list[int] = []  # evaluated rows at distinct finite rho, newest first
    for k, (start, end) in enumerate(pairwise(nodes)):
        finite = not frame.starts(start)
        if finite:  # pure noise has no rho, and two evaluations at one rho no difference
            repeated = bool(history) and rows[history[0]].node.lam == start.lam
            history = [k, *history[1 if repeated else 0 :]]
        part = _split(g, start, end)
        used = history[:order]
        a, total = first_order(DATA, start, part.down)
        if not finite or frame.ends(end) or end.lam == start.lam:
            used, b = [k], [total]
        else:
            past = [rows[j].node for j in used]
            b = _weights(g, past, end, total, weights == "taylor", quadrature)
        rows.append(
            Row(
                end,
                ((k, a),) if plain(a) != 0 else (),
                tuple(zip(used, b, strict=True)),
                DATA if k < len(nodes) - 2 else None,
                noise=part.noise,
            )
        )
    noted = {"noise_function": getattr(noise_function, "__qualname__", "phi")}
    return Plan(tuple(rows), options=noted if callable(noise_function) else {})


def _split(g: Share, start: Node, end: Node) -> Split:
    """The step by way of the share of the noise that phi keeps."""
    share: Number = 1.0
    if end.sigma > 0 and end.lam != start.lam:
        share = kept(g, start, end)
    down = Node(end.t, end.alpha, end.sigma * share)
    scale = end.sigma * scalar.sqrt((1 - share) * (1 + share)) if plain(share) < 1 else 0.0
    return Split(start, end, down, -scalar.log(share), scale)


def _weights(
    g: Share, past: Sequence[Node], end: Node, total: Number, taylor: bool, quadrature: str
) -> list[Number]:
    """One b for each of ``past`` (newest first), which sum to ``total``."""
    first = noise_ratio(past[0])
    u = [(noise_ratio(node) - first) / (noise_ratio(end) - first) for node in past]
    b = [total, *[0.0] * (len(past) - 1)]
    found = moments(g, past[0], end, len(past) - 1, quadrature)
    if taylor and len(past) == 3:
        found[1] = found[1] - u[1] * found[0]
    for count, moment in enumerate(found, start=2):
        # The difference D[s, 1, ..] of ``count`` evaluations, as a sum over them.
        for j in range(count):
            difference = 1.0
            for k in range(count):
                if k != j:
                    difference = difference / (u[j] - u[k])
            b[j] = b[j] + end.alpha * moment * difference
    return b
