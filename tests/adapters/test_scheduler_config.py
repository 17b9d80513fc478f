"""PlanScheduler's config: to and from diffusers' schedulers, saved and loaded."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import diffusers
import diffusers.utils.hub_utils
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from scheduler_cases import (
    EDM,
    FAMILIES,
    LATENT,
    VIDEO,
    load_and_run,
    network,
    run_with,
    scheduler_for,
    start,
)

import logsnr.adapters.scheduler
from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.foreign import SAMPLING_KEYS
from logsnr.adapters.config.known_keys import MODEL_KEYS, defaults
from logsnr.adapters.config.solver_choice import solver_choice
from logsnr.adapters.config.stock_classes import REPLACED, class_of, init_keys
from logsnr.solvers import SOLVERS

# --- there and back

OTHER_VALUES = {
    "num_train_timesteps": 500,
    "beta_start": 2e-4,
    "beta_end": 0.015,
    "trained_betas": [1e-4, 2e-4, 5e-4],
    "clip_sample": True,
    "clip_sample_range": 2.0,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "variance_type": "fixed_large",
    "skip_prk_steps": True,
    "solver_order": 3,
    "predictor_order": 3,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.9,
    "sample_max_value": 1.5,
    "lower_order_final": False,
    "euler_at_final": True,
    "disable_corrector": [0, 2],
    "lambda_min_clipped": -5.1,
    "timestep_spacing": "trailing",
    "use_karras_sigmas": True,
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 2.0,
    "interpolation_type": "log_linear",
    "sigma_data": 0.7,
    "sigma_min": 0.01,
    "sigma_max": 60.0,
    "sigma_schedule": "exponential",
    "rho": 5.0,
    "shift": 2.5,
    "base_shift": 0.7,
    "shift_terminal": None,
    "invert_sigmas": True,
    "noise_sampler_seed": 3,
}


def stock_schedulers() -> list:
    """Every class that can be replaced, with its defaults and with other values of its keys."""
    cases = []
    for name in REPLACED:
        known = init_keys(name)
        other = {key: value for key, value in OTHER_VALUES.items() if key in known}
        if name == "UnCLIPScheduler":
            other |= {"prediction_type": "sample", "variance_type": "learned_range"}
        kind = getattr(diffusers, name)
        cases.append(pytest.param(kind, other, id=f"{name}-other"))
        if "KDPM2" not in name:  # these take seconds to build with their defaults
            cases.append(pytest.param(kind, {}, id=name))
    return cases


def public(scheduler) -> dict:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize(("kind", "options"), stock_schedulers())
def test_every_replaced_scheduler_comes_back_with_every_key(kind, options, tmp_path):
    stock = kind(**options)
    stock.save_pretrained(tmp_path / "stock")
    for config in (stock.config, kind.load_config(tmp_path / "stock")):
        ours = PlanScheduler.from_config(config, solver="ddim")
        assert ours.config.stock_class == kind.__name__
        ours.save_pretrained(tmp_path / "ours")
        loaded = PlanScheduler.from_pretrained(tmp_path / "ours")
        for scheduler in (ours, loaded):
            back = scheduler.to_stock()
            assert type(back) is kind
            assert {key: back.config[key] for key in public(stock)} == public(stock)
        # and what describes the model, as everywhere in diffusers, by the class's own from_config
        back = kind.from_config(loaded.config)
        said = set(options) & init_keys(kind.__name__) - set(SAMPLING_KEYS)
        assert all(back.config[key] == stock.config[key] for key in said)


def test_a_class_without_a_name_is_told_by_its_keys():
    small = {"num_train_timesteps": 20}
    schedulers = {name: getattr(diffusers, name)(**small) for name in REPLACED}
    named = {name for name, stock in schedulers.items() if class_of(stock.config) == name}
    same_keys = {
        "KDPM2DiscreteScheduler",  # as LMSDiscreteScheduler
        "KDPM2AncestralDiscreteScheduler",
        "CogVideoXDPMScheduler",
        "DDIMParallelScheduler",
        "DDPMParallelScheduler",
    }
    assert set(REPLACED) - named <= same_keys
    assert class_of({"beta_schedule": "linear"}) is None


def test_changes_go_along_and_our_own_keys_do_not():
    stock = diffusers.DPMSolverMultistepScheduler(**LATENT, solver_order=3)
    ours = PlanScheduler.from_config(
        stock.config, solver="unipc", timestep_spacing="karras", beta_end=0.013
    )
    back = ours.to_stock()
    assert back.config.use_karras_sigmas and back.config.beta_end == 0.013
    assert back.config.solver_order == 3 and back.config.timestep_spacing == "linspace"
    assert not {"solver", "stock_class", "exact_sigmas"} & set(back.config)


def test_keys_of_third_schedulers_are_kept_on_the_way():
    config = {
        "_class_name": "DDIMScheduler",
        **LATENT,
        "skip_prk_steps": True,
        "use_lu_lambdas": True,
    }
    ours = PlanScheduler.from_config(config, solver="unipc")
    assert ours.config.skip_prk_steps
    back = ours.to_stock()
    assert type(back) is diffusers.DDIMScheduler and back.config.skip_prk_steps
    assert PlanScheduler.from_config(back.config).config.replaced["use_lu_lambdas"]


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("config", [LATENT, {"shift": 3.0}, EDM, VIDEO], ids=str)
def test_a_scheduler_without_origin_becomes_the_nearest_of_diffusers(solver, config):
    back = PlanScheduler(**config, solver=solver).to_stock()
    assert type(back).__name__ in REPLACED
    assert {key: back.config[key] for key in config} == config


def test_the_saved_config_is_what_was_said(tmp_path):
    stock = diffusers.DDIMScheduler(**LATENT, set_alpha_to_one=False)
    ours = PlanScheduler.from_config(stock.config, solver={"name": "unipc", "variant": "bh1"})
    ours.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    saved = json.loads(text)
    assert saved["solver"] == {"name": "unipc", "variant": "bh1"}
    assert saved["stock_class"] == "DDIMScheduler" and saved["_class_name"] == "PlanScheduler"
    assert saved["replaced"] == {"set_alpha_to_one": False} and saved["beta_end"] == 0.012
    own = defaults(PlanScheduler)
    unsaid = set(saved) & set(own) - set(MODEL_KEYS) - {"solver", "stock_class", "exact_sigmas"}
    assert unsaid == {"replaced"} and len(text.splitlines()) < 30
    assert PlanScheduler.from_pretrained(tmp_path).config.solver == saved["solver"]


def test_what_is_pushed_to_the_hub_is_one_file(monkeypatch, tmp_path):
    pushed = {}

    class Repository:
        repo_id = "someone/scheduler"

    class Card:
        def save(self, path):
            pass

    def upload(self, folder, repo_id, **_):
        files = type(tmp_path)(folder).iterdir()
        pushed[repo_id] = {path.name: path.read_text() for path in files}

    hub = diffusers.utils.hub_utils
    monkeypatch.setattr(hub, "create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr(hub, "load_or_create_model_card", lambda *_, **__: Card())
    monkeypatch.setattr(hub, "populate_model_card", lambda card, *_: card)
    monkeypatch.setattr(PlanScheduler, "_upload_folder", upload)
    scheduler_for("unipc").push_to_hub("someone/scheduler")
    (files,) = pushed.values()
    assert set(files) == {"scheduler_config.json"}
    assert json.loads(files["scheduler_config.json"])["solver"] == "unipc"


# --- other processes


@pytest.fixture(scope="module")
def fresh_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("family", ["sd", "flow_dynamic", "edm"])
def test_a_fresh_process_gives_the_same_result(family, fresh_process, tmp_path):
    config, given = FAMILIES[family]
    ours = PlanScheduler(**config, solver={"name": "unipc", "order": 3})
    ours.save_pretrained(tmp_path)
    expected = run_with(ours, given)
    assert fresh_process.submit(load_and_run, str(tmp_path), given).result() == expected
    # sent to it by multiprocessing, in the middle of a run
    ours.set_timesteps(6, **given)
    t = ours.timesteps[0]
    ours.step(network(start(), t), t, start())
    assert fresh_process.submit(run_with, ours, given).result() == expected
    assert run_with(ours, given) == expected


# --- configs


def test_the_module_path_that_saved_pipelines_name():
    assert PlanScheduler.__module__ == "logsnr.adapters.scheduler"
    assert logsnr.adapters.scheduler.PlanScheduler is PlanScheduler
    assert all(hasattr(diffusers, name) for name in PlanScheduler._compatibles)


def test_the_config_is_read_when_timesteps_are_set():
    # Stable Diffusion's constructors replace the config after the scheduler was built.
    scheduler = scheduler_for("ddim", timestep_spacing="leading")
    scheduler._internal_dict = FrozenDict({**scheduler.config, "steps_offset": 1})
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 1


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_stock_option_values_map_to_every_solver(name):
    for solver_type in ("midpoint", "heun", "logrho", "bh1", "bh2", None):
        scheduler = scheduler_for(name, solver_type=solver_type, predict_x0=True)
        options = solver_choice(scheduler.config).options(20, 20, 0.0)
        assert set(options) <= set(SOLVERS[name].defaults)


def test_defaults_that_describe_the_model_are_taken_over():
    stock = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True)
    ours = PlanScheduler.from_config(
        stock.config, keep_sampling=True, solver="ddim", timestep_spacing="trailing"
    )
    expected = stock.alphas_cumprod.double()
    torch.testing.assert_close(ours.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-9)
