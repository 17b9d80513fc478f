"""What a config asks of a solver: its name, its options, its changes of the table.

diffusers' keys are used where they exist. The one new key is ``solver``: a name of the registry, or
a mapping {"name": ..., option: value} for options that have no diffusers key.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from logsnr.solvers import EMS
from logsnr.solvers.checks import check_whole
from logsnr.solvers.names import in_words
from logsnr.solvers.registry import chosen_solver, find_solver

from .carried_files import carried_by
from .default_solver import OTHER_SOLVER_TYPES, SOLVER_TYPES, UNIPC_VARIANTS, with_default_solver
from .noise_schedules import is_flow
from .typed_solver import typed_solver

# diffusers lowers the final order of these in runs of fewer than 15 evaluations only.
LOWERED_IN_SHORT_RUNS = ("dpm-solver", "dpm-solver++", "sde-dpm-solver++", "deis")
SHORT_RUN = 15
# What diffusers' solver_type is called by the solvers that have a choice between the two.
SOLVER_TYPES_OF = {
    "dpm-solver": SOLVER_TYPES,
    "dpm-solver++": SOLVER_TYPES,
    "sde-dpm-solver++": {kind: kind for kind in SOLVER_TYPES},
}


@dataclass(frozen=True)
class SolverChoice:
    """The solver of a config, and what the config says of it.

    Attributes
    ----------
    name : as it is registered.
    beside : the options that stand beside the name in ``solver``.
    named : those, and the ones that the name as it was written implies.
    order : ``solver_order``, or the default.
    fixed : the options by diffusers' keys that are the same in every run.
    uncorrected : ``disable_corrector``, steps of the whole run.
    euler_at_final : whether the last step is to be of first order.
    ems : the statistics, if the solver takes any.
    """

    name: str
    beside: Mapping[str, Any]
    named: Mapping[str, Any]
    order: int
    fixed: Mapping[str, Any]
    lower_order_final: bool
    uncorrected: tuple[int, ...]
    euler_at_final: bool
    ems: EMS | None

    def in_config_words(self) -> AbstractContextManager[None]:
        """Errors about an option of the solver name the key of the config that it came from."""
        return in_words({} if "order" in self.named else {"order": "solver_order"})

    def options(self, n: int, remaining: int, eta: float) -> dict[str, Any]:
        """Options of the solver for a run of n evaluations of which some remain.

        The order is lowered to the number of remaining evaluations. Options in the ``solver``
        mapping win over everything; of a list of one number a step the last ones are for the rest.
        """
        has = find_solver(self.name).defaults
        options = dict(self.fixed)
        if "lower_order_final" in has:
            short = n < SHORT_RUN or self.name not in LOWERED_IN_SHORT_RUNS
            options["lower_order_final"] = self.lower_order_final and short
        if "eta" in has and eta != 0:
            options["eta"] = float(eta)
        for key, value in self.named.items():
            listed = isinstance(value, list | tuple)
            options[key] = (
                tuple(value[n - remaining :] if len(value) == n else value) if listed else value
            )
        staged = self.name == "sde-dpm-solver++" and options.get("steps") == "singlestep"
        if staged and remaining == 1:  # a step of its has two evaluations and one order
            options |= {"steps": "multistep", "order": 1}
        elif isinstance(options.get("order"), int) and not staged:
            options["order"] = min(options["order"], remaining)
        return options

    def table_changes(self, options: Mapping[str, Any], begin: int) -> dict[str, Any]:
        """What the config changes in the solver's table, as keywords of `plan_for`.

        Of the steps without a corrector, ``begin`` are over.
        """
        changes: dict[str, Any] = {}
        steps = tuple(sorted(step - begin for step in self.uncorrected if step >= begin))
        if steps:
            changes["uncorrected"] = steps
        # As in diffusers, this is for the multistep DPM-Solvers.
        if self.euler_at_final and self.name in ("dpm-solver", "dpm-solver++"):
            default = find_solver(self.name).defaults["steps"]
            changes["euler_at_final"] = options.get("steps", default) == "multistep"
        return changes


def solver_choice(config: Mapping[str, Any], n: int | None = None) -> SolverChoice:
    """The solver of ``config``, `with_default_solver` for a run of n evaluations.

    Keys of diffusers that the solver has no option for are left out.

    Raises ValueError for a value that is not a choice, and for options the solver does not have.
    """
    config = with_default_solver(config, n)
    typed, own = typed_solver(config)
    name = find_solver(typed).name
    has = find_solver(name).defaults
    fixed: dict[str, Any] = {}
    order = config["solver_order"]
    check_whole("solver_order", order, 1)
    if "order" in has:
        fixed["order"] = order
    for key in ("space", "prediction"):
        if key in has and not config["predict_x0"]:
            fixed[key] = "noise"
    if "variable" in has and is_flow(config):
        fixed["variable"] = "time"  # FlowMatchHeun's method
    ems = carried_by(config, "ems") if "ems" in has else None
    if "ems" in has:
        # Networks of training steps want their nodes where they are, not on the statistics' grid.
        fixed |= {"ems": ems, "treatment": "spline"}
    fixed.update(_solver_type(config.get("solver_type"), name))
    if "ems" in own:
        raise ValueError(f"ems={own['ems']!r} in solver: give it beside solver, to be saved")
    for key, value in own.items():
        if callable(value):
            raise ValueError(
                f"{key}={value!r} in solver: a scheduler's config is saved as JSON, which has no "
                "functions: give a number, or a list of one a step"
            )
    return SolverChoice(
        name=name,
        beside=own,
        named=chosen_solver(typed, own)[1],
        order=order,
        fixed=fixed,
        lower_order_final=bool(config["lower_order_final"]),
        uncorrected=_uncorrected(config.get("disable_corrector") or ()),
        euler_at_final=bool(config.get("euler_at_final")),
        ems=ems,
    )


def _uncorrected(disabled: Any) -> tuple[int, ...]:
    if not isinstance(disabled, list | tuple) or not all(
        isinstance(step, int) and step >= 0 for step in disabled
    ):
        raise ValueError(f"disable_corrector={disabled!r}: need a list of steps, counted from 0")
    return tuple(disabled)


def _solver_type(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if value in UNIPC_VARIANTS:
        return {"variant": value} if name == "unipc" else {}
    if value in SOLVER_TYPES:
        words = SOLVER_TYPES_OF.get(name)
        return {} if words is None else {"solver_type": words[value]}
    if value not in OTHER_SOLVER_TYPES:
        choices = (*SOLVER_TYPES, *UNIPC_VARIANTS, *OTHER_SOLVER_TYPES)
        raise ValueError(f"solver_type={value!r}: choose one of {', '.join(choices)}")
    return {}
