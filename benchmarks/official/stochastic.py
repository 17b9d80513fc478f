"""ER-SDE-Solver and SA-Solver in our terms; see `official`.

A recorded run holds the standard normals that its steps drew, one a step, also where the step then
multiplied them by zero. Ours draws where there is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from logsnr.solvers import Plan, make_plan

from .cases import (
    SPACINGS,
    Answer,
    Array,
    Case,
    Difference,
    Recipe,
    family,
    of_plan,
    schedule_of,
)
from .sigma import polynomial, to_zero

_CLIPPED = 1e-6
"""Variances of noise below this, in units of alpha^2, are 0 in ER-SDE-Solver."""


@family("er_sde")
def er_sde(case: Case) -> Answer:
    """QinpengCui/ER-SDE-Solver: the Taylor methods, with their sum of 100 rectangles."""
    config, schedule = case.config, schedule_of(case)
    if config["eta"] != 0:
        return Difference("func_type 3 with another eta is a function of the user's own here")
    options = {
        "order": config["order"],
        "noise_function": config["func_type"],
        "weights": "published",
        "quadrature": "published",
    }
    if config["sde_type"] == "ve":
        ends = config["sigma_max"], config["sigma_min"]
        sigmas = polynomial(*ends, config["n_sigmas"], config["rho"])
        plan = make_plan("er-sde", schedule, times=to_zero(sigmas), **options)
    else:
        plan = make_plan(
            "er-sde",
            schedule,
            nfe=config["steps"],
            spacing=SPACINGS[config["grid"]],
            t_start=config["t_start"],
            t_end=config["t_end"],
            **options,
        )
    if any((t.scale / row.node.alpha) ** 2 < _CLIPPED for row in plan.rows for t in row.noise):
        return Difference("it leaves out noise of a variance below 1e-6")
    return Recipe(of_plan(plan, _drawn(plan, case.arrays["noise"])), schedule)


@family("sa_solver")
def sa_solver(case: Case) -> Answer:
    """scxue/SA-Solver, on its own grid of times."""
    config, schedule = case.config, schedule_of(case)
    times = case.arrays["t_grid"].tolist()
    inside = [config["tau_from"] <= t <= config["tau_to"] for t in times[1:]]
    more = config["mode"] == "more_steps"
    plan = make_plan(
        "sa-solver",
        schedule,
        times=times,
        order=config["predictor_order"],
        corrector_order=config["corrector_order"],
        tau=[config["tau"] if here else 0.0 for here in inside],
        pece=config["pc_mode"] == "PECE",
        space={"data_prediction": "data", "noise_prediction": "noise"}[config["algorithm_type"]],
        weights="taylor" if more else "published",
        correct_last=more and config["corrector_order"] > 0,
        denoise_to_zero=more,
        keep_marginals=False,
    )
    recipe = Recipe(of_plan(plan, _drawn(plan, case.arrays["noise"])), schedule)
    if more and config["corrector_order"] == 0:
        reason = "it calls the network at the end of the last step and makes nothing of it"
        return Recipe(recipe.run, schedule, calls_vary=reason)
    return recipe


def _drawn(plan: Plan, noise: Array) -> Sequence[Tensor] | None:
    """Of the recorded normals, one a step, those of the steps of ``plan`` that add noise."""
    steps = [row for before, row in pairwise(plan.rows) if row.node != before.node]
    used = [torch.from_numpy(z) for row, z in zip(steps, noise, strict=False) if row.noise]
    return used or None
