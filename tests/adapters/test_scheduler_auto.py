"""The pasted line: the grid and the solver are ours, what the config says of the model is heard."""

from __future__ import annotations

import itertools
import logging

import diffusers
import numpy as np
import pytest
import torch
from scheduler_cases import EDM, LATENT, drive, start
from scipy.stats import logistic

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.foreign import SAMPLING_KEYS, say
from logsnr.solvers import SPACINGS

FLOW = {"shift": 3.0}
HABITS = {
    "DDIMScheduler": {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading", "use_karras_sigmas": True},
    "DPMSolverMultistepScheduler": {
        "solver_order": 3,
        "solver_type": "heun",
        "use_lu_lambdas": True,
        "final_sigmas_type": "sigma_min",
        "euler_at_final": True,
        "lambda_min_clipped": -5.1,
    },
    "UniPCMultistepScheduler": {
        "solver_type": "bh1",
        "predict_x0": False,
        "disable_corrector": [0],
        "use_exponential_sigmas": True,
    },
    "EDMDPMSolverMultistepScheduler": {"sigma_schedule": "exponential", "rho": 5.0},
    "FlowMatchEulerDiscreteScheduler": {"use_beta_sigmas": True},
}


def stock_of(name, **options):
    model = {} if name.startswith(("EDM", "Flow")) else LATENT
    return getattr(diffusers, name)(**model, **options)


def laid_out(scheduler, n=8, **given):
    scheduler.set_timesteps(n, **given)
    return scheduler.timesteps.tolist()


# --- whose grid


@pytest.mark.parametrize("name", HABITS)
def test_habits_of_another_scheduler_do_not_bind(name):
    """The pasted line gives one and the same run, whatever the config said of sampling."""
    plain = PlanScheduler.from_config(stock_of(name).config)
    habits = PlanScheduler.from_config(stock_of(name, **HABITS[name]).config)
    assert laid_out(plain) == laid_out(habits)
    assert torch.equal(drive(plain, start()), drive(habits, start()))
    assert plain.config.timestep_spacing == habits.config.timestep_spacing == "auto"


@pytest.mark.parametrize("name", HABITS)
def test_a_file_that_lists_every_key_does_not_bind_either(name, tmp_path):
    stock = stock_of(name, **HABITS[name])
    stock.save_pretrained(tmp_path)
    loaded = PlanScheduler.from_pretrained(tmp_path)
    assert laid_out(loaded) == laid_out(PlanScheduler.from_config(stock.config))


@pytest.mark.parametrize("name", HABITS)
def test_what_is_replaced_comes_back(name, tmp_path):
    stock = stock_of(name, **HABITS[name])
    ours = PlanScheduler.from_config(stock.config)
    ours.save_pretrained(tmp_path)
    for scheduler in (ours, PlanScheduler.from_pretrained(tmp_path)):
        back = scheduler.to_stock()
        assert type(back) is type(stock)
        assert all(back.config[key] == value for key, value in HABITS[name].items())


@pytest.mark.parametrize("name", HABITS)
def test_what_is_replaced_is_named_in_the_log_once(name, caplog):
    stock = stock_of(name, **HABITS[name])
    say.cache_clear()
    with caplog.at_level(logging.WARNING, "logsnr.adapters"):
        for _ in range(3):
            PlanScheduler.from_config(stock.config)
    (line,) = [record.getMessage() for record in caplog.records]
    for key, value in HABITS[name].items():
        assert (f"{key}={value!r}" in line) is bool(value)
    assert name in line and "keep_sampling" in line


def test_nothing_is_logged_where_nothing_is_replaced(caplog):
    say.cache_clear()
    PlanScheduler.from_config(diffusers.DDIMScheduler(**LATENT).config)
    ours = PlanScheduler(**LATENT, timestep_spacing="trailing")
    PlanScheduler.from_config(ours.config)
    assert not caplog.records


# --- what a user says


@pytest.mark.parametrize("name", HABITS)
def test_a_keyword_is_followed(name):
    """Each habit, given as a keyword, is in force."""
    stock = stock_of(name)
    for key, value in HABITS[name].items():
        ours = PlanScheduler.from_config(stock.config, **{key: value})
        assert ours.config[key] == value and key in SAMPLING_KEYS
        assert key not in (ours.config.replaced or {})


def test_keep_sampling_takes_the_whole_config():
    stock = diffusers.EulerDiscreteScheduler(**LATENT, use_karras_sigmas=True)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="euler")
    stock.set_timesteps(9)
    ours.set_timesteps(9)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-3, atol=0)


GRIDS = [
    ("timestep_spacing", "trailing"),
    ("timestep_spacing", "logsnr"),
    ("use_karras_sigmas", True),
    ("use_beta_sigmas", True),
    ("timestep_spacing", "auto"),
]


@pytest.mark.parametrize("first, second", list(itertools.permutations(GRIDS, 2)))
def test_of_two_grids_the_one_said_last_counts(first, second):
    """A keyword wins over the config of one of ours, flag or name."""
    config = PlanScheduler(**LATENT, **dict([first])).config
    ours = PlanScheduler.from_config(config, **dict([second]))
    assert laid_out(ours) == laid_out(PlanScheduler(**LATENT, **dict([second])))


def test_our_own_config_binds():
    ours = PlanScheduler(**LATENT, timestep_spacing="trailing", solver="deis", solver_order=2)
    again = PlanScheduler.from_config(ours.config)
    assert laid_out(again) == laid_out(ours)
    assert repr(again) == repr(ours)


# --- the grid


def shares(lams, location, scale):
    return logistic(location, scale).cdf(np.asarray(lams))


@pytest.mark.parametrize("location, scale", [(-0.3, 1.3), (0.8, 1.0)])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "config",
    [LATENT, {"beta_schedule": "squaredcos_cap_v2"}, {"shift": 1.0}, EDM],
    ids=["vp", "cosine", "flow", "edm"],
)
def test_evaluations_are_at_equal_shares_on_the_way_to_the_data(config, n, location, scale):
    scheduler = PlanScheduler(**config, solver="ddim", location=location, scale=scale)
    scheduler.set_timesteps(n)
    nodes = scheduler._nodes
    found = shares([node.lam for node in nodes], location, scale)
    expected = found[0] + (1 - found[0]) * np.arange(n) / n
    # whole training steps are up to half a step from where they should be
    tolerance = 1e-9 if "shift" in config or config is EDM else 0.02
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert scheduler.sigmas[-1] == 0


def test_networks_of_training_steps_are_told_the_step_of_their_node():
    scheduler = PlanScheduler(**LATENT)
    for n in (3, 10, 50, 300, 1000):
        told = laid_out(scheduler, n)
        at = [1000 * node.t - 1 for node in scheduler._nodes]
        assert told == pytest.approx(at, abs=1e-6) and len(set(told)) == n


def test_zero_terminal_snr_starts_at_pure_noise():
    config = {**LATENT, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = PlanScheduler(**config)
    assert laid_out(scheduler)[0] == 999 and scheduler._nodes[0].alpha == 0


# --- flow models


def own_list(n):
    return np.linspace(1, 1 / n, n).tolist()


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20, 50])
def test_lists_that_pipelines_send_by_themselves_are_nobodys_wish(n):
    scheduler = PlanScheduler(**FLOW)
    asked = laid_out(scheduler, n)
    scheduler.set_timesteps(sigmas=own_list(n))
    assert scheduler.timesteps.tolist() == asked
    scheduler.set_timesteps(sigmas=torch.tensor(own_list(n)))  # float32
    assert scheduler.timesteps.tolist() == asked
    exact = PlanScheduler(**FLOW, exact_sigmas=True)
    exact.set_timesteps(sigmas=own_list(n))
    assert exact.timesteps.tolist() == pytest.approx([1000 * t for t in own_list(n)])


def test_another_list_is_a_wish():
    scheduler = PlanScheduler(**FLOW)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.2])
    expected = [3000 * t / (1 + 2 * t) for t in (1.0, 0.7, 0.4, 0.2)]
    assert scheduler.timesteps.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 5, 8, 20, 50])
@pytest.mark.parametrize("config", [FLOW, {"use_flow_sigmas": True, "flow_shift": 5.0}])
def test_no_evaluation_is_spent_next_to_the_data(config, n):
    assert laid_out(PlanScheduler(**config), n)[-1] > 2


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_is_heard_by_flow_models(name):
    """Each gives a grid of its own; only synonyms agree."""
    told = {key: laid_out(PlanScheduler(**FLOW, timestep_spacing=key), 7) for key in SPACINGS}
    assert told[name][0] == pytest.approx(1000, abs=150) and told[name][-1] > 0
    assert all(a > b for a, b in itertools.pairwise(told[name]))
    synonyms = ({"auto", "logistic"}, {"logsnr", "exponential"}, {"trailing", "time"})
    same = {key for key in SPACINGS if told[key] == told[name]} - {name}
    assert any(same | {name} <= group for group in synonyms) or not same


def test_shifts_still_apply():
    """A larger shift, a larger mu: more evaluations in the noise."""
    for low, high, mus in (
        ({"shift": 1.0}, {"shift": 3.0}, (None, None)),
        ({"use_flow_sigmas": True}, {"use_flow_sigmas": True, "flow_shift": 5.0}, (None, None)),
        (*[{"shift": 1.0, "use_dynamic_shifting": True}] * 2, (0.5, 1.15)),
    ):
        one, other = (
            laid_out(PlanScheduler(**config), 8, **({} if mu is None else {"mu": mu}))
            for config, mu in zip((low, high), mus, strict=True)
        )
        assert one[0] == other[0] == 1000
        assert all(a < b for a, b in zip(one[1:], other[1:], strict=True))


def test_no_evaluation_below_the_terminal_shift():
    config = {**FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.1}
    told = laid_out(PlanScheduler(**config), 30, mu=0.5)
    assert told[-1] >= 100 - 1e-3


# --- what describes the model


def test_clipping_binds_every_solver():
    stock = diffusers.DDPMScheduler(**LATENT, clip_sample=True, clip_sample_range=0.5)
    for solver in (None, "unipc", "deis", "ddim"):
        scheduler = PlanScheduler.from_config(stock.config, solver=solver)
        scheduler.set_timesteps(6)
        assert drive(scheduler, start()).abs().max() <= 0.5 + 1e-6


# --- the solver


def test_the_solver_follows_the_number_of_evaluations_and_every_key_for_it():
    def solver(n, **options):
        scheduler = PlanScheduler(**LATENT, **options)
        scheduler.set_timesteps(n)
        return scheduler.plan.solver

    assert solver(5) == "unipc"
    assert solver(5, solver_type="midpoint") == solver(30, solver_type="heun") == "dpm-solver++"
    assert solver(30, solver_type="bh1") == solver(30, disable_corrector=[0]) == "unipc"
    assert solver(30, predict_x0=False) == "unipc"
    assert solver(30, solver="deis") == "deis"


def test_numbers_of_numpy_are_numbers(tmp_path):
    """In every key, and in a saved folder."""
    plain = {"location": 0.5, "scale": 1.5, "sample_size": 8, "solver_order": 3, "solver": "unipc"}
    kinds = {float: np.float32, int: np.int64, str: str}
    ours = PlanScheduler(**{key: kinds[type(value)](value) for key, value in plain.items()})
    ours.save_config(tmp_path)
    for scheduler in (ours, PlanScheduler.from_pretrained(tmp_path)):
        assert {key: scheduler.config[key] for key in plain} == plain


def test_the_sample_size_of_a_network_may_be_a_pair():
    def times(size):
        scheduler = PlanScheduler(**LATENT, sample_size=size)
        scheduler.set_timesteps(6)
        return scheduler.timesteps.tolist()

    assert times(8) == times([8, 8]) == times((4, 16)) != times(None)


@pytest.mark.parametrize(
    "config, given",
    [
        (LATENT, {"steps_offset": 1}),
        (LATENT, {"set_alpha_to_one": True}),
        (FLOW, {"sigma_max": 2.0}),
        (FLOW, {"beta_end": 0.012}),
    ],
    ids=str,
)
def test_a_keyword_without_effect_is_named(config, given, caplog):
    say.cache_clear()
    ours = PlanScheduler(**config).config
    PlanScheduler.from_config(ours, **given)
    (line,) = [record.getMessage() for record in caplog.records]
    ((key, value),) = given.items()
    assert line.startswith(f"{key}={value!r} has no effect here")
    caplog.clear()
    PlanScheduler.from_config(ours)
    assert not caplog.records
