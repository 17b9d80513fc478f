"""thu-ml/DPM-Solver-v3, `DPM_Solver_v3.sample` of its main file and of its EDM code base.

The statistics l, s, b of a case are tables of the folder, under the key that its configuration
names; a degenerate run has none, only the number of intervals of their grid.
"""

from __future__ import annotations

import torch

from logsnr.solvers import EMS, NoiseSchedule, make_plan

from .cases import SPACINGS, Case, Recipe, family, of_plan, schedule_of


@family("dpm_solver_v3")
def dpm_solver_v3(case: Case) -> Recipe:
    """DPM-Solver-v3 on the published grid of its statistics."""
    config, schedule = case.config, schedule_of(case)
    plan = make_plan(
        "dpm-solver-v3",
        schedule,
        nfe=config["steps"],
        spacing=SPACINGS[config["skip_type"]],
        t_start=config["t_start"],
        t_end=config["t_end"],
        ems=_statistics(case, schedule),
        order=config["order"],
        p_pseudo=config["p_pseudo"],
        corrector=config["use_corrector"],
        c_pseudo=config["c_pseudo"],
        corrector_above=0.5 if config["half"] else 0.0,
        lower_order_final=config["lower_order_final"],
        treatment="published",
    )
    return Recipe(of_plan(plan), schedule)


def _statistics(case: Case, schedule: NoiseSchedule) -> EMS:
    config = case.config
    ends = {"t_start": config["t_start"], "t_end": config["t_end"]}
    if config["degenerated"]:
        return EMS.degenerate(schedule, **ends, intervals=config["statistics_steps"])
    lam, l, s, b = (
        torch.from_numpy(case.tables[f"{config['ems']}/{name}"])
        for name in ("lambda_grid", "l", "s", "b")
    )
    return EMS(lam, l, s, b, about={"schedule": repr(schedule), **ends})
