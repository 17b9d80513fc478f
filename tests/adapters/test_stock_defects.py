"""What diffusers' schedulers get wrong: each reproduced on theirs, and absent in ours.

If a release of diffusers repairs one, its test fails: then delete the half that shows the defect.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from scheduler_cases import EDM, LATENT, VIDEO, assert_close, drive, network, start
from torch import Tensor

from logsnr.adapters import PlanScheduler

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
POINT = torch.full((1, 512), 0.3)


def ours_for(stock, solver, **changes) -> PlanScheduler:
    return PlanScheduler.from_config(stock.config, keep_sampling=True, solver=solver, **changes)


def result(scheduler, nfe: int) -> Tensor:
    scheduler.set_timesteps(nfe)
    return drive(scheduler, start())


def noise_left(scheduler, nfe: int, *, flow: bool) -> float:
    """Root mean square of what is left of the noise, with a network that knows the data."""
    scheduler.set_timesteps(nfe)
    x = torch.randn(POINT.shape, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])  # of flow models; sigma / alpha of the others
        alpha = 1 - sigma if flow else (1 + sigma**2) ** -0.5
        sigma = sigma if flow else sigma * alpha
        eps = (x - alpha * POINT) / sigma
        x = scheduler.step(eps - POINT if flow else eps, t, x).prev_sample
    return float((x - POINT).square().mean().sqrt())


# --- not a number


@pytest.mark.parametrize("nfe", [2, 5, 20])
def test_unipc_bh1_to_zero_is_not_a_number(nfe):
    stock = diffusers.UniPCMultistepScheduler(**LATENT, solver_type="bh1")
    assert stock.config.final_sigmas_type == "zero"
    assert result(stock, nfe).isnan().all()
    assert result(ours_for(stock, "unipc"), nfe).isfinite().all()


@pytest.mark.parametrize("nfe", [2, 5, 20])
def test_unipc_on_noise_predictions_to_zero_is_not_a_number(nfe):
    stock = diffusers.UniPCMultistepScheduler(**LATENT, predict_x0=False)
    assert result(stock, nfe).isnan().all()
    assert result(ours_for(stock, "unipc"), nfe).isfinite().all()


def test_unipc_3_to_zero_without_lowering_the_order_is_singular():
    stock = diffusers.UniPCMultistepScheduler(**LATENT, solver_order=3, lower_order_final=False)
    with pytest.raises(torch.linalg.LinAlgError):
        result(stock, 8)
    assert result(ours_for(stock, "unipc"), 8).isfinite().all()


def test_edm_heun_to_sigma_min_is_not_a_number():
    # the last of the spacing is sigma_min already, so the last step has length 0
    stock = diffusers.EDMDPMSolverMultistepScheduler(
        solver_type="heun", final_sigmas_type="sigma_min"
    )
    stock.set_timesteps(20)
    assert drive(stock, start() * stock.init_noise_sigma).isnan().all()
    assert result(ours_for(stock, "dpm-solver++"), 20).isfinite().all()


def test_dpm_solver_refuses_sigma_zero():
    options = {"algorithm_type": "dpmsolver", "final_sigmas_type": "zero"}
    with pytest.raises(ValueError, match="final_sigmas_type"):
        diffusers.DPMSolverMultistepScheduler(**LATENT, **options)
    solver = {"name": "dpm-solver", "steps": "multistep"}
    assert noise_left(PlanScheduler(**LATENT, solver=solver), 8, flow=False) < 1e-6


def test_dpm_solver_refuses_flow_prediction():
    stock = diffusers.DPMSolverMultistepScheduler(
        **FLOW, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    )
    with pytest.raises(ValueError, match="prediction_type given as flow_prediction"):
        result(stock, 8)
    ours = ours_for(stock, {"name": "dpm-solver", "steps": "multistep"})
    assert result(ours, 8).isfinite().all()


# --- noise left


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_never_reaches_sigma_zero(flow, order):
    stock = diffusers.DEISMultistepScheduler(**(FLOW if flow else LATENT), solver_order=order)
    left = noise_left(stock, 10, flow=flow)
    assert left > (0.1 if flow else 0.02)
    assert noise_left(ours_for(stock, "deis"), 10, flow=flow) < 1e-6


# --- times


def levels_visited(scheduler, nfe: int) -> tuple[list[float], list[float]]:
    """sigma / alpha at which a DDIM run is evaluated, and at which its states really are.

    For a network with constant x0 = 0 and eps = 1 the state is the noise level itself.
    """
    scheduler.set_timesteps(nfe)
    table = diffusers.DDIMScheduler(**LATENT).alphas_cumprod.double()
    told = [float((1 - table[int(t)]).sqrt()) for t in scheduler.timesteps]
    x = torch.full((1, 1), told[0], dtype=torch.float64)
    states = []
    for t in scheduler.timesteps:
        states.append(float(x))
        x = scheduler.step(torch.ones(1, 1, dtype=torch.float64), t, x).prev_sample
    return told, states


@pytest.mark.parametrize(("spacing", "nfe"), [("linspace", 8), ("linspace", 10), ("trailing", 7)])
def test_ddim_steps_to_other_times_than_it_lists(spacing, nfe):
    stock = diffusers.DDIMScheduler(**LATENT, clip_sample=False, timestep_spacing=spacing)
    told, states = levels_visited(stock, nfe)
    off = max(abs(a - b) for a, b in zip(told, states, strict=True))
    assert off > (1e-2 if spacing == "linspace" else 3e-4)
    told, states = levels_visited(ours_for(stock, "ddim", timestep_spacing=spacing), nfe)
    assert states == pytest.approx(told, abs=1e-6)


def test_flow_times_are_cut_to_whole_numbers():
    for kind, solver in (
        (diffusers.DPMSolverMultistepScheduler, "dpm-solver++"),
        (diffusers.UniPCMultistepScheduler, "unipc"),
        (diffusers.DEISMultistepScheduler, "deis"),
    ):
        stock = kind(**FLOW, flow_shift=3.0)
        ours = ours_for(stock, solver)
        for scheduler, told_off in ((stock, 0.5), (ours, 0.0)):
            scheduler.set_timesteps(11)
            off = (scheduler.timesteps - 1000 * scheduler.sigmas[:-1]).abs().max()
            assert off > told_off if told_off else off < 1e-3


def test_exponential_times_are_cut_to_whole_numbers_below():
    """The network is told a step that is up to 1 below its noise level; ours is the nearest."""
    stock = diffusers.UniPCMultistepScheduler(**LATENT, use_exponential_sigmas=True)
    table = diffusers.DDIMScheduler(**LATENT).alphas_cumprod.double()
    log_sigmas = 0.5 * ((1 - table) / table).log()

    def off(scheduler) -> Tensor:
        scheduler.set_timesteps(20)
        told = scheduler.timesteps[1:-1]  # the ends are training steps
        missed = scheduler.sigmas[1:-2].double().log() - log_sigmas[told]
        return missed / (log_sigmas[told + 1] - log_sigmas[told])

    assert off(stock).max() > 0.9
    assert off(ours_for(stock, "unipc", use_exponential_sigmas=True)).abs().max() < 0.51


def test_given_flow_timesteps_are_told_but_not_used():
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = ours_for(stock, "ddim")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(timesteps=[900.0, 500.0, 100.0])
    told = torch.tensor([900.0, 500.0, 100.0])
    assert torch.equal(ours.timesteps, told) and torch.equal(stock.timesteps, told)
    torch.testing.assert_close(ours.sigmas[:-1], told / 1000)
    assert (stock.sigmas[:-1] - told / 1000).abs().max() > 0.2


def test_video_to_sigma_min_ends_noisier_than_its_last_evaluation():
    stock = diffusers.EulerDiscreteScheduler(**VIDEO, final_sigmas_type="sigma_min")
    ours = ours_for(stock, "ddim", final_sigmas_type="sigma_min")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(8)
    assert stock.sigmas[-1] > 10 * stock.sigmas[-2]
    assert ours.sigmas[-1] <= ours.sigmas[-2]


def test_one_exponential_edm_step_starts_at_the_clean_end():
    stock = diffusers.EDMEulerScheduler(**EDM, sigma_schedule="exponential")
    ours = ours_for(stock, "ddim")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(1)
    assert float(stock.sigmas[0]) == pytest.approx(0.002)
    assert float(ours.sigmas[0]) == pytest.approx(80.0)


def test_inverted_flow_noises_the_wrong_way_round():
    stock = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    ours = ours_for(stock, "ddim")
    x0, noise = start(), start().flip(0)
    for scheduler, expected in ((stock, x0), (ours, noise)):
        scheduler.set_timesteps(5)
        first = scheduler.timesteps[:1].expand(len(x0))
        assert_close(scheduler.scale_noise(x0, first, noise), expected, 1e-6)


# --- edits of the latents between steps


def responses(scheduler) -> list[float]:
    """Effect on the result of adding 10 to the latents after 2, 3, .., 6 of 8 steps.

    The network ignores its input, so noise, its prediction, stays what it is, and an addition to
    the state of node s is an addition to the data: it must grow by alpha_0 / alpha_s.
    """
    outputs = torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(4)).double()

    def run(at: int | None) -> Tensor:
        scheduler.set_timesteps(8)
        x = torch.zeros(1, 64, dtype=torch.float64)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(outputs[i], t, x).prev_sample
            if i + 1 == at:
                x = x + 10.0
        return x.double()

    plain = run(None)
    return [float((run(at) - plain).mean()) for at in range(2, 7)]


def carried(scheduler) -> list[float]:
    """What those responses must be."""
    scheduler.set_timesteps(8)
    return [10 / scheduler._evaluations.layout.nodes[at].alpha for at in range(2, 7)]


def test_unipc_forgets_edits():
    stock = diffusers.UniPCMultistepScheduler(**LATENT)
    exact = carried(ours_for(stock, "unipc"))
    assert exact == pytest.approx([42.0, 26.9, 19.0, 14.7, 12.2], abs=0.05)
    assert responses(stock) == pytest.approx([21.0, 11.4, 7.0, 6.1, 9.6], abs=0.05)
    # What overshoots is the extrapolation of data predictions from before the edit, as in 2M. A
    # large edit costs the correction of its step.
    heard = responses(ours_for(stock, "unipc"))
    assert all(a < b < 1.4 * a for a, b in zip(exact, heard, strict=True))
    noise = PlanScheduler(**LATENT, solver="unipc", predict_x0=False, timestep_spacing="linspace")
    assert responses(noise) == pytest.approx(exact, rel=0.01)


def test_singlestep_forgets_edits_within_its_blocks():
    stock = diffusers.DPMSolverSinglestepScheduler(**LATENT, lower_order_final=True)
    exact = carried(ours_for(stock, "dpm-solver++"))
    forgotten = [b / a for a, b in zip(exact, responses(stock), strict=True)]
    assert forgotten[0] > 0.99 and forgotten[1] < 0.6 and forgotten[3] < 0.6
    heard = responses(ours_for(stock, {"name": "dpm-solver++", "steps": "singlestep"}))
    assert all(0.99 * a < b < 1.4 * a for a, b in zip(exact, heard, strict=True))


# --- types and calls


def test_flow_euler_drops_the_precision_of_the_latents():
    stock = diffusers.FlowMatchEulerDiscreteScheduler()
    for scheduler, dtype in ((stock, torch.bfloat16), (ours_for(stock, "ddim"), torch.float32)):
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[0]
        output = network(start(), t).bfloat16()
        assert scheduler.step(output, t, start()).prev_sample.dtype == dtype


def test_multistep_flow_schedulers_cannot_noise_an_image():
    for kind in (diffusers.UniPCMultistepScheduler, diffusers.DPMSolverMultistepScheduler):
        stock = kind(**FLOW)
        assert not hasattr(stock, "scale_noise")
        ours = ours_for(stock, "unipc")
        ours.set_timesteps(4)
        noised = ours.scale_noise(start(), ours.timesteps[:1], start().flip(0))
        assert torch.equal(noised, start().flip(0))


# --- noise


def test_third_order_of_the_sde_adds_a_whole_second_difference():
    """A sign: (1 - e^-2h - 2h) / (2h)^2 tends to -1/2, and another 1/2 is taken from it."""
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    stock = diffusers.DPMSolverMultistepScheduler(**LATENT, **options)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True)
    predicted, states = [], {}
    for scheduler in (stock, ours):
        scheduler.set_timesteps(20)
        x = start()
        for i, t in enumerate(scheduler.timesteps[:3]):
            generator = torch.Generator().manual_seed(i)
            out = scheduler.step(network(x, t), t, x, generator=generator)
            if scheduler is ours:
                predicted.insert(0, out.pred_original_sample)
            x = out.prev_sample
        states[scheduler] = x
    nodes = [row.node for row in ours.plan.rows if row.evaluated][:4]
    h1, h0, h = (b.lam - a.lam for a, b in zip(nodes, nodes[1:], strict=False))
    first = (predicted[0] - predicted[1]) * h / h0 - (predicted[1] - predicted[2]) * h / h1
    second = first / ((h0 + h1) / h)
    assert_close(states[stock] - states[ours], -nodes[3].alpha * second, 1e-3)


def test_ddpm_with_a_large_variance_leaves_its_noise_in_the_data():
    """On a grid whose last timestep is not 0 ("trailing") the step to the data adds noise too."""
    options = {"variance_type": "fixed_large", "timestep_spacing": "trailing"}
    stock = diffusers.DDPMScheduler(**LATENT, clip_sample=False, **options)
    ours = PlanScheduler.from_config(stock.config, keep_sampling=True)
    left = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        x = torch.randn(POINT.shape, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            square = float(stock.alphas_cumprod[int(t)])
            eps = (x - square**0.5 * POINT) / (1 - square) ** 0.5
            generator = torch.Generator().manual_seed(int(t))
            x = scheduler.step(eps, t, x, generator=generator).prev_sample
        left.append(float((x - POINT).square().mean().sqrt()))
    assert left[0] > 0.2 and left[1] < 1e-4
