"""PlanScheduler against our own `sample`, against diffusers' schedulers, and as a good citizen."""

from __future__ import annotations

import copy
import json
import pickle

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

import logsnr.adapters.scheduler
from logsnr.adapters import PlanScheduler
from logsnr.adapters.noise_schedules import noise_schedule
from logsnr.adapters.options import solver_options
from logsnr.solvers import SOLVERS, Denoiser, DiscreteVP, Grid, plan_on_grid, sample

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 3, 4, 4)
NUMBERS = torch.Generator().manual_seed(0)
MIX = torch.linalg.qr(torch.randn(48, 48, generator=NUMBERS, dtype=torch.float64))[0]


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """A smooth non-linear stand-in that depends on state and time, at x's precision."""
    level = 0.5 + torch.as_tensor(t, device=x.device).double().reshape(-1, 1).cpu() / 2000
    return torch.tanh(x.double().flatten(1) @ MIX * level).reshape(x.shape).to(x.dtype)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.no_grad()
def drive(scheduler, x: Tensor, begin: int = 0, edit=None, **options) -> Tensor:
    """The loop of every pipeline."""
    for i, t in enumerate(scheduler.timesteps[begin:]):
        x = scheduler.step(network(x, t), t, x, return_dict=False, **options)[0]
        if edit is not None:
            x = edit(i, x)
    return x


def scheduler_for(solver, **config) -> PlanScheduler:
    return PlanScheduler(**{**LATENT, "solver": solver, **config})


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to ``tolerance`` of the largest entry, element by element."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


# --- against our own `sample`


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"dpm-solver-v3"}))
@pytest.mark.parametrize("nfe", [1, 4, 7])
def test_a_pipeline_loop_is_sample(solver, nfe):
    scheduler = scheduler_for(solver)
    scheduler.set_timesteps(nfe)
    assert len(scheduler.timesteps) == nfe
    looped = drive(scheduler, start(torch.float64), generator=torch.Generator().manual_seed(2))

    plan = scheduler._plan(noise_schedule(scheduler.config), scheduler._layout.nodes, nfe, nfe, 0.0)
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
    nodes = scheduler._layout.nodes
    grid = Grid(noise_schedule(scheduler.config), nodes[0].t, nodes[-1].t, explicit=nodes)
    plan = plan_on_grid("dpm-solver++", grid, 6, steps="singlestep", order=2)
    expected = sample(
        Denoiser(network, noise_schedule(scheduler.config)), start(torch.float64), plan
    )
    assert_close(drive(scheduler, start(torch.float64)), expected, 1e-12)


# --- against diffusers, where it is right

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
    ours = PlanScheduler.from_config(stock.config, solver=OURS[kind.__name__[:4]])
    stock.set_timesteps(nfe)
    ours.set_timesteps(nfe)
    assert ours.timesteps.dtype == stock.timesteps.dtype
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    if hasattr(stock, "sigmas"):
        torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=2e-5, atol=0)
    # float32 tables: 1e-5 of a level, up to 8e-4 for karras (its table is built in float32 steps)
    tolerance = 1e-3 if "karras" in case else 3e-5
    assert_close(drive(ours, start()), drive(stock, start()), tolerance)


@pytest.mark.parametrize("nfe", [1, 3, 8, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_parity(nfe, shift):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = PlanScheduler.from_config(stock.config, solver="ddim")
    stock.set_timesteps(nfe)
    ours.set_timesteps(nfe)
    assert ours.timesteps.dtype == torch.float32
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=2e-7, atol=0)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=2e-7, atol=0)
    assert_close(drive(ours, start()), drive(stock, start()), 2e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_and_given_sigmas_follow_flow_euler(kind):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=0.1
    )
    ours = PlanScheduler.from_config(stock.config, solver="unipc")
    sigmas = torch.linspace(1, 1 / 6, 6).tolist()
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=sigmas, mu=1.1)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="mu is missing"):
        ours.set_timesteps(6)


def test_ddim_noise_is_that_of_stock():
    stock = diffusers.DDIMScheduler(**LATENT, clip_sample=False)
    ours = PlanScheduler.from_config(stock.config, solver="ddim")
    results = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(8)
        generator = torch.Generator().manual_seed(3)
        results.append(drive(scheduler, start(), eta=0.7, generator=generator))
    assert_close(*results, 3e-5)


def test_a_list_of_generators_makes_samples_independent_of_their_batch():
    def run(x: Tensor, seeds: list[int]) -> Tensor:
        scheduler = scheduler_for("ddim")
        scheduler.set_timesteps(5)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return drive(scheduler, x, eta=1.0, generator=generators)

    both = run(start(), [5, 6])
    assert_close(run(start()[1:], [6]), both[1:], 1e-6)


# --- what stock gets wrong


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"dpm-solver-v3"}))
@pytest.mark.parametrize("flow", [False, True])
def test_a_point_mass_leaves_no_noise(solver, flow):
    point = torch.full(SHAPE, 0.3)
    config = {"shift": 3.0} if flow else LATENT
    for nfe in range(1, 13):
        scheduler = PlanScheduler(**config, solver=solver, prediction_type="sample")
        scheduler.set_timesteps(nfe)
        x = start()
        for t in scheduler.timesteps:
            x = scheduler.step(point, t, x).prev_sample
        torch.testing.assert_close(x, point, rtol=0, atol=2e-6)


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


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"dpm-solver-v3"}))
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

    The corrected state of a predictor-corrector must be moved as well.
    """
    outputs = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(4)).double()

    @torch.no_grad()
    def run(at: int | None, *, in_place: bool = False) -> Tensor:
        scheduler = scheduler_for(solver, prediction_type="sample", final_sigmas_type="sigma_min")
        scheduler.set_timesteps(8)
        x = start(torch.float64)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(outputs[i], t, x).prev_sample
            if i == at:
                x = x.add_(10.0) if in_place else x + 10.0
        levels.append(scheduler._layout.nodes)
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
    from_there = x
    for t in other.timesteps[3:]:
        from_there = other.step(network(from_there, t), t, from_there).prev_sample
    assert from_there.isfinite().all()
    other.set_timesteps(9)
    drive(other, start())
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    scheduler.set_timesteps(6)
    assert torch.equal(x, drive(scheduler, start()))


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

    flow = PlanScheduler(shift=3.0)
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


# --- configs


def test_the_module_path_that_saved_pipelines_name():
    assert PlanScheduler.__module__ == "logsnr.adapters.scheduler"
    assert logsnr.adapters.scheduler.PlanScheduler is PlanScheduler
    assert all(hasattr(diffusers, name) for name in PlanScheduler._compatibles)


def unset(path) -> set[str]:
    """Keys that a saved config gives as None."""
    return {key for key, value in json.loads(path.read_text()).items() if value is None}


@pytest.mark.parametrize(
    "stock",
    [
        diffusers.DDIMScheduler(**LATENT, set_alpha_to_one=False, clip_sample=False),
        diffusers.DPMSolverMultistepScheduler(**LATENT, euler_at_final=True, solver_order=3),
        diffusers.UniPCMultistepScheduler(**LATENT, disable_corrector=[0]),
        diffusers.EulerDiscreteScheduler(**LATENT, interpolation_type="log_linear"),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, base_shift=0.7),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda stock: type(stock).__name__,
)
def test_keys_of_other_schedulers_survive_the_round_trip(stock, tmp_path):
    ours = PlanScheduler.from_config(stock.config, solver={"name": "unipc", "variant": "bh1"})
    ours.save_pretrained(tmp_path)
    loaded = PlanScheduler.from_pretrained(tmp_path)
    assert loaded.config.solver == {"name": "unipc", "variant": "bh1"}
    back = type(stock).from_config(loaded.config)
    for key, value in stock.config.items():
        if not key.startswith("_"):
            assert back.config[key] == value, key
    for scheduler in (ours, loaded, stock, back):
        scheduler.set_timesteps(5)
    assert loaded.timesteps.equal(ours.timesteps) and back.timesteps.equal(stock.timesteps)
    assert type(stock).__name__ == "DDIMScheduler" or drive(loaded, start()).equal(
        drive(ours, start())
    )
    assert "timestep_spacing" not in unset(tmp_path / "scheduler_config.json")


def test_the_config_is_read_when_timesteps_are_set():
    # Stable Diffusion's constructors replace the config after the scheduler was built.
    scheduler = scheduler_for("ddim")
    scheduler._internal_dict = FrozenDict({**scheduler.config, "steps_offset": 1})
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 1


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_stock_option_values_map_to_every_solver(name):
    for solver_type in ("midpoint", "heun", "logrho", "bh1", "bh2", None):
        scheduler = scheduler_for(name, solver_type=solver_type, predict_x0=True)
        options = solver_options(scheduler.config, 20, 20, 0.0)
        assert set(options) <= set(SOLVERS[name].defaults)


@pytest.mark.parametrize(
    "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
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


# --- bad input


def bad_step(**changes):
    def call():
        scheduler = scheduler_for("unipc")
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[0]
        scheduler.step(**{"model_output": start(), "timestep": t, "sample": start(), **changes})

    return call


def bad_timesteps(*args, config=None, **kwargs):
    options = {**LATENT, "solver": "unipc", **(config or {})}
    return lambda: PlanScheduler(**options).set_timesteps(*args, **kwargs)


def steps_too_many():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(2)
    drive(scheduler, start())
    scheduler.step(start(), 0, start())


FLOW = {"shift": 1.0}
BAD = {
    "unknown solver": (lambda: scheduler_for("eulr"), "solver='eulr'.*unipc"),
    "mapping without name": (lambda: scheduler_for({"order": 2}), "solver=.*'name'"),
    "unknown option": (
        bad_timesteps(5, config={"solver": {"name": "ddim", "odrer": 2}}),
        "odrer=2.*option of 'ddim'.*eta",
    ),
    "unknown key": (
        lambda: PlanScheduler.from_config(PlanScheduler().config, solver_odrer=2),
        "solver_odrer=2.*solver_order",
    ),
    "solver_order": (bad_timesteps(5, config={"solver_order": 0}), "solver_order=0"),
    "order too high": (
        bad_timesteps(9, config={"solver": "dpm-solver++", "solver_order": 4}),
        "order=4",
    ),
    "solver_type": (bad_timesteps(5, config={"solver_type": "bh3"}), "solver_type='bh3'.*bh2"),
    "prediction_type": (
        bad_timesteps(5, config={"prediction_type": "noise"}),
        "prediction_type='noise'.*epsilon",
    ),
    "beta_schedule": (
        bad_timesteps(5, config={"beta_schedule": "cosine"}),
        "beta_schedule='cosine'.*squaredcos",
    ),
    "timestep_spacing": (
        bad_timesteps(5, config={"timestep_spacing": "log"}),
        "timestep_spacing='log'.*trailing",
    ),
    "final_sigmas_type": (
        bad_timesteps(5, config={"final_sigmas_type": "one"}),
        "final_sigmas_type='one'.*sigma_min",
    ),
    "nothing given": (bad_timesteps(), "num_inference_steps is missing"),
    "no steps": (bad_timesteps(0), "num_inference_steps=0"),
    "half steps": (bad_timesteps(2.5), "num_inference_steps=2.5"),
    "more steps than trained": (bad_timesteps(1001), "num_inference_steps=1001.*1000"),
    "rising timesteps": (bad_timesteps(timesteps=[100, 500]), "timesteps=.*falling"),
    "timesteps out of range": (bad_timesteps(timesteps=[1000, 500]), r"timesteps=.*\[0, 999\]"),
    "NaN in timesteps": (bad_timesteps(timesteps=[float("nan")]), "timesteps=.*finite"),
    "rising sigmas": (bad_timesteps(sigmas=[1.0, 2.0, 0.0]), "sigmas=.*falling"),
    "negative sigmas": (bad_timesteps(sigmas=[1.0, -1.0]), "sigmas has -1.0"),
    "flow sigmas": (bad_timesteps(sigmas=[1.5, 0.5], config=FLOW), "sigmas give.*[0, 1]"),
    "wrong count": (bad_timesteps(3, timesteps=[9, 8]), "num_inference_steps=3.*2"),
    "negative shift": (bad_timesteps(3, config={"shift": -1.0}), "shift=-1.0"),
    "before set_timesteps": (
        lambda: scheduler_for("unipc").step(start(), 0, start()),
        "before set_timesteps",
    ),
    "after the end": (steps_too_many, "after the run ended"),
    "output shape": (bad_step(model_output=start()[:, :1]), "model_output has shape"),
    "integer sample": (bad_step(sample=start().long()), "sample is torch.int64"),
    "device": (bad_step(model_output=start().to("meta")), "model_output is on meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_the_network_is_called(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_models_of_other_kinds_are_refused():
    edm = diffusers.EDMEulerScheduler()
    video = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True
    )
    for stock in (edm, video):
        with pytest.raises(ValueError, match="not supported"):
            PlanScheduler.from_config(stock.config, solver="unipc").set_timesteps(5)


def test_defaults_that_describe_the_model_are_taken_over():
    stock = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True)
    ours = PlanScheduler.from_config(stock.config, solver="ddim", timestep_spacing="trailing")
    expected = stock.alphas_cumprod.double()
    torch.testing.assert_close(ours.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-9)
