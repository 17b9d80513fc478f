"""The solver and its order where nobody names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .noise_schedules import is_flow
from .typed_solver import solver_name

# What diffusers' solver_type means for the solvers that have a choice with these names.
SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}
UNIPC_VARIANTS = ("bh1", "bh2")
OTHER_SOLVER_TYPES = ("logrho",)

# Up to so many evaluations less of the correction is made: with large guidance scales the first
# steps are too long for all of it.
FEW = 7
RELAXATION = {True: 0.75, False: 0.9}
ORDERS = {"deis": 3, "ipndm": 3, "lms": 3}
ORDER = 2


def with_default_solver(config: Mapping[str, Any], n: int | None = None) -> Mapping[str, Any]:
    """The config with a solver and an order named, for a run of n evaluations.

    What the user said stays, and a key that only some solvers have decides for one of them.
    """
    if config.get("solver") is not None and config.get("solver_order") is not None:
        return config
    named = {**config, "solver": config.get("solver") or _solver(config, n)}
    if config.get("solver_order") is None:
        chosen = config.get("solver") is None
        named["solver_order"] = ORDER if chosen else ORDERS.get(solver_name(named), ORDER)
    return named


def _solver(config: Mapping[str, Any], n: int | None) -> str | Mapping[str, Any]:
    kind = config.get("solver_type")
    if kind in SOLVER_TYPES or config.get("euler_at_final"):
        return "dpm-solver++"
    if kind in OTHER_SOLVER_TYPES:
        return "deis"
    asked = kind in UNIPC_VARIANTS or config.get("disable_corrector")
    asked = asked or not config.get("predict_x0", True) or not config.get("lower_order_final", True)
    if asked or not is_flow(config):
        return "unipc"
    # A predictor-corrector in t: of second order from pure noise on, one evaluation a step.
    few = n is not None and n <= FEW
    return {"name": "ipndm", "corrector": True, "relaxation": RELAXATION[few]}
