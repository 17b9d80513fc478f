"""What is written on a scheduler is heard: every key of its config, wherever it is written."""

from __future__ import annotations

import copy
import pickle

import diffusers
import pytest
import torch
from scheduler_cases import AUDIO, EDM, LATENT, SHAPE, VIDEO, scheduler_for, start
from torch import Tensor

from logsnr.adapters import PlanScheduler, noise_schedule
from logsnr.adapters.config.known_keys import defaults
from logsnr.solvers import EMS

FLOW = {"shift": 3.0}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
V = {**LATENT, "prediction_type": "v_prediction"}
# key: the config without it, and a value that changes what the scheduler does.
KEYS: dict[str, tuple[dict, object]] = {
    "num_train_timesteps": (LATENT, 500),
    "beta_start": (LATENT, 0.001),
    "beta_end": (LATENT, 0.02),
    "beta_schedule": (LATENT, "linear"),
    "trained_betas": (LATENT, [0.001 + 0.00002 * i for i in range(1000)]),
    "rescale_betas_zero_snr": (V, True),
    "snr_shift_scale": (LATENT, 3.0),
    "timestep_type": ({k: v for k, v in VIDEO.items() if k != "timestep_type"}, "continuous"),
    "sigma_data": ({**LATENT, "sigma_min": 0.002, "sigma_max": 80.0}, 0.5),
    "sigma_schedule": (EDM, "exponential"),
    "rho": ({**EDM, "sigma_schedule": "karras"}, 5.0),
    "prediction_type": (LATENT, "v_prediction"),
    "variance_type": (LATENT, "learned"),
    "solver": (LATENT, "dpm-solver++"),
    "solver_order": (LATENT, 3),
    "solver_type": (LATENT, "bh1"),
    "predict_x0": (LATENT, False),
    "lower_order_final": ({**LATENT, "final_sigmas_type": "sigma_min", "solver_order": 3}, False),
    "euler_at_final": (
        {**LATENT, "final_sigmas_type": "sigma_min", "solver": "dpm-solver++"}
        | {"lower_order_final": False},
        True,
    ),
    "disable_corrector": (LATENT, [0, 2]),
    "lambda_min_clipped": (LATENT, -1.0),
    "timestep_spacing": (LATENT, "trailing"),
    "steps_offset": ({**LATENT, "timestep_spacing": "leading"}, 1),
    "final_sigmas_type": (LATENT, "sigma_min"),
    "set_alpha_to_one": ({**LATENT, "solver": "ddim"}, False),
    "use_karras_sigmas": (LATENT, True),
    "use_exponential_sigmas": (LATENT, True),
    "use_beta_sigmas": (LATENT, True),
    "use_lu_lambdas": (LATENT, True),
    "location": (LATENT, 0.6),
    "scale": (LATENT, 1.0),
    "sample_size": (LATENT, 8),
    "sigma_min": ({**LATENT, "use_karras_sigmas": True}, 0.1),
    "sigma_max": ({**LATENT, "use_karras_sigmas": True}, 10.0),
    "thresholding": (LATENT, True),
    "dynamic_thresholding_ratio": (
        {**LATENT, "thresholding": True, "sample_max_value": 50.0},
        0.5,
    ),
    "sample_max_value": ({**LATENT, "thresholding": True}, 2.0),
    "clip_sample": ({**LATENT, "solver": "ddim"}, True),
    "clip_sample_range": ({**LATENT, "solver": "ddim", "clip_sample": True}, 0.5),
    "use_flow_sigmas": ({"prediction_type": "flow_prediction"}, True),
    "flow_shift": ({"use_flow_sigmas": True}, 6.9),
    "shift": ({"shift": 1.0}, 6.9),
    "shift_terminal": (FLOW, 0.1),
    "use_dynamic_shifting": (FLOW, True),
    "time_shift_type": (DYNAMIC, "linear"),
    "invert_sigmas": (FLOW, True),
    "exact_sigmas": (FLOW, True),
    "ems": ({**LATENT, "solver": "dpm-solver-v3"}, None),  # see below
    "plan": (LATENT, None),  # see test_scheduler_plan.py
    "plan_fallback": (LATENT, None),  # see test_scheduler_cards.py
    "noise_seed": ({**LATENT, "solver": "sde-dpm-solver++", "noise_seed": 3}, 4),
    "stock_class": ({k: v for k, v in AUDIO.items() if k != "stock_class"}, AUDIO["stock_class"]),
}
# Pipelines read these to work out mu, and to_stock what was replaced; the scheduler does not.
UNREAD = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "replaced"}
WAYS = {
    "attribute": lambda scheduler, key, value: setattr(scheduler.config, key, value),
    "item": lambda scheduler, key, value: scheduler.config.__setitem__(key, value),
    "of the scheduler": setattr,
    "register": lambda scheduler, key, value: scheduler.register_to_config(**{key: value}),
}


def outcome(scheduler: PlanScheduler) -> list[Tensor]:
    given = {"mu": 0.8} if scheduler.config.use_dynamic_shifting else {}
    if scheduler.config.shift is not None and not given:
        given = {"sigmas": [1.0, 0.7, 0.4, 0.2, 0.1]}
    scheduler.set_timesteps(5, **given)
    x, wide = start(), scheduler.config.variance_type == "learned"
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = torch.tanh(3 * x + 0.01 * t)
            if wide:
                output = torch.cat([output, output], dim=1)
            x = scheduler.step(output, t, x).prev_sample
    return [scheduler.timesteps.double(), scheduler.sigmas.double(), x]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_key_has_a_case():
    assert set(KEYS) | UNREAD == set(defaults(PlanScheduler))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", [key for key in KEYS if KEYS[key][1] is not None])
def test_a_key_that_is_set_later_is_a_key_that_was_given(key, way):
    config, value = KEYS[key]
    scheduler = PlanScheduler(**config)
    try:
        outcome(scheduler)  # nothing is kept from the run before
    except ValueError:
        assert key in ("sigma_data", "stock_class")
    WAYS[way](scheduler, key, value)
    assert scheduler.config[key] == getattr(scheduler.config, key) == value
    if key == "variance_type":  # outputs of twice the channels are taken
        outcome(scheduler)
        return
    given = outcome(PlanScheduler(**{**config, key: value}))
    assert same(outcome(scheduler), given)
    if key != "stock_class":
        assert not same(outcome(PlanScheduler(**config)), given)


@pytest.mark.parametrize("way", WAYS)
def test_statistics_that_are_set_later_are_statistics_that_were_given(way):
    config, _ = KEYS["ems"]
    lam = torch.linspace(-6, 6, 9, dtype=torch.float64)
    zeros = torch.zeros(9, *SHAPE[1:], dtype=torch.float64)
    schedule = repr(PlanScheduler(**config)._description.model.schedule)
    ems = EMS(lam, zeros, zeros + 0.1, zeros + 0.2, about={"schedule": schedule})
    scheduler = PlanScheduler(**config)
    plain = outcome(scheduler)
    WAYS[way](scheduler, "ems", ems)
    assert same(outcome(scheduler), outcome(PlanScheduler(**config, ems=ems)))
    assert not same(outcome(scheduler), plain)
    assert "ems.sft" in scheduler.to_json_string()


COPIES = {
    "same": lambda scheduler: scheduler,
    "deepcopy": copy.deepcopy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
    "from_config": lambda scheduler: PlanScheduler.from_config(scheduler.config),
    "stock and back": lambda scheduler: PlanScheduler.from_config(scheduler.to_stock().config),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", COPIES)
def test_a_key_that_was_set_goes_where_the_config_goes(way, after):
    scheduler = PlanScheduler(use_flow_sigmas=True)
    WAYS[way](scheduler, "flow_shift", 6.9)
    other = COPIES[after](scheduler)
    assert other.config.flow_shift == other.config["flow_shift"] == 6.9
    other.config.flow_shift = 2.0
    assert other.config["flow_shift"] == 2.0


def test_a_config_that_pipelines_replace_is_one_store_again():
    scheduler = scheduler_for("unipc")
    scheduler._internal_dict = diffusers.configuration_utils.FrozenDict(dict(scheduler.config))
    scheduler.config.use_karras_sigmas = True
    assert same(outcome(scheduler), outcome(scheduler_for("unipc", use_karras_sigmas=True)))


def test_a_key_that_is_not_read_cannot_be_set():
    scheduler = scheduler_for("unipc")
    for write in (WAYS["attribute"], WAYS["item"]):
        with pytest.raises(ValueError, match="flow_shft=6.9.*flow_shift"):
            write(scheduler, "flow_shft", 6.9)


@pytest.mark.parametrize("way", ["attribute", "item"])
def test_what_was_set_on_a_stock_config_is_taken_over(way):
    stock = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, solver_order=3)
    WAYS[way](stock, "flow_shift", 6.9)
    assert PlanScheduler.from_config(stock.config).config.flow_shift == 6.9
    # Of two values that were both given, none tells which came later.
    WAYS[way](stock, "solver_order", 2)
    with pytest.raises(ValueError, match="solver_order=. as attribute and . as item"):
        PlanScheduler.from_config(stock.config)
    assert (
        PlanScheduler.from_config(
            stock.config, keep_sampling=True, solver_order=1
        ).config.solver_order
        == 1
    )


@pytest.mark.parametrize("way", ["attribute", "item"])
def test_the_noise_schedule_of_a_stock_config_hears_it_too(way):
    stock = diffusers.DDIMScheduler()
    WAYS[way](stock, "beta_end", 0.012)
    given = diffusers.DDIMScheduler(beta_end=0.012)
    assert noise_schedule(stock.config) is noise_schedule(given.config)


@pytest.mark.parametrize(
    "key, value, write",
    [
        ("disable_corrector", [0], lambda v: v.append(2)),
        ("trained_betas", [0.001] * 1000, lambda v: v.__setitem__(3, 0.5)),
        ("solver", {"name": "unipc"}, lambda v: v.update(corrector=False)),
        ("solver", {"name": "ddim"}, lambda v: v.update(name="dpm-solver++")),
    ],
)
def test_a_value_that_is_changed_inside_counts_from_the_next_set_timesteps(key, value, write):
    scheduler, before = PlanScheduler(**{key: copy.deepcopy(value)}), copy.deepcopy(value)
    plain = outcome(scheduler)
    write(scheduler.config[key])
    write(before)
    assert same(outcome(scheduler), outcome(PlanScheduler(**{key: before})))
    assert not same(outcome(scheduler), plain)
