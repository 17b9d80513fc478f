"""PlanScheduler against our own `sample`, and as a good citizen of pipelines."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from scheduler_cases import (
    EDM,
    LATENT,
    SHAPE,
    assert_close,
    drive,
    network,
    scheduler_for,
    start,
)
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.solvers import SOLVERS, Denoiser, Grid, plan_on_grid, sample

# --- against our own `sample`


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("nfe", [1, 4, 7])
def test_a_pipeline_loop_is_sample(solver, nfe):
    scheduler = scheduler_for(solver)
    scheduler.set_timesteps(nfe)
    assert len(scheduler.timesteps) == nfe
    looped = drive(scheduler, start(torch.float64), generator=torch.Generator().manual_seed(2))

    plan = scheduler._evaluations.plan(0, scheduler._nodes, 0.0)
    told = iter(scheduler.timesteps)
    denoise = Denoiser(lambda x, t: network(x, next(told)), noise_schedule(scheduler.config))
    noise = torch.Generator().manual_seed(2)
    assert_close(looped, sample(denoise, start(torch.float64), plan, noise=noise), 1e-12)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc", "heun"])
def test_float32_is_float64_to_rounding(solver):
    scheduler = scheduler_for(solver)
    results = []
    for dtype in (torch.float32, torch.float64):
        scheduler.set_timesteps(8)
        results.append(drive(scheduler, start(dtype)).double())
    assert_close(*results, 2e-6)


def test_options_without_a_diffusers_key_come_through_the_mapping():
    scheduler = scheduler_for({"name": "dpm-solver++", "steps": "singlestep"}, solver_order=2)
    scheduler.set_timesteps(6)
    nodes = scheduler._evaluations.layout.nodes
    grid = Grid(noise_schedule(scheduler.config), nodes[0].t, nodes[-1].t, explicit=nodes)
    plan = plan_on_grid("dpm-solver++", grid, 6, steps="singlestep", order=2)
    expected = sample(
        Denoiser(network, noise_schedule(scheduler.config)), start(torch.float64), plan
    )
    assert_close(drive(scheduler, start(torch.float64)), expected, 1e-12)


# --- noise and ends


def test_a_list_of_generators_makes_samples_independent_of_their_batch():
    def run(x: Tensor, seeds: list[int]) -> Tensor:
        scheduler = scheduler_for("ddim")
        scheduler.set_timesteps(5)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return drive(scheduler, x, eta=1.0, generator=generators)

    both = run(start(), [5, 6])
    assert_close(run(start()[1:], [6]), both[1:], 1e-6)


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_ddim_ends_where_its_config_says_on_every_spacing(spacing):
    # A model that knows x0 and eps stays on its path, so the end shows the last node.
    scheduler = scheduler_for("ddim", timestep_spacing=spacing, set_alpha_to_one=False)
    scheduler.set_timesteps(7)
    x0, eps = start(torch.float64), start(torch.float64).flip(0)
    alphas = scheduler.alphas_cumprod.double().sqrt()
    first = int(scheduler.timesteps[0])
    x = alphas[first] * x0 + (1 - alphas[first] ** 2).sqrt() * eps
    for t in scheduler.timesteps:
        x = scheduler.step(eps, t, x).prev_sample
    assert_close(x, alphas[0] * x0 + (1 - alphas[0] ** 2).sqrt() * eps, 1e-6)


def test_zero_terminal_snr_is_exact_and_refuses_epsilon():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = scheduler_for("unipc", prediction_type="v_prediction", **options)
    scheduler.set_timesteps(6)
    assert scheduler.sigmas[0] == float("inf") and scheduler.alphas_cumprod[-1] == 0
    assert drive(scheduler, start()).isfinite().all()
    with pytest.raises(ValueError, match="prediction_type.*zero terminal SNR"):
        scheduler_for("unipc", prediction_type="epsilon", **options).set_timesteps(6)


# --- starting in the middle, edits, reuse


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("begin", [1, 2, 5, 7])
def test_a_slice_is_found_by_index_by_view_and_by_value(solver, begin):
    @torch.no_grad()
    def run(how: str) -> tuple[Tensor, list[int], int | None]:
        scheduler = scheduler_for(solver)
        scheduler.set_timesteps(8)
        if how == "index":
            scheduler.set_begin_index(begin)
        x, seen = start(), []
        for t in scheduler.timesteps[begin:]:
            seen.append(int(t))
            handed = t.clone() if how == "value" else t
            step = scheduler.step(network(x, t), handed, x, variance_noise=torch.zeros(SHAPE))
            x = step.prev_sample
        return x, seen, scheduler.step_index

    expected, times, last = run("index")
    assert len(times) == 8 - begin and last == 8
    ways = ["view"] if len(set(times)) < len(times) else ["view", "value"]
    for how in ways:  # where times repeat, a value does not say which is meant
        x, seen, last = run(how)
        assert torch.equal(x, expected) and seen == times and last == 8


def test_a_slice_is_the_run_from_there():
    scheduler = scheduler_for("unipc", solver_order=3)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    sliced = drive(scheduler, start(), begin=5)
    again = scheduler_for("unipc", solver_order=3)
    again.set_timesteps(timesteps=scheduler.timesteps[5:].tolist())
    assert torch.equal(sliced, drive(again, start()))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["dpm-solver++", "unipc", "dpm-solver"])
def test_fewer_evaluations_than_the_order_lower_the_order(solver, order):
    scheduler = scheduler_for(solver, solver_order=order)
    for nfe in (1, 2, 3):
        scheduler.set_timesteps(nfe)
        assert drive(scheduler, start()).isfinite().all()


def test_duplicated_timesteps_take_no_step():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=[900, 600, 600, 300])
    doubled = drive(scheduler, start(torch.float64))
    scheduler.set_timesteps(timesteps=[900, 600, 300])
    assert doubled.isfinite().all()
    assert_close(doubled, drive(scheduler, start(torch.float64)), 0.2)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc"])
def test_an_edit_between_steps_moves_the_result_along_the_linear_part(solver):
    """For a model that ignores x, an edit d at the state of node s arrives as (sigma_t/sigma_s) d.

    The corrected state of a predictor-corrector must be moved as well. An edit leaves little of
    the correction itself (tests/solvers/test_edits.py), so there is none of it here.
    """
    outputs = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(4)).double()
    if solver == "unipc":
        outputs = outputs[:1].expand(8, *SHAPE)

    @torch.no_grad()
    def run(at: int | None, *, in_place: bool = False) -> Tensor:
        scheduler = scheduler_for(solver, prediction_type="sample", final_sigmas_type="sigma_min")
        scheduler.set_timesteps(8)
        x = start(torch.float64)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(outputs[i], t, x).prev_sample
            if i == at:
                x = x.add_(10.0) if in_place else x + 10.0
        levels.append(scheduler._evaluations.layout.nodes)
        return x

    levels: list = []
    plain = run(None)
    for at in range(7):
        nodes = levels[0]
        expected = plain + 10.0 * nodes[-1].sigma / nodes[at + 1].sigma
        assert_close(run(at), expected, 1e-12)
        assert_close(run(at, in_place=True), expected, 1e-12)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc", "heun"])
def test_reuse_gives_the_same_answer(solver):
    scheduler = scheduler_for(solver)
    results = []
    for _ in range(3):
        scheduler.set_timesteps(6)
        results.append(drive(scheduler, start()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_copies_do_not_share_a_run():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(6)
    x = start()
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert pickle.dumps(scheduler)  # a live run does not keep it from another process
    other = copy.deepcopy(scheduler)
    assert other.step_index == 3
    other.set_timesteps(9)
    drive(other, start())
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    scheduler.set_timesteps(6)
    assert torch.equal(x, drive(scheduler, start()))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("config", [{}, {"thresholding": True}, {**EDM, "thresholding": True}])
@pytest.mark.parametrize(
    "solver", ["ddim", "unipc", "heun", "dpm-solver++", {"name": "ddim", "eta": 1.0}], ids=str
)
def test_a_copy_made_in_the_middle_goes_on_with_the_run(solver, config, way, dtype):
    """Original and copy give the bits of a run that was never copied, whatever the other does."""

    def steps(scheduler, x, begin, end):
        for i in range(begin, end):
            t, generator = scheduler.timesteps[i], torch.Generator().manual_seed(i)
            x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        return x

    scheduler = scheduler_for(solver, **config)
    scheduler.set_timesteps(6)
    whole = steps(scheduler, start(dtype), 0, 6)
    scheduler.set_timesteps(6)
    half = steps(scheduler, start(dtype), 0, 3)
    other = COPIES[way](scheduler)
    assert torch.equal(steps(other, half.clone(), 3, 6), whole)
    assert torch.equal(steps(scheduler, half, 3, 6), whole)


def test_two_schedulers_interleaved_do_not_disturb_each_other():
    alone = scheduler_for("unipc")
    alone.set_timesteps(6)
    expected = drive(alone, start())
    pair = [scheduler_for("unipc"), scheduler_for("unipc")]
    states = [start(), start()]
    for scheduler in pair:
        scheduler.set_timesteps(6)
    for i in range(6):
        for k, scheduler in enumerate(pair):
            t = scheduler.timesteps[i]
            states[k] = scheduler.step(network(states[k], t), t, states[k]).prev_sample
    assert torch.equal(states[0], expected) and torch.equal(states[1], expected)


# --- types, gradients, calling conventions


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++"])
def test_the_dtype_of_the_sample_comes_back(dtype, solver):
    scheduler = scheduler_for(solver)
    scheduler.set_timesteps(5)
    x = start(dtype)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).to(torch.bfloat16), t, x).prev_sample
        assert x.dtype == dtype
    assert x.isfinite().all()


def test_half_precision_rounds_the_result_only():
    scheduler = scheduler_for("unipc", prediction_type="sample")
    target = start().half()
    scheduler.set_timesteps(20)
    x = (start() * 3).half()
    for t in scheduler.timesteps:
        x = scheduler.step(target, t, x).prev_sample
    torch.testing.assert_close(x, target, rtol=1e-3, atol=1e-3)


def test_inference_mode():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(5)
    expected = drive(scheduler, start())
    scheduler.set_timesteps(5)
    with torch.inference_mode():
        assert torch.equal(drive(scheduler, start()), expected)


def test_gradients_flow_through_steps():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(4)
    x = first = start(torch.float64).requires_grad_()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    (gradient,) = torch.autograd.grad(x.sum(), first)
    step = 1e-6 * torch.ones_like(first)
    ends = []
    for sign in (1, -1):
        scheduler.set_timesteps(4)
        ends.append(drive(scheduler, first.detach() + sign * step).sum())
    assert float(gradient.sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_step_takes_keywords_and_what_other_schedulers_take():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    result = scheduler.step(
        model_output=network(start(), t), timestep=t, sample=start(), s_churn=0.0, eta=0.0
    )
    assert torch.equal(result.prev_sample, result[0])
    assert scheduler.scale_model_input(start(), t).equal(start())
    assert len(scheduler) == 1000 and scheduler.order == 1 and scheduler.init_noise_sigma == 1.0


def test_add_noise_is_the_forward_process():
    stock = diffusers.DDPMScheduler(**LATENT)
    scheduler = scheduler_for("unipc")
    noise = start().flip(0)
    timesteps = torch.tensor([3, 801])
    expected = stock.add_noise(start(), noise, timesteps)
    torch.testing.assert_close(scheduler.add_noise(start(), noise, timesteps), expected)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        expected = stock.add_noise(start(), noise, t.reshape(1))
        torch.testing.assert_close(scheduler.scale_noise(start(), t.reshape(1), noise), expected)

    flow = PlanScheduler(shift=3.0, timestep_spacing="linspace")
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for item in (flow, euler):
        item.set_timesteps(5)
        item.set_begin_index(2)
    expected = euler.scale_noise(start(), euler.timesteps[2:3], noise)
    torch.testing.assert_close(flow.scale_noise(start(), flow.timesteps[2:3], noise), expected)


def test_learned_variances_are_left_out():
    scheduler = scheduler_for("ddim", variance_type="learned_range")
    plain = scheduler_for("ddim")
    results = []
    for item, copies in ((scheduler, 2), (plain, 1)):
        item.set_timesteps(3)
        t = item.timesteps[0]
        output = torch.cat([network(start(), t)] * copies, dim=1)
        results.append(item.step(output, t, start()).prev_sample)
    assert torch.equal(*results)


# --- copies of times, threads, split runs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_rounded_copy_of_a_time_is_found(dtype):
    scheduler = PlanScheduler(shift=3.0, solver="unipc")
    for begin in range(6):
        scheduler.set_timesteps(6)
        copied = scheduler.timesteps[begin].to(dtype)
        scheduler.step(start(), copied, start())
        assert scheduler.step_index == begin + 1


def test_repeated_times_are_told_apart_by_the_view():
    for handed in (lambda t: t, lambda t: t[None], lambda t: t.expand(3)):
        scheduler = scheduler_for("unipc")
        scheduler.set_timesteps(timesteps=[900, 600, 600, 600, 300])
        scheduler.step(start(), handed(scheduler.timesteps[3]), start())
        assert scheduler.step_index == 4


def test_a_copied_scheduler_finds_its_own_times():
    scheduler = scheduler_for("heun")
    scheduler.set_timesteps(timesteps=[900, 600, 600, 300, 100])
    other = copy.deepcopy(scheduler)
    other.step(start(), other.timesteps[2], start())
    assert other.step_index == 3 and scheduler.step_index is None


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++"])
def test_base_and_refiner_share_one_grid(solver):
    """With denoising_end / denoising_start: what one leaves off, the other takes up."""
    whole, base, refiner = (scheduler_for(solver, timestep_spacing="leading") for _ in range(3))
    for scheduler in (whole, base, refiner):
        scheduler.set_timesteps(10)
    expected = drive(whole, start(torch.float64))
    x = start(torch.float64)
    for t in base.timesteps[:7]:
        x = base.step(network(x, t), t, x).prev_sample
    refiner.set_begin_index(7)
    joined = drive(refiner, x, begin=7)
    # The refiner starts with an empty history, so only a one-step method notices nothing.
    assert_close(joined, expected, 1e-12 if solver == "ddim" else 0.05)


def test_two_threads_on_two_copies():
    first = scheduler_for("unipc")
    first.set_timesteps(40)
    expected = drive(first, start())
    copies = [copy.deepcopy(first) for _ in range(2)]

    def work(scheduler: PlanScheduler) -> list[Tensor]:
        results = []
        for _ in range(3):
            scheduler.set_timesteps(40)
            results.append(drive(scheduler, start()))
        return results

    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(work, copies):
            assert all(torch.equal(x, expected) for x in results)


def test_a_begin_index_set_before_the_first_step_counts_and_the_last_one_wins():
    scheduler = scheduler_for("dpm-solver++")
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(2)
    scheduler.set_begin_index(5)
    result = drive(scheduler, start(), begin=5)
    assert scheduler.step_index == 8 and scheduler.begin_index == 5
    scheduler.set_timesteps(8)
    assert scheduler.begin_index is None and scheduler.step_index is None
    assert torch.equal(drive(scheduler, start(), begin=5), result)
