"""The solver and its order where nobody names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .options import SOLVER_TYPES, UNIPC_VARIANTS, solver_name

# Up to so many evaluations a predictor-corrector of order 2 has the least error; beyond, the
# history that Adams-Bashforth in sigma looks back on is smooth enough for order 3.
FEW = 7
ORDERS = {"deis": 3, "ipndm": 3, "lms": 3}
ORDER = 2


def settled(config: Mapping[str, Any], n: int | None = None) -> Mapping[str, Any]:
    """The config with a solver and an order named, for a run of n evaluations.

    What the user said stays, and a key that only some solvers have decides for one of them.
    """
    if config.get("solver") is not None and config.get("solver_order") is not None:
        return config
    solver = config.get("solver")
    if solver is None:
        solver = _solver(config, n)
    order = config.get("solver_order")
    if order is None:
        order = _order({**config, "solver": solver})
    return {**config, "solver": solver, "solver_order": order}


def _solver(config: Mapping[str, Any], n: int | None) -> str:
    kind = config.get("solver_type")
    if kind in SOLVER_TYPES or config.get("euler_at_final"):
        return "dpm-solver++"
    asked = kind in UNIPC_VARIANTS or config.get("disable_corrector")
    if asked or not config.get("predict_x0", True) or not config.get("lower_order_final", True):
        return "unipc"
    return "unipc" if n is None or n <= FEW else "ipndm"


def _order(config: Mapping[str, Any]) -> int:
    return ORDERS.get(solver_name(config), ORDER)
