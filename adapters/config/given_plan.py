"""A plan in a config: it is the solver and the grid of every run, and nothing else decides them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logsnr.solvers import Plan

from .carried_files import carried_by
from .spacing_keys import AUTO, GRID_KEYS

# Keys that a plan decides, with the values that say nothing. Habits that pipelines write by
# themselves (steps_offset, set_alpha_to_one) are none of them.
DECIDED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(GRID_KEYS, (None, False, AUTO)),
    **dict.fromkeys(("location", "scale", "lambda_min_clipped", "final_sigmas_type"), (None,)),
    **dict.fromkeys(("solver", "solver_order", "solver_type", "ems"), (None,)),
    **dict.fromkeys(("predict_x0", "lower_order_final"), (True, None)),
    **dict.fromkeys(("euler_at_final", "exact_sigmas"), (False, None)),
    "disable_corrector": ((), [], None),
}


def given_plan(config: Mapping[str, Any]) -> Plan | None:
    """The plan of ``config``, None if it has none.

    Raises ValueError for one that is not there, that a pipeline cannot run, or that stands beside
    another key for what it decides.
    """
    plan: Plan | None = carried_by(config, "plan")
    if plan is None:
        return None
    for key, silent in DECIDED.items():
        value = config.get(key)
        if value not in silent:
            raise ValueError(
                f"{key}={value!r} was given beside plan, which decides it: leave out one of them"
            )
    check_times(plan)
    if plan.evaluated[0] != 0:
        raise ValueError(
            f"plan={plan!r} moves the start before its first evaluation, but a pipeline evaluates "
            "the start itself"
        )
    return plan


def check_times(plan: Plan) -> None:
    """ValueError for a plan whose nodes have times of the network's own."""
    if plan.tells_times:
        raise ValueError(
            f"plan={plan!r} tells the network other times than its nodes', but a pipeline calls "
            "the network itself, at the nodes"
        )


def without_decided(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys that a plan decides, where ``given`` has one."""
    if given.get("plan") is None:
        return dict(config)
    return {key: value for key, value in config.items() if key not in DECIDED}
