"""What scripts read of stock schedulers is there, with stock's numbers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from scheduler_cases import EDM, FAMILIES, LATENT, scheduler_for

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.stock_classes import REPLACED

BETAS = {
    "linear": {},
    "scaled": LATENT,
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": np.linspace(1e-3, 0.3, 20), "num_train_timesteps": 20},
    "zero snr": {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}
TABLES = ("betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t")


@pytest.mark.parametrize("case", BETAS)
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_tables_of_training(name, case):
    stock = getattr(diffusers, name)(**BETAS[case])
    ours = PlanScheduler.from_config(stock.config)
    # Stock puts 2^-24 in the place of alpha^2 = 0.
    kept = slice(None, -1) if case == "zero snr" else slice(None)
    for table in TABLES:
        if hasattr(stock, table):
            theirs, own = getattr(stock, table), getattr(ours, table)
            assert own.dtype == theirs.dtype == torch.float32
            # Stock's products are of float32, and so is its 1 - alpha^2, which cancels.
            rtol, atol = (1e-3, 2e-3) if table in ("sigma_t", "lambda_t") else (1e-4, 2e-7)
            torch.testing.assert_close(own[kept], theirs[kept], rtol=rtol, atol=atol)


@pytest.mark.parametrize("one", [True, False])
def test_the_end_of_ddim(one):
    stock = diffusers.DDIMScheduler(**LATENT, set_alpha_to_one=one)
    ours = PlanScheduler.from_config(stock.config, solver="ddim", keep_sampling=True)
    torch.testing.assert_close(ours.final_alpha_cumprod, stock.final_alpha_cumprod)


@pytest.mark.parametrize("stock", [
    diffusers.EulerDiscreteScheduler(**LATENT),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
], ids=lambda scheduler: type(scheduler).__name__)  # fmt: skip
def test_sigmas_of_training(stock):
    """Before set_timesteps: a level for every timestep, which training scripts look up."""
    ours = PlanScheduler.from_config(stock.config)
    torch.testing.assert_close(ours.timesteps.float(), stock.timesteps.float())
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_levels_before_a_run(family):
    scheduler = PlanScheduler(**FAMILIES[family][0])
    levels = scheduler.sigmas[: len(scheduler.timesteps)]
    assert levels.dtype == torch.float32
    assert len(levels) == len(scheduler)
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_target_of_v_prediction(kind):
    stock = diffusers.DDPMScheduler(**LATENT)
    ours = PlanScheduler.from_config(stock.config)
    x, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(kind)
    times = torch.tensor([0, 999, 3, 500, 3])
    expected = stock.get_velocity(x.double(), noise.double(), times).to(kind)
    result = ours.get_velocity(x, noise, times)
    assert result.dtype == kind
    rtol = 1e-3 if kind == torch.float16 else 1e-5
    torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-6)
    with pytest.raises(ValueError, match="timesteps has 1000: need values in"):
        ours.get_velocity(x, noise, torch.tensor([1000]))


def test_the_target_of_flow_models():
    x, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    flow = PlanScheduler(shift=3.0)
    assert torch.equal(flow.get_velocity(x, noise, torch.tensor([10.0] * 5)), noise - x)
    with pytest.raises(ValueError, match="sigma_data"):
        PlanScheduler(**EDM).get_velocity(x, noise, torch.tensor([0.1] * 5))


def test_models_without_betas_have_no_such_tables():
    for config in ({"shift": 3.0}, EDM):
        scheduler = PlanScheduler(**config)
        for table in TABLES:
            assert not hasattr(scheduler, table)
    assert PlanScheduler().shift is None


def test_the_shift_can_be_set():
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    ours = PlanScheduler.from_config(stock.config, solver="ddim", timestep_spacing="time")
    stock.set_shift(2.5)
    ours.set_shift(2.5)
    assert ours.shift == stock.shift == 2.5
    ours.set_timesteps(6)
    expected = PlanScheduler(shift=2.5, solver="ddim", timestep_spacing="time")
    expected.set_timesteps(6)
    assert torch.equal(ours.timesteps, expected.timesteps)
    with pytest.raises(ValueError, match="shift=-1.0: need a positive number"):
        ours.set_shift(-1.0)
    with pytest.raises(ValueError, match="shift=2.0 is for flow models"):
        PlanScheduler().set_shift(2.0)


def test_places_of_timesteps():
    stock = diffusers.DDPMScheduler(**LATENT)
    ours = scheduler_for("ddim", timestep_spacing="leading")
    for scheduler in (stock, ours):
        assert scheduler.previous_timestep(7) == 6
        scheduler.set_timesteps(10)
        assert scheduler.previous_timestep(scheduler.timesteps[3]) == scheduler.timesteps[4]
    assert ours.index_for_timestep(ours.timesteps[4]) == 4
    assert ours.previous_timestep(ours.timesteps[-1]) == -1
    with pytest.raises(ValueError, match="timestep=450 is not one of the timesteps"):
        ours.index_for_timestep(450)


@pytest.mark.parametrize("betas", [
    np.linspace(1e-3, 0.3, 20, dtype=np.float32), torch.linspace(1e-3, 0.3, 20), [1e-3, 0.2, 0.3],
], ids=["numpy", "torch", "list"])  # fmt: skip
def test_trained_betas_are_saved(betas, tmp_path):
    scheduler = PlanScheduler(trained_betas=betas, num_train_timesteps=len(betas))
    scheduler.save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path)
    assert again.betas.tolist() == scheduler.betas.tolist()
    torch.testing.assert_close(again.betas, torch.as_tensor(betas).float(), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="trained_betas='steep': need a list of numbers"):
        PlanScheduler(trained_betas="steep")


def stock_cases() -> list:
    cases = [
        ("DDIMScheduler", {}), ("UniPCMultistepScheduler", {"use_flow_sigmas": True,
        "prediction_type": "flow_prediction", "flow_shift": 3.0}), ("EDMEulerScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction"}), ("CogVideoXDDIMScheduler", {}),
        ("UnCLIPScheduler", {}),
    ]  # fmt: skip
    return [pytest.param(name, given, id=name) for name, given in cases]


@pytest.mark.parametrize("name, given", stock_cases())
def test_compatibles_can_be_swapped_with_and_back(name, given):
    stock = getattr(diffusers, name)(**given)
    ours = PlanScheduler.from_config(stock.config, solver="unipc")
    found = ours.compatibles
    assert type(stock) in found
    for kind in found:
        other = kind.from_config(ours.config)
        again = PlanScheduler.from_config(other.config)
        assert again.config == ours.config
        assert again._description.model.schedule == ours._description.model.schedule
        if hasattr(other, "alphas_cumprod") and not given:
            theirs, own = other.alphas_cumprod.float(), ours.alphas_cumprod
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)
    others = {kind for kind in REPLACED if getattr(diffusers, kind) not in found}
    assert others, "some class has another model"


def test_a_config_is_what_it_says():
    """diffusers notes beside the keys of a config where they came from."""
    one, other = PlanScheduler(beta_end=0.02), PlanScheduler()
    assert one.config == other.config
    assert one.config == dict(other.config)
    assert one.config != PlanScheduler(beta_end=0.03).config
