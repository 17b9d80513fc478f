"""Equality with the public implementations of DPM-Solver, DPM-Solver++ and UniPC.

The cases in ``data/`` are outputs of those implementations, run in float64 on a mixture of
Gaussians; see ``data/README.md``. A run must match in its result, in the number of calls of the
model and in the time of every call.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from places import DATA

from logsnr.benchmarks.problems.analytic import Mixture, Network, exact_denoiser
from logsnr.solvers import (
    Denoiser,
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    Plan,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
    reference_solution,
    sample,
)

FAMILIES = ("dpm_solver", "unipc", "edm_thuml")
SPACING = {
    "logSNR": "logsnr",
    "time_uniform": "time",
    "time_quadratic": "quadratic",
    "edm": "karras",
}
MIXTURE = Mixture.load(DATA / "model.json")


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as stored:
        return dict(stored)


PROBLEMS = arrays("problems")
SCHEDULES: dict[str, NoiseSchedule] = {
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": DiscreteVP(torch.from_numpy(PROBLEMS["vp_discrete/alphas_cumprod"])),
    "edm": VarianceExploding(),
    "flow": FlowMatching(),
}


def cases() -> list[Any]:
    found = []
    for family in FAMILIES:
        stored = arrays(family)
        for case in json.loads((DATA / f"{family}.json").read_text())["cases"]:
            expected = {name: stored[key] for name, key in case["arrays"].items()}
            found.append(pytest.param(family, case, expected, id=f"{case['id']}-{case['name']}"))
    return found


def plan_of(family: str, case: dict[str, Any]) -> Plan:
    """The plan that a case's configuration, in the words of its implementation, stands for."""
    config = case["config"]
    solver = {"dpmsolver": "dpm-solver", "dpmsolver++": "dpm-solver++"}.get(
        config["algorithm_type"], "unipc"
    )
    if solver == "unipc":
        options = {
            "variant": config["variant"],
            "space": "data" if config["predict_x0"] else "noise",
        }
    else:
        options = {"steps": config["method"], "solver_type": config["solver_type"]}
    # dpm-solver lowers the final orders only in short runs; its later copies always do.
    lower = config["lower_order_final"] and (family != "dpm_solver" or config["steps"] < 10)
    return make_plan(
        solver,
        SCHEDULES[case["schedule"]],
        nfe=config["steps"],
        spacing=SPACING[config["skip_type"]],
        t_start=config["t_start"],
        t_end=config["t_end"],
        denoise_to_zero=config.get("denoise_to_zero", False),
        order=config["order"],
        lower_order_final=lower,
        **options,
    )


@pytest.mark.parametrize(("family", "case", "expected"), cases())
def test_case_is_reproduced(family, case, expected):
    schedule = SCHEDULES[case["schedule"]]
    network = Network(MIXTURE, schedule, "epsilon")
    denoise = Denoiser(network, schedule, "epsilon", network_time=lambda t: t)
    plan = plan_of(family, case)
    result = sample(denoise, torch.from_numpy(PROBLEMS[case["x_T"]]), plan).numpy()

    assert plan.nfe == case["nfe"] == len(network.times)
    np.testing.assert_allclose(network.times, expected["t_eval"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plan.times, network.times, rtol=0, atol=0)
    error = np.linalg.norm(result - expected["final"]) / np.linalg.norm(expected["final"])
    assert error < 1e-9


@pytest.mark.parametrize(
    ("key", "t_end"),
    [
        ("vp_linear/t_end=0.001", 1e-3),
        ("vp_linear/t_end=0.0001", 1e-4),
        ("vp_linear/t_end=0", 0.0),
        ("vp_discrete/t_end=0.001", 1e-3),
        ("vp_cosine/t_end=0.001", 1e-3),
        ("edm/t_end=0.002", 0.002),
        ("edm/t_end=0", 0.0),
        ("flow/t_end=0", 0.0),
    ],
)
def test_reference_solution_agrees_with_an_independent_integration(key, t_end):
    """The stored endpoints come from DOP853 at rtol = atol = 1e-12 in the original time."""
    name = key.split("/")[0]
    schedule = SCHEDULES[name]
    denoise = exact_denoiser(MIXTURE, schedule, "flow_prediction")
    x = torch.from_numpy(PROBLEMS[f"x_T/{name}"])
    solution, bar = reference_solution(denoise, x, schedule, t_end=t_end)
    error = np.sqrt(np.mean((solution.numpy() - PROBLEMS[f"exact/{key}"]) ** 2))
    assert error < bar < 1e-6
