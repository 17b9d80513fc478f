"""A plan in a config: it is the solver and the grid of every run, and nothing else decides them.

Cards are plans for several numbers of evaluations, of which the run has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logsnr.solvers import Plan
from logsnr.solvers.fitted_to import fitted_to
from logsnr.solvers.tuning.cards import Cards

from .carried_files import carried_by
from .foreign import say
from .network_output import prediction_type
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


def given_plan(config: Mapping[str, Any], n: int | None = None) -> Plan | Cards | None:
    """The plan of ``config`` for a run of n evaluations, None if it has none.

    Of cards it is that of the one with n evaluations; where n is not known yet and there are
    several, the cards. Numbers without a plan have none where ``plan_fallback`` says so.

    Raises ValueError for one that is not there, that a pipeline cannot run, or that stands beside
    another key for what it decides.
    """
    held: Plan | Cards | None = carried_by(config, "plan")
    fallback = config.get("plan_fallback")
    if fallback not in (None, True, False):
        raise ValueError(f"plan_fallback={fallback!r}: need True or False")
    if held is None:
        return None
    for key, silent in DECIDED.items():
        value = config.get(key)
        if value not in silent:
            raise ValueError(
                f"{key}={value!r} was given beside plan, which decides it: leave out one of them"
            )
    plans = {held.nfe: held} if isinstance(held, Plan) else {n: c.plan for n, c in held.items()}
    for plan in plans.values():
        check_runnable(plan, prediction_type(config))
    if n in plans:
        return plans[n]
    if n is None:
        return held if len(plans) > 1 else next(iter(plans.values()))
    if fallback:
        return None
    if isinstance(held, Plan):
        return held  # its layout says what is wrong with n
    raise ValueError(
        f"num_inference_steps={n!r}: plan={held!r} has cards for {', '.join(map(str, plans))} "
        "evaluations; fit one for this number, or have the default solver run it with "
        "plan_fallback=True"
    )


def check_runnable(plan: Plan, prediction: str) -> None:
    """ValueError for a plan that no pipeline can run, or that was fitted to another prediction.

    That its nodes are on the model's schedule is checked with the layout.
    """
    check_times(plan)
    if plan.evaluated[0] != 0:
        raise ValueError(
            f"plan={plan!r} moves the start before its first evaluation, but a pipeline evaluates "
            "the start itself"
        )
    note = fitted_to(plan)
    if note is not None and note.prediction and note.prediction != prediction:
        raise ValueError(
            f"prediction_type={prediction!r}: plan={plan!r} was fitted to a network that predicts "
            f"{note.prediction}"
        )


def check_times(plan: Plan) -> None:
    """ValueError for a plan that tells the network two times at once."""
    if any(row.node.second is not None for row in plan.rows):
        raise ValueError(
            f"plan={plan!r} tells the network a second time, but a pipeline tells its network one"
        )


def warn_of(plan: Plan, **said: Any) -> None:
    """A line in the log, once, for what a plan was not fitted to: see `FittedTo.differences`."""
    note = fitted_to(plan)
    if note is not None and (text := "; ".join(note.differences(**said))):
        say(f"plan={plan!r} was fitted to something else, and may be worse here: {text}")


def without_decided(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys that a plan decides, where ``given`` has one."""
    if given.get("plan") is None:
        return dict(config)
    return {key: value for key, value in config.items() if key not in DECIDED}
