"""Noise schedules and spacings of PlanScheduler, beside diffusers' schedulers and closed forms."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from diffusers.schedulers import AysSchedules
from scheduler_cases import (
    AUDIO,
    EDM,
    LATENT,
    SHAPE,
    VIDEO,
    assert_close,
    drive,
    network,
    scheduler_for,
    start,
)
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.adapters.config.sigma_models import SigmaModel
from logsnr.solvers import SPACINGS, DiscreteVP

# --- models that a range of sigma describes: the same numbers as stock, element by element

PRECONDITIONED = {
    "video": (diffusers.EulerDiscreteScheduler(**VIDEO), "ddim"),
    "video, linspace": (
        diffusers.EulerDiscreteScheduler(**{**VIDEO, "timestep_spacing": "linspace"}),
        "ddim",
    ),
    "video, betas": (
        diffusers.EulerDiscreteScheduler(
            **{**VIDEO, "use_karras_sigmas": False, "timestep_spacing": "trailing"}
        ),
        "ddim",
    ),
    "edm": (diffusers.EDMEulerScheduler(), "ddim"),
    "edm to sigma_min": (diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min"), "ddim"),
    "edm, v, exponential": (
        diffusers.EDMEulerScheduler(
            prediction_type="v_prediction", sigma_schedule="exponential", sigma_data=1.3
        ),
        "ddim",
    ),
    "edm 2M": (diffusers.EDMDPMSolverMultistepScheduler(rho=5.0), "dpm-solver++"),
    "edm 3M": (diffusers.EDMDPMSolverMultistepScheduler(solver_order=3), "dpm-solver++"),
    "edm thresholding": (
        diffusers.EDMDPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.3),
        "dpm-solver++",
    ),
}


@pytest.mark.parametrize("case", PRECONDITIONED)
@pytest.mark.parametrize("nfe", [2, 7, 20])
def test_preconditioned_models_give_the_numbers_of_stock(case, nfe):
    stock, solver = PRECONDITIONED[case]
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver=solver)
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(nfe)
        results.append(drive(scheduler, start() * scheduler.init_noise_sigma))
    assert ours.timesteps.dtype == stock.timesteps.dtype == torch.float32
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=4e-6, atol=0)
    # stock holds x0 + sigma eps in float32, and loses sigma_max * 6e-8 of x0 in few long steps
    assert_close(*results, 6e-7 * float(ours.sigmas[0]) if nfe == 2 else 5e-6)


@pytest.mark.parametrize("config", [VIDEO, EDM, AUDIO], ids=["video", "edm", "audio"])
def test_the_network_is_shown_the_noisy_image_as_stock_scales_it(config):
    """The state is z / sqrt(sigma^2 + sigma_data^2), and z itself in the end."""
    d = config.get("sigma_data", 1.0)
    ours = PlanScheduler(**config, solver="ddim")
    ours.set_timesteps(6)
    sigmas = ours.sigmas.double()
    z = start(torch.float64) * (sigmas[0] ** 2 + d**2).sqrt()
    sign = 1 if config.get("prediction_type") == "v_prediction" else -1
    x = z / (sigmas[0] ** 2 + d**2).sqrt()
    for i, t in enumerate(ours.timesteps):
        c = (sigmas[i] ** 2 + d**2).sqrt()
        assert_close(x, z / c, 1e-6)
        out = network(z / c, t)
        x0 = d**2 / c**2 * z - sign * sigmas[i] * d / c * out
        z = z + (sigmas[i + 1] - sigmas[i]) * (z - x0) / sigmas[i]
        x = ours.step(out, t, x).prev_sample
    assert_close(x, z, 1e-6)


def test_what_stable_audio_is_told():
    stock = diffusers.CosineDPMSolverMultistepScheduler()
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="dpm-solver++")
    for scheduler in (ours, stock):
        scheduler.set_timesteps(9)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-6, atol=0)
    schedule = noise_schedule(ours.config)
    times = [schedule.time_told(schedule.network_time(t)) for t in (0.3, 4.0, 500.0)]
    assert times == pytest.approx([0.3, 4.0, 500.0], rel=1e-9)


@pytest.mark.parametrize("config", [VIDEO, EDM, AUDIO], ids=["video", "edm", "audio"])
def test_noise_is_added_at_the_scale_of_the_state(config):
    d = config.get("sigma_data", 1.0)
    ours = PlanScheduler(**config)
    ours.set_timesteps(7)
    x0, noise = start(torch.float64), start(torch.float64).flip(0)
    for i, t in enumerate(ours.timesteps):
        sigma = float(ours.sigmas[i])
        expected = (x0 + sigma * noise) / math.hypot(sigma, d)
        assert_close(ours.add_noise(x0, noise, t.reshape(1)), expected, 1e-6)
    fresh = PlanScheduler(**config)  # not laid out: the time says it
    assert_close(fresh.add_noise(x0, noise, t.reshape(1)), expected, 1e-5)


def test_given_sigmas_and_timesteps_of_a_sigma_model_are_exact():
    sigmas = AysSchedules["StableDiffusionVideoSigmas"]
    given = PlanScheduler(**VIDEO)
    given.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(given.sigmas, torch.tensor(sigmas), rtol=1e-6, atol=0)
    told = given.timesteps.clone()
    torch.testing.assert_close(told, 0.25 * torch.tensor(sigmas[:-1]).log(), rtol=0, atol=1e-6)
    result = drive(given, start(torch.float64))
    given.set_timesteps(timesteps=told)
    assert torch.equal(given.timesteps, told)
    assert_close(drive(given, start(torch.float64)), result, 1e-5)


def test_a_sigma_model_is_a_noise_schedule():
    schedule = SigmaModel(0.002, 80.0, 0.5)
    t = torch.logspace(-3, 3, 25, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(sigma / alpha, t)
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t)
    h = 1e-6 * t
    slope = (torch.log(schedule.alpha(t + h)) - torch.log(schedule.alpha(t - h))) / (2 * h)
    torch.testing.assert_close(schedule.dlog_alpha(t), slope, rtol=1e-4, atol=1e-9)
    for bad in ({"sigma_min": 0.0}, {"sigma_max": 0.001}, {"sigma_data": 0.0}, {"clock": "t"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SigmaModel(**{"sigma_min": 0.002, "sigma_max": 80.0, **bad})


# --- inverted flow times


@pytest.mark.parametrize("how", ["steps", "sigmas"])
def test_inverted_flow_times_are_those_of_stock(how):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, shift=2.0)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="ddim")
    given = {"sigmas": [1.0, 0.9, 0.5, 0.2]} if how == "sigmas" else {"num_inference_steps": 9}
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(**given)
        results.append(drive(scheduler, start()))
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=0, atol=1e-6)
    assert_close(*results, 2e-6)
    assert ours.timesteps[0] == 0 and (ours.timesteps.diff() > 0).all()
    ours.set_timesteps(timesteps=ours.timesteps.tolist())
    assert_close(drive(ours, start()), results[0], 2e-6)


def test_inverted_flow_adds_noise_where_the_network_is_told():
    ours = PlanScheduler(shift=1.0, invert_sigmas=True)
    ours.set_timesteps(4)
    noise = start().flip(0)
    at_start = ours.scale_noise(start(), ours.timesteps[:1], noise)
    assert torch.equal(at_start, noise)  # told 0, the end of pure noise
    fresh = PlanScheduler(shift=1.0, invert_sigmas=True)
    assert_close(
        fresh.scale_noise(start(), torch.tensor([250.0]), noise),
        0.25 * start() + 0.75 * noise,
        1e-6,
    )


# --- spacings


def ratios(scheduler: PlanScheduler) -> Tensor:
    return torch.tensor(
        [node.sigma / node.alpha for node in scheduler._evaluations.layout.nodes[:-1]]
    )


def test_logsnr_spacing_is_lu_lambdas():
    ours = scheduler_for("dpm-solver++", timestep_spacing="logsnr")
    flag = scheduler_for("dpm-solver++", use_lu_lambdas=True)
    for scheduler in (ours, flag):
        scheduler.set_timesteps(8)
    steps = ratios(ours).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(7), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.sigmas, flag.sigmas, rtol=1e-5, atol=0)
    assert torch.equal(ours.timesteps, flag.timesteps)


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_names_and_flags_of_spacings_agree(name):
    for config in (LATENT, VIDEO, {"shift": 2.0}):
        bare = {**config, "use_karras_sigmas": False}
        named = PlanScheduler(**{**bare, "timestep_spacing": name})
        flag = PlanScheduler(**{**bare, f"use_{name}_sigmas": True})
        for scheduler in (named, flag):
            scheduler.set_timesteps(9)
        torch.testing.assert_close(named.sigmas, flag.sigmas, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(named.timesteps, flag.timesteps)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("ays-sd15", "StableDiffusionSigmas"),
        ("ays-sdxl", "StableDiffusionXLSigmas"),
        ("ays-svd", "StableDiffusionVideoSigmas"),
    ],
)
def test_align_your_steps_by_name_is_the_published_list(name, table):
    config = VIDEO if name == "ays-svd" else {**LATENT, "sigma_min": 0.029, "sigma_max": 14.615}
    named = PlanScheduler(**{**config, "use_karras_sigmas": False, "timestep_spacing": name})
    named.set_timesteps(10)
    published = torch.tensor(AysSchedules[table])
    torch.testing.assert_close(named.sigmas, published, rtol=1e-3, atol=0)
    if name != "ays-svd":
        told = torch.tensor(AysSchedules[table.replace("Sigmas", "Timesteps")])
        assert (named.timesteps - told).abs().max() <= 1


@pytest.mark.parametrize("name", sorted(SPACINGS))
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("config", [LATENT, VIDEO], ids=["steps", "video"])
def test_every_spacing_works_for_every_number_of_steps(name, final, config):
    scheduler = PlanScheduler(
        **{
            **config,
            "use_karras_sigmas": False,
            "timestep_spacing": name,
            "final_sigmas_type": final,
            "solver": "unipc",
        },
    )
    for nfe in (1, 2, 5, 11):
        scheduler.set_timesteps(nfe)
        nodes = scheduler._evaluations.layout.nodes
        assert len(nodes) == nfe + 1
        assert all(b.lam > a.lam for a, b in zip(nodes, nodes[1:], strict=False))
        assert (nodes[-1].sigma == 0) is (final == "zero")


def test_flow_logsnr_spacing_starts_from_pure_noise():
    for config, mu in (({"shift": 3.0}, None), ({"shift": 1.0, "use_dynamic_shifting": True}, 1.1)):
        scheduler = PlanScheduler(**config, timestep_spacing="logsnr")
        scheduler.set_timesteps(12, mu=mu)
        t = scheduler.sigmas.double()
        assert t[0] == 1 and t[-1] == 0
        steps = (t[1:-1] / (1 - t[1:-1])).log().diff()
        torch.testing.assert_close(steps, steps.mean().expand(10), rtol=1e-4, atol=0)


def test_exact_sigmas_are_not_shifted():
    sigmas = [1.0, 0.8, 0.45, 0.1]
    config = {"shift": 3.0, "use_dynamic_shifting": True, "shift_terminal": 0.2}
    exact = PlanScheduler(**config, exact_sigmas=True)
    exact.set_timesteps(sigmas=sigmas, mu=1.2)
    torch.testing.assert_close(exact.sigmas, torch.tensor([*sigmas, 0.0]))
    torch.testing.assert_close(exact.timesteps, 1000 * torch.tensor(sigmas))
    moved = PlanScheduler(**config)
    moved.set_timesteps(sigmas=sigmas, mu=1.2)
    assert (moved.sigmas[1:-1] - torch.tensor(sigmas[1:])).abs().min() > 0.05


def test_fractional_timesteps_are_told_as_they_are():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=[999.0, 500.5, 20.25])
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.timesteps.tolist() == [999.0, 500.5, 20.25]
    node = scheduler._evaluations.layout.nodes[1]
    assert noise_schedule(scheduler.config).network_time(node.t) == pytest.approx(500.5)
    scheduler.set_timesteps(timesteps=[999, 500, 20])
    assert scheduler.timesteps.dtype == torch.int64


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_lambda_min_clipped_leaves_out_the_end_of_the_cosine_schedule(spacing):
    stock = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, timestep_spacing=spacing
    )
    ours = PlanScheduler.from_config(
        stock.config, keep_sampling=True, solver="dpm-solver++", timestep_spacing=spacing
    )
    for nfe in (1, 6, 25):
        for scheduler in (ours, stock):
            scheduler.set_timesteps(nfe)
        assert ours.timesteps.tolist() == stock.timesteps.tolist()
        assert ours._evaluations.layout.nodes[0].lam >= -5.1
    free = PlanScheduler(beta_schedule="squaredcos_cap_v2", solver="dpm-solver++")
    free.set_timesteps(6)
    assert free._evaluations.layout.nodes[0].lam < -5.1


# --- tables


@pytest.mark.parametrize(
    "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_beta_schedules_are_those_of_diffusers(beta_schedule, zero_snr):
    options = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    stock = diffusers.DDPMScheduler(**options)
    schedule = noise_schedule(PlanScheduler(**options).config)
    assert isinstance(schedule, DiscreteVP)
    expected = stock.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=2e-3, atol=1e-6)


def test_trained_betas():
    betas = torch.linspace(1e-4, 0.03, 50).tolist()
    stock = diffusers.DDPMScheduler(num_train_timesteps=50, trained_betas=betas)
    ours = PlanScheduler.from_config(stock.config)
    torch.testing.assert_close(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-5, atol=0)
    ours.set_timesteps(50)
    assert len(ours.timesteps) == 50


# --- keys that change the table of a solver


@pytest.mark.parametrize("name", ["dpm-solver++", "dpm-solver"])
def test_euler_at_final_takes_the_last_step_at_first_order(name):
    options = {"final_sigmas_type": "sigma_min", "euler_at_final": True}
    stock = diffusers.DPMSolverMultistepScheduler(
        **LATENT, **options, algorithm_type=name.replace("-solver", "solver")
    )
    solver = {"name": name, "steps": "multistep"}
    results = []
    for at_final in (None, True, False):
        scheduler = stock
        if at_final is not None:
            scheduler = PlanScheduler.from_config(
                stock.config, keep_sampling=True, solver=solver, euler_at_final=at_final
            )
        scheduler.set_timesteps(16)
        results.append(drive(scheduler, start()))
    assert_close(results[1], results[0], 3e-6)
    assert (results[2] - results[0]).abs().max() > 1e-5


@pytest.mark.parametrize("disabled", [[0], [0, 1, 2], [3], list(range(8))])
@pytest.mark.parametrize("begin", [0, 2])
def test_disable_corrector_is_that_of_stock(disabled, begin):
    stock = diffusers.UniPCMultistepScheduler(**LATENT, disable_corrector=disabled, solver_order=3)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="unipc")
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(begin)
        results.append(drive(scheduler, start(), begin))
    assert_close(*results, 3e-5)


def test_without_any_corrector_unipc_is_its_predictor():
    off = scheduler_for("unipc", disable_corrector=list(range(8)))
    predictor = scheduler_for({"name": "unipc", "corrector": False})
    results = []
    for scheduler in (off, predictor):
        scheduler.set_timesteps(8)
        results.append(drive(scheduler, start(torch.float64)))
    assert results[0].shape == SHAPE
    assert_close(*results, 1e-12)


def test_an_offset_does_not_lead_past_the_last_training_step():
    scheduler = scheduler_for("ddim", timestep_spacing="leading", steps_offset=3)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_a_single_evaluation_is_at_the_first_level(flag):
    scheduler = scheduler_for("ddim", **{flag: True})
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
