"""The arguments and the output of ``step``, as users of stock schedulers know them."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import diffusers
import numpy as np
import pytest
import torch
from scheduler_cases import (
    EDM,
    FAMILIES,
    LATENT,
    assert_close,
    drive,
    network,
    scheduler_for,
    start,
)

from logsnr.adapters import PlanScheduler

# --- without set_timesteps


@pytest.mark.parametrize("end", [40, 5])
def test_ddpm_over_all_timesteps(end):
    """As DDPMScheduler, with the same noise: the last steps of a model with 40."""
    stock = diffusers.DDPMScheduler(**LATENT, num_train_timesteps=40, clip_sample=False)
    ours = PlanScheduler.from_config(stock.config, solver={"name": "ddim", "eta": 1.0})
    results = []
    for scheduler in (ours, stock):
        x, generator = start(), torch.Generator().manual_seed(0)
        for t in scheduler.timesteps[-end:]:
            x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        results.append(x)
    assert_close(*results, 2e-5)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "lms", "dpm2"])
@pytest.mark.parametrize("config", [LATENT, {"shift": 3.0}, EDM], ids=["sd", "flow", "edm"])
@pytest.mark.parametrize("begin", [0, 11])
def test_every_model_goes_through_its_training(solver, config, begin):
    """n evaluations for n timesteps, the same as where they are listed (with one a step)."""
    config = {**config, "num_train_timesteps": 20}
    ours, listed = (PlanScheduler(**config, solver=solver) for _ in range(2))
    told = []
    x = start()
    for t in ours.timesteps[begin:]:
        told.append(float(t))
        x = ours.step(network(x, t), t, x).prev_sample
    assert len(told) == 20 - begin
    if solver in ("ddim", "unipc", "lms"):
        listed.set_timesteps(timesteps=listed.timesteps)
        assert_close(x, drive(listed, start(), begin), 1e-6)


def test_a_number_names_a_step_of_training():
    """As in diffusers; but not of the solvers that need to know the steps before it."""
    x = start()
    stock = diffusers.EulerDiscreteScheduler(**LATENT)
    ours = PlanScheduler.from_config(stock.config, solver="euler")
    level = float((1 + stock.sigmas[600] ** 2).sqrt())
    expected = stock.step(0.1 * x, float(stock.timesteps[600]), x * level).prev_sample
    result = ours.step(0.1 * x, float(stock.timesteps[600]), x).prev_sample
    after = float((1 + stock.sigmas[601] ** 2).sqrt())
    assert_close(result * after, expected, 1e-5)
    with pytest.raises(ValueError, match="before set_timesteps, with timestep=399"):
        scheduler_for("unipc").step(x, 399, x)
    with pytest.raises(ValueError, match="timestep=1500 is not one of the run's timesteps"):
        scheduler_for("ddim").step(x, 1500, x)


# --- arguments


def test_eta_is_the_fourth_argument_of_step():
    stock = diffusers.DDIMScheduler(**LATENT, clip_sample=False)
    ours = PlanScheduler.from_config(stock.config, solver="ddim", timestep_spacing="leading")
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(8)
        x, generator = start(), torch.Generator().manual_seed(3)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, 0.7, False, generator, None, False)[0]
        results.append(x)
    assert_close(*results, 3e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_eta_is_a_number_of_any_type(kind):
    results = []
    for eta in (0.5, kind(0.5)):
        scheduler = scheduler_for("ddim")
        scheduler.set_timesteps(4)
        t, x = scheduler.timesteps[0], start()
        results.append(scheduler.step(0.1 * x, t, x, eta, variance_noise=x).prev_sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("given, words", [
    ((torch.Generator(),), "eta=.*need a number.*fourth argument"),
    ((True,), "eta=True: need a number"),
    (("0.5",), "eta='0.5': need a number"),
])  # fmt: skip
def test_another_fourth_argument_is_refused(given, words):
    scheduler = scheduler_for("ddim")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=words):
        scheduler.step(start(), scheduler.timesteps[0], start(), *given)


@pytest.mark.parametrize("given, words", [
    ({"s_churn": 3.0}, "s_churn=3.0 of a step is not followed.*'s_churn'"),
    ({"order": 3}, "order=3 of a step.*solver_order"),
    ({"prev_timestep": 100}, "prev_timestep=100: the run goes on to 0;"),
    ({"per_token_timesteps": torch.ones(3)}, r"per_token_timesteps=tensor\(3,\)"),
    ({"generatr": 3}, "generatr=3 is not an argument of step"),
])  # fmt: skip
def test_what_a_step_cannot_follow_is_refused(given, words):
    scheduler = scheduler_for("ddim", timestep_spacing="leading")
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=words):
        scheduler.step(start(), 500, start(), **given)
    neutral = {"s_churn": 0.0, "s_noise": 1.0, "s_tmin": 0.0, "order": 2, "prev_timestep": 0}
    scheduler.step(start(), 500, start(), per_token_timesteps=None, **neutral)


# --- output


@pytest.mark.parametrize("solver, changed", [
    *product(["ddim", "unipc"], [
        {},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample", "thresholding": True},
    ]),
    ("ddim", {"clip_sample": True}),  # which only the one-step solvers have
])  # fmt: skip
def test_the_data_prediction_of_a_step(solver, changed):
    stock = diffusers.DDIMScheduler(**{**LATENT, "clip_sample": False, **changed})
    ours = PlanScheduler.from_config(stock.config, solver=solver, timestep_spacing="leading")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(6)
    x = start()
    for t, told in zip(stock.timesteps, ours.timesteps, strict=True):
        result = ours.step(network(x, told), told, x)
        expected = stock.step(network(x, told), t, x) if t == told else None
        if expected is not None:
            assert_close(result.pred_original_sample, expected.pred_original_sample, 1e-5)
        x = result.prev_sample
    assert_close(result.pred_original_sample, x, 1e-6)  # the last step ends there


@pytest.mark.parametrize("family", ["flow", "flow_inverted", "edm", "audio", "video"])
def test_the_data_prediction_of_other_models(family):
    """In the units of the data: the last one is the result itself."""
    config, given = FAMILIES[family]
    scheduler = PlanScheduler(**config, solver="ddim", final_sigmas_type="zero")
    scheduler.set_timesteps(4, **given)
    x = start()
    for t in scheduler.timesteps:
        output = scheduler.step(network(x, t), t, x)
        x = output.prev_sample
    assert_close(output.pred_original_sample, x, 1e-6)


def test_a_late_look_at_the_data_prediction():
    """It is made when it is read, and is not silently that of other tensors."""
    scheduler = scheduler_for("ddim")
    scheduler.set_timesteps(4)
    x, output = start(), 0.3 * start()
    result = scheduler.step(output, scheduler.timesteps[0], x)
    first = result.pred_original_sample
    assert torch.equal(result.pred_original_sample, first)
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(again.prev_sample, result.prev_sample)
    output.zero_()
    with pytest.raises(ValueError, match="pred_original_sample was read after model_output"):
        _ = result.pred_original_sample


@pytest.mark.parametrize("shape, kind", [
    ((2, 3, 4, 5), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d),
])  # fmt: skip
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "dpm-solver++"])
@pytest.mark.parametrize("grad", [False, True])
def test_the_memory_format_is_kept(solver, shape, kind, grad):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    results = []
    for x in (numbers.to(memory_format=kind), numbers):
        scheduler = scheduler_for(solver)
        scheduler.set_timesteps(5)
        x = x.requires_grad_(grad)
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(x), t, x).prev_sample
            assert y.is_contiguous(memory_format=kind) == x.is_contiguous(memory_format=kind)
            x = y
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("bounds", [
    {"sample_max_value": 0.5}, {"dynamic_thresholding_ratio": 0.0, "sample_max_value": 2.0},
    {"sample_max_value": 0.5, "dynamic_thresholding_ratio": 0.3},
], ids=str)  # fmt: skip
def test_thresholds_of_stock_at_their_limits(bounds):
    stock = diffusers.DPMSolverMultistepScheduler(
        **LATENT, thresholding=True, prediction_type="sample", **bounds
    )
    ours = PlanScheduler.from_config(stock.config, solver="dpm-solver++", keep_sampling=True)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(6)
    assert_close(drive(ours, start()), drive(stock, start()), 3e-5)
    for bad in ({"sample_max_value": -0.5}, {"dynamic_thresholding_ratio": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            PlanScheduler(thresholding=True, **bad).set_timesteps(5)
