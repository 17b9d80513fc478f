"""PlanScheduler gives the numbers of diffusers' schedulers, where those are right."""

from __future__ import annotations

import diffusers
import pytest
import torch
from scheduler_cases import LATENT, assert_close, drive, start

from logsnr.adapters import PlanScheduler

STOCK = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "ddim, alpha of step 0": (
        diffusers.DDIMScheduler,
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "ddim, v": (
        diffusers.DDIMScheduler,
        {"clip_sample": False, "prediction_type": "v_prediction"},
    ),
    "2M": (diffusers.DPMSolverMultistepScheduler, {}),
    "2M leading": (
        diffusers.DPMSolverMultistepScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1, "final_sigmas_type": "sigma_min"},
    ),
    "2M karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "2M heun": (diffusers.DPMSolverMultistepScheduler, {"solver_type": "heun"}),
    "3M": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
    "2M thresholding": (
        diffusers.DPMSolverMultistepScheduler,
        {"thresholding": True, "prediction_type": "sample", "sample_max_value": 1.5},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "unipc trailing": (diffusers.UniPCMultistepScheduler, {"timestep_spacing": "trailing"}),
    "unipc cosine": (
        diffusers.UniPCMultistepScheduler,
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    ),
    "unipc bh1": (
        diffusers.UniPCMultistepScheduler,
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "solver_order": 3},
    ),
}
OURS = {"DDIM": "ddim", "DPMS": "dpm-solver++", "UniP": "unipc", "Flow": "ddim"}


@pytest.mark.parametrize("case", STOCK)
@pytest.mark.parametrize("nfe", [1, 2, 5, 8, 20])
def test_stock_parity(case, nfe):
    kind, options = STOCK[case]
    stock = kind(**{**LATENT, **options})
    ours = PlanScheduler.from_config(
        stock.config, keep_sampling=True, solver=OURS[kind.__name__[:4]]
    )
    stock.set_timesteps(nfe)
    ours.set_timesteps(nfe)
    assert ours.timesteps.dtype == stock.timesteps.dtype
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    if hasattr(stock, "sigmas"):
        torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=2e-5, atol=0)
    # float32 tables: 1e-5 of a level, up to 8e-4 for karras (its table is built in float32 steps)
    tolerance = 1e-3 if "karras" in case else 3e-5
    assert_close(drive(ours, start()), drive(stock, start()), tolerance)


IN_SIGMA = {
    "euler": (diffusers.EulerDiscreteScheduler, {}, lambda n: n),
    "lms": (diffusers.LMSDiscreteScheduler, {"solver_order": 4}, lambda n: n),
    "heun": (diffusers.HeunDiscreteScheduler, {}, lambda n: 2 * n - 1),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}, lambda n: 2 * n - 1),
}


@pytest.mark.parametrize("solver", IN_SIGMA)
@pytest.mark.parametrize(
    ("grid", "tolerance"),
    [
        ({"timestep_spacing": "leading", "steps_offset": 1}, 1e-6),
        ({"timestep_spacing": "trailing"}, 1e-6),
        ({"timestep_spacing": "linspace"}, 1e-6),
        ({"use_karras_sigmas": True}, 1e-4),  # stock tells its networks fractions
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [4, 10])
def test_parity_of_the_solvers_in_sigma(solver, grid, tolerance, steps):
    """On grids of whole timesteps, to rounding. Stock's state is sqrt(1 + sigma^2) times ours."""
    kind, options, nfe = IN_SIGMA[solver]
    stock = kind(**LATENT, **grid)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver=solver, **options)
    stock.set_timesteps(steps)
    ours.set_timesteps(nfe(steps))
    assert len(ours.timesteps) == len(stock.timesteps) == nfe(steps)
    # KDPM2's inner times are fractions.
    tolerance = 1e-4 if solver == "dpm2" else tolerance
    torch.testing.assert_close(ours.timesteps.float(), stock.timesteps.float(), rtol=0, atol=0.5)
    x = start()
    expected = drive(stock, x * (1 + stock.sigmas[0].float() ** 2).sqrt())
    assert_close(drive(ours, x), expected, tolerance)


@pytest.mark.parametrize("steps", [6, 10])
@pytest.mark.parametrize("begin", [1, 4])
def test_parity_of_heun_in_the_middle(steps, begin):
    """Where stock's slices begin, at a full step, the rest is stock's."""
    grid = {**LATENT, "timestep_spacing": "trailing"}
    stock = diffusers.HeunDiscreteScheduler(**grid)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="heun")
    stock.set_timesteps(steps)
    ours.set_timesteps(2 * steps - 1)
    x, level = start(), stock.sigmas[2 * begin]
    for scheduler in (stock, ours):
        scheduler.set_begin_index(2 * begin)
    expected = drive(stock, x * (1 + level.float() ** 2).sqrt(), 2 * begin)
    assert_close(drive(ours, x, 2 * begin), expected, 1e-6)


@pytest.mark.parametrize("nfe", [1, 3, 8, 28])
@pytest.mark.parametrize("shift", [0.4, 1.0, 3.0])
def test_flow_euler_parity(nfe, shift):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="ddim")
    stock.set_timesteps(nfe)
    ours.set_timesteps(nfe)
    rounding = 2e-7 / min(shift, 1)  # theirs, of 1 + (shift - 1) t in float32
    assert ours.timesteps.dtype == torch.float32
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=rounding, atol=0)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=rounding, atol=0)
    assert_close(drive(ours, start()), drive(stock, start()), 2e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("shift", [0.4, 1.0, 3.0])
def test_flow_heun_parity(steps, shift):
    """Heun's method in t, of second order from pure noise on; n counts evaluations."""
    stock = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="heun")
    stock.set_timesteps(steps)
    ours.set_timesteps(2 * steps - 1)
    rounding = 2e-7 / min(shift, 1)  # as above
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=rounding, atol=0)
    # Theirs divides a difference in float32 by the last t, which is 1.6e-4 for a shift of 0.4.
    tolerance = 3e-5 if shift >= 1 else 2e-4
    assert_close(drive(ours, start()), drive(stock, start()), tolerance)


@pytest.mark.parametrize("begin", [1, 4])
def test_parity_of_flow_heun_in_the_middle(begin):
    stock = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="heun")
    for scheduler, n in ((stock, 7), (ours, 13)):
        scheduler.set_timesteps(n)
        scheduler.set_begin_index(2 * begin)
    assert_close(drive(ours, start(), 2 * begin), drive(stock, start(), 2 * begin), 3e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_and_given_sigmas_follow_flow_euler(kind):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=0.1
    )
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="unipc")
    sigmas = torch.linspace(1, 1 / 6, 6).tolist()
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=sigmas, mu=1.1)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="mu is missing"):
        ours.set_timesteps(6)


def test_ddim_noise_is_that_of_stock():
    stock = diffusers.DDIMScheduler(**LATENT, clip_sample=False)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True, solver="ddim")
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(8)
        generator = torch.Generator().manual_seed(3)
        results.append(drive(scheduler, start(), eta=0.7, generator=generator))
    assert_close(*results, 3e-5)
