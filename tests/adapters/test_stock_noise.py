"""diffusers' stochastic schedulers: followed, given back, and equal where they are right."""

from __future__ import annotations

import json
from typing import Any

import diffusers
import pytest
import torch
from scheduler_cases import LATENT, assert_close, drive, network, start
from torch import Tensor

from logsnr.adapters import PlanScheduler

PLAIN = {**LATENT, "clip_sample": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}
GRIDS = [
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "2M SDE": (diffusers.DPMSolverMultistepScheduler, SDE),
    "2M SDE heun": (diffusers.DPMSolverMultistepScheduler, {**SDE, "solver_type": "heun"}),
    "2M SDE karras": (diffusers.DPMSolverMultistepScheduler, {**SDE, "use_karras_sigmas": True}),
    "SDE, noise": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "SA": (diffusers.SASolverScheduler, {}),
    "SA 3, 4": (diffusers.SASolverScheduler, {"predictor_order": 3, "corrector_order": 4}),
    "SA, noise": (diffusers.SASolverScheduler, {"algorithm_type": "noise_prediction"}),
    "SA, a function": (
        diffusers.SASolverScheduler,
        {"tau_func": lambda t: 0.5 if 250 < t <= 700 else 0},
    ),
}


def named(stock: Any) -> dict[str, Any]:
    """The config as a file would have it, with the name of its class."""
    return {**stock.config, "_class_name": type(stock).__name__}


def drawn_anew(scheduler: Any, x: Tensor) -> Tensor:
    """A run with a generator of its own for each step: stock draws also where it adds nothing."""
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(x, t)
        generator = torch.Generator().manual_seed(40 + i)
        x = scheduler.step(network(shown, t), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid["timestep_spacing"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_noise_gives_what_stock_gives(case, grid):
    kind, options = CASES[case]
    stock = kind(**{**LATENT, **grid, **options})
    ours = PlanScheduler.from_config(named(stock), keep_sampling=True)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
    assert ours.plan.stochastic
    torch.testing.assert_close(ours.timesteps.float(), stock.timesteps.float(), rtol=0, atol=0)
    x = start()
    scaled = x * (1 + stock.sigmas[0].float() ** 2).sqrt() if case == "euler a" else x
    # float32 tables; karras is told fractions, order 4 solves systems in them
    tolerance = {"2M SDE karras": 1e-3, "SA 3, 4": 2e-5}.get(case, 3e-6)
    assert_close(drawn_anew(ours, x), drawn_anew(stock, scaled), tolerance)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_with_fresh_noise_at_every_step(shift):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True)
    assert ours.config.solver == {"name": "cps", "eta": 1.0}
    for scheduler in (stock, ours):
        scheduler.set_timesteps(6)
    torch.manual_seed(3)
    expected = drive(stock, start())
    torch.manual_seed(3)
    assert_close(drive(ours, start()), expected, 2e-6)


SOLVERS_OF = {
    ("KDPM2AncestralDiscreteScheduler", ()): "dpm2-ancestral",
    ("DPMSolverSDEScheduler", ()): "sde-dpm-solver++",
    ("DPMSolverSinglestepScheduler", (("algorithm_type", "sde-dpmsolver++"),)): "sde-dpm-solver++",
    ("DDPMScheduler", (("variance_type", "fixed_large"),)): "ddpm",
    ("CosineDPMSolverMultistepScheduler", ()): "sde-dpm-solver++",
    ("EDMDPMSolverMultistepScheduler", (("algorithm_type", "sde-dpmsolver++"),)): (
        "sde-dpm-solver++"
    ),
}


@pytest.mark.parametrize(("stock", "solver"), SOLVERS_OF.items(), ids=str)
def test_classes_and_keys_that_mean_noise(stock, solver):
    name, options = stock
    made = getattr(diffusers, name)(**dict(options))
    ours = PlanScheduler.from_config(named(made), keep_sampling=True)
    for nfe in (1, 8):
        ours.set_timesteps(nfe)
        assert ours.plan.solver == solver and ours.plan.nfe == nfe
    assert ours.plan.stochastic
    assert PlanScheduler.from_config(named(made)).config.solver is None  # none without it
    chosen = PlanScheduler.from_config(named(made), keep_sampling=True, solver="unipc")
    assert chosen.config.solver == "unipc"
    assert drive(ours, start()).isfinite().all()


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (None, [200, 800]),
        (lambda t: 1 if 200 <= t <= 800 else 0, [200, 800]),
        (lambda t: 0.3 if 100 < t < 900 else 0, [101, 899]),
        (lambda t: 0.7, [0, 999]),
        (lambda t: 0, None),
    ],
)
def test_a_tau_func_is_an_interval(function, wanted):
    """Every timestep that begins a step with tau > 0 is found, and no other."""
    stock = diffusers.SASolverScheduler(**LATENT, tau_func=function, predictor_order=1)
    ours = PlanScheduler.from_config(named(stock), keep_sampling=True)
    json.loads(ours.to_json_string())
    steps = [999, 901, 900, 899, 801, 800, 799, 201, 200, 199, 101, 100, 99, 1]
    ours.set_timesteps(timesteps=steps)
    starts = [row.node.t for row in ours.plan.rows if row.evaluated]
    by_end = {row.node.t: bool(row.noise) for row in ours.plan.rows[1:]}
    for t, following in zip(starts, starts[1:], strict=False):
        inside = wanted is not None and wanted[0] <= round(1000 * t) - 1 <= wanted[1]
        assert by_end[following] == inside, t


def test_a_tau_func_of_another_form_is_refused_with_what_to_write():
    stock = diffusers.SASolverScheduler(tau_func=lambda t: t / 1000)
    with pytest.raises(ValueError, match="tau_func=.*a list of one a step"):
        PlanScheduler.from_config(named(stock), keep_sampling=True)
    ours = PlanScheduler.from_config(named(stock))  # not followed, and a config holds no function
    assert "tau_func" not in (ours.config.replaced or {})
    json.loads(ours.to_json_string())


@pytest.mark.parametrize(
    ("solver", "kind", "says"),
    [
        ("euler-ancestral", "EulerAncestralDiscreteScheduler", {}),
        ("dpm2-ancestral", "KDPM2AncestralDiscreteScheduler", {}),
        ("ddpm", "DDPMScheduler", {}),
        ({"name": "ddpm", "variance": "large"}, "DDPMScheduler", {"variance_type": "fixed_large"}),
        ("sde-dpm-solver++", "DPMSolverMultistepScheduler", SDE),
        (
            {"name": "sde-dpm-solver++", "prediction": "noise"},
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver"},
        ),
        (
            {"name": "sa-solver", "order": 3, "corrector_order": 4},
            "SASolverScheduler",
            {"predictor_order": 3, "corrector_order": 4, "algorithm_type": "data_prediction"},
        ),
    ],
)
def test_to_stock_says_the_noise_in_the_words_of_its_class(solver, kind, says):
    stock = PlanScheduler(**LATENT, solver=solver, final_sigmas_type="sigma_min").to_stock()
    assert type(stock).__name__ == kind
    assert {key: stock.config[key] for key in says} == says
    of_class = PlanScheduler.from_config(
        diffusers.DPMSolverMultistepScheduler(**LATENT).config, solver="sde-dpm-solver++"
    )
    assert of_class.to_stock().config.algorithm_type == "sde-dpmsolver++"


NOISY = [
    "ddpm",
    "euler-ancestral",
    "dpm2-ancestral",
    "sde-dpm-solver++",
    "dpmpp_sde",
    "er-sde",
    "er-sde-2",
    "sa-solver",
    {"name": "sa-solver", "interval": [0, 1], "pece": True},
    {"name": "ddim", "eta": 1.0},
    {"name": "cps", "eta": 0.5},
    "seeds",
]


@pytest.mark.parametrize("nfe", [4, 9])
@pytest.mark.parametrize("solver", NOISY, ids=str)
def test_flow_models_keep_their_marginals(solver, nfe):
    """A network that knows the data, one point: every state it is shown has deviation t."""
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    scheduler = PlanScheduler.from_config(config, solver=solver)
    scheduler.set_timesteps(nfe)
    assert scheduler.plan.stochastic
    point = torch.full((1, 40000), 0.3, dtype=torch.float64)
    x = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for i, t in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[i])
        noise = x - (1 - level) * point
        assert float(noise.std()) == pytest.approx(level, rel=0.015)
        x = scheduler.step(noise / level - point, t, x, generator=generator).prev_sample
    assert (x - point).abs().max() < 1e-6


def test_options_beside_the_name_are_saved_and_functions_refused(tmp_path):
    tau = [0.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    solver = {"name": "sa-solver", "tau": tau, "order": 2}
    scheduler = PlanScheduler(**LATENT, solver=solver)
    scheduler.save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path)
    assert again.config.solver == solver
    for one in (scheduler, again):
        one.set_timesteps(6)
    assert again.plan.options["tau"] == tau and again.plan.rows == scheduler.plan.rows
    with pytest.raises(ValueError, match="tau has 6 entries: need 7"):
        again.set_timesteps(7)
    for bad, words in (
        ({"name": "sa-solver", "tau": lambda t: 1.0}, "tau=.* in solver: .*JSON"),
        ({"name": "er-sde", "noise_function": lambda rho: rho}, "noise_function=.*JSON"),
        ({"name": "sa-solver", "tau": []}, "tau"),
        ({"name": "sa-solver", "tau": ["much"]}, "tau"),
        ({"name": "euler-ancestral", "eta": 2.0}, "eta"),
        ({"name": "euler-ancestral", "s_noise": -1.0}, "s_noise"),
    ):
        with pytest.raises(ValueError, match=words):
            PlanScheduler(**LATENT, solver=bad)


def test_a_list_of_strengths_goes_with_its_steps_in_image_to_image():
    tau = [0.0, 1.0, 0.0, 0.5, 0.0, 0.0]
    scheduler = PlanScheduler(
        **LATENT, solver={"name": "sa-solver", "tau": tau, "order": 1, "corrector_order": 0}
    )
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    x = start()
    scheduler.step(network(x, 500), scheduler.timesteps[2], x)
    assert [bool(row.noise) for row in scheduler.plan.rows[1:]] == [False, True, False, False]
