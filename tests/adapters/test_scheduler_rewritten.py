"""What is written into timesteps, sigmas and the tables of the model is followed, or refused.

Followed means: the numbers of a scheduler that was given the same values by ``set_timesteps``, or
of a stock scheduler that was written to in the same way.
"""

from __future__ import annotations

import copy
import pickle
from itertools import product
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scheduler_cases import EDM, LATENT, VIDEO, assert_close, drive, network, scheduler_for, start
from torch import Tensor

from logsnr.adapters import PlanScheduler

STEPS = {**LATENT, "timestep_spacing": "linspace"}
KINDS: dict[str, tuple[dict[str, Any], list[float]]] = {
    # config, and times that are not those of eight steps
    "steps": (STEPS, [990, 870, 640, 500, 333, 217, 100, 20]),
    "flow": ({"shift": 3.0}, [1000.0, 870.5, 640.0, 500.25, 333.0, 217.0, 100.0, 20.0]),
    "flow_inverted": (
        {"shift": 1.0, "invert_sigmas": True},
        [0.0, 120.5, 240.0, 400.0, 600.0, 750.0, 880.0, 990.0],
    ),
    "edm": (EDM, [1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.75, -1.5]),
    "video": (VIDEO, [1.5, 1.0, 0.75, 0.5, 0.0, -0.25, -0.75, -1.25]),
}
SOLVERS = ["ddim", "unipc", "dpm-solver++"]


def given_times(config: dict[str, Any], solver: Any, times: Any) -> PlanScheduler:
    scheduler = PlanScheduler(**config, solver=solver)
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def laid_out(config: dict[str, Any], solver: Any, n: int = 8) -> PlanScheduler:
    scheduler = PlanScheduler(**config, solver=solver)
    scheduler.set_timesteps(n)
    return scheduler


def as_whole(scheduler: PlanScheduler, times: list[float]) -> Tensor:
    """The times as the scheduler's own type, which is what can be written into its tensor."""
    return torch.tensor(times, dtype=torch.float64).to(scheduler.timesteps.dtype)


def loop(scheduler: Any, times: Any = None) -> Tensor:
    x = start(torch.float64)
    with torch.no_grad():
        for t in scheduler.timesteps if times is None else times:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
    return x


# --- times


def assign(scheduler: PlanScheduler, times: list[float]) -> None:
    scheduler.timesteps = as_whole(scheduler, times)


def copy_into(scheduler: PlanScheduler, times: list[float]) -> None:
    scheduler.timesteps.copy_(as_whole(scheduler, times))


def one_by_one(scheduler: PlanScheduler, times: list[float]) -> None:
    for k, view in enumerate(scheduler.timesteps.unbind()):
        view.fill_(as_whole(scheduler, times)[k])


def by_list(scheduler: PlanScheduler, times: list[float]) -> None:
    scheduler.timesteps = times  # type: ignore[assignment]


def by_array(scheduler: PlanScheduler, times: list[float]) -> None:
    scheduler.timesteps = np.array(times)  # type: ignore[assignment]


WRITES = [assign, copy_into, one_by_one, by_list, by_array]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_times_that_are_written_are_times_that_were_given(solver, kind, write):
    config, times = KINDS[kind]
    scheduler = laid_out(config, solver)
    write(scheduler, times)
    expected = given_times(config, solver, scheduler.timesteps)
    assert_close(loop(scheduler), loop(expected), 1e-12)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 8
    assert torch.equal(scheduler.sigmas, expected.sigmas)


@pytest.mark.parametrize("spacing", ["auto", "karras", "logsnr", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_other_time_makes_them_a_list_that_was_given(solver, spacing):
    """Also on grids whose nodes lie between the training steps that the network is told."""
    scheduler = laid_out({**LATENT, "timestep_spacing": spacing}, solver)
    scheduler.timesteps[4] += 3
    expected = given_times(LATENT, solver, scheduler.timesteps)
    assert_close(loop(scheduler), loop(expected), 1e-12)
    # In the middle of a run its own nodes are kept, so that the state is still at its level.
    scheduler, x = laid_out({**LATENT, "timestep_spacing": spacing}, solver), start()
    nodes = scheduler._nodes[:3]
    with torch.no_grad():
        for k in range(8):
            t = scheduler.timesteps[k]
            x = scheduler.step(network(x, t), t, x).prev_sample
            if k == 1:
                scheduler.timesteps[4] += 3
    assert scheduler._nodes[:3] == nodes and scheduler._nodes[3:] == expected._nodes[3:]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_list_of_another_length(solver, count):
    times = torch.linspace(990, 15, count).round().long()
    scheduler = laid_out(STEPS, solver)
    scheduler.timesteps = times
    assert torch.equal(loop(scheduler), loop(given_times(STEPS, solver, times.tolist())))
    assert scheduler.num_inference_steps == count and len(scheduler.sigmas) == count + 1


@pytest.mark.parametrize("change", ["one", "all", "another", "data", "numpy"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_entry_and_all_of_them(solver, change):
    scheduler = laid_out(STEPS, solver)
    if change == "one":
        scheduler.timesteps[3] -= 40
    elif change == "all":
        scheduler.timesteps.mul_(9).div_(10, rounding_mode="floor")
    elif change == "data":
        scheduler.timesteps.data[3] -= 40
    elif change == "numpy":
        scheduler.timesteps.numpy()[3] -= 40
    else:
        scheduler.timesteps = scheduler.timesteps.clamp(min=7) - 7 + 3
    times = scheduler.timesteps.tolist()
    assert torch.equal(loop(scheduler), loop(given_times(STEPS, solver, times)))


def test_in_inference_mode_too():
    with torch.inference_mode():
        scheduler = laid_out(STEPS, "unipc")
        scheduler.timesteps[3] -= 40
        result = loop(scheduler)
    assert torch.equal(result, loop(given_times(STEPS, "unipc", scheduler.timesteps.tolist())))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_hears_what_was_written_before_and_after(way):
    scheduler = laid_out(STEPS, "unipc")
    scheduler.timesteps[3] -= 40
    other = copy.deepcopy(scheduler) if way == "deepcopy" else pickle.loads(pickle.dumps(scheduler))
    other.timesteps[5] -= 10
    expected = given_times(STEPS, "unipc", other.timesteps.tolist())
    assert torch.equal(loop(other), loop(expected))
    expected = given_times(STEPS, "unipc", scheduler.timesteps.tolist())
    assert torch.equal(loop(scheduler), loop(expected))


SLICES = list(product([*SOLVERS, "heun"], ["view", "copy"], [False, True]))


@pytest.mark.parametrize("config", [STEPS, {**LATENT, "use_karras_sigmas": True}, {"shift": 3.0}])
@pytest.mark.parametrize(
    ("solver", "how", "both"),
    # Of a method with two evaluations a step, nothing but a view of timesteps is told apart.
    [case for case in SLICES if case[0] != "heun" or case[1:] == ("view", False)],
)
def test_a_slice_is_the_run_from_there(solver, config, how, both):
    scheduler, expected = laid_out(config, solver), laid_out(config, solver)
    expected.set_begin_index(3)
    shown = scheduler.timesteps[3:], scheduler.sigmas[3:]
    shown = shown if how == "view" else tuple(each.clone() for each in shown)
    scheduler.timesteps = shown[0]
    if both:
        scheduler.sigmas = shown[1]
    result = loop(scheduler)
    assert_close(result, loop(expected, expected.timesteps[3:]), 1e-6 if both else 0.0)
    assert scheduler.step_index == 5
    scheduler.timesteps, scheduler.sigmas = shown[0][1:], shown[1][1:] if both else scheduler.sigmas
    scheduler.set_begin_index(0)
    expected.set_begin_index(4)
    again, truth = loop(scheduler), loop(expected, expected.timesteps[4:])
    assert_close(again, truth, 1e-6 if both else 0.0)
    scheduler.timesteps, scheduler.sigmas = shown[0], shown[1] if both else scheduler.sigmas
    # What is counted from the new beginning
    scheduler.set_begin_index(1)
    expected.set_begin_index(4)
    again, truth = loop(scheduler, scheduler.timesteps[1:]), loop(expected, expected.timesteps[4:])
    assert_close(again, truth, 1e-6 if both else 0.0)


def test_a_copied_slice_keeps_nodes_that_are_told_alike():
    """A fine Karras grid tells the network one training step several times."""
    config = {**LATENT, "use_karras_sigmas": True}
    scheduler, expected = laid_out(config, "unipc", 60), laid_out(config, "unipc", 60)
    scheduler.timesteps = scheduler.timesteps[50:].clone()
    assert len(scheduler.timesteps.unique()) < 10
    assert torch.equal(loop(scheduler), loop(expected, expected.timesteps[50:]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_second_entry(solver):
    scheduler = laid_out(STEPS, solver)
    times = scheduler.timesteps[::2]
    scheduler.timesteps = times
    assert torch.equal(loop(scheduler), loop(given_times(STEPS, solver, times.tolist())))


@pytest.mark.parametrize("change", ["clone", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_times_in_another_tensor_change_nothing(kind, change):
    config, _ = KINDS[kind]
    expected = laid_out({**config, "use_karras_sigmas": True}, "unipc", 5)
    told = iter(expected.timesteps.tolist())
    scheduler = laid_out({**config, "use_karras_sigmas": True}, "unipc", 5)
    scheduler.timesteps = (
        scheduler.timesteps.clone()
        if change == "clone"
        else scheduler.timesteps.to(getattr(torch, change))
    )
    if change != "clone":
        scheduler.sigmas = scheduler.sigmas.to(getattr(torch, change))
    x = y = start()
    for t, other in zip(scheduler.timesteps, expected.timesteps, strict=True):
        output = network(x, next(told))
        x = scheduler.step(output, t, x).prev_sample
        y = expected.step(output, other, y).prev_sample
    assert torch.equal(x, y)


@pytest.mark.parametrize("solver", SOLVERS)
def test_times_that_are_written_while_a_run_is_under_way(solver):
    """What was evaluated stays; from here on a run goes through the new times."""
    scheduler, x = laid_out(STEPS, solver), start()
    with torch.no_grad():
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        scheduler.timesteps[4:].sub_(30).clamp_(min=5)
        expected, y = given_times(STEPS, solver, scheduler.timesteps.tolist()), x.clone()
        expected.set_begin_index(3)
        for k in range(3, 8):
            t = scheduler.timesteps[k]
            x = scheduler.step(network(x, t), t, x).prev_sample
            y = expected.step(network(y, t), expected.timesteps[k], y).prev_sample
    assert torch.equal(x, y) and scheduler.step_index == 8


def test_a_state_of_another_level_is_refused():
    scheduler, x = laid_out(STEPS, "unipc"), start()
    x = scheduler.step(network(x, 999), scheduler.timesteps[0], x).prev_sample
    scheduler.timesteps[1] -= 60
    with pytest.raises(ValueError, match="sample is a state of more noise"):
        scheduler.step(network(x, 800), scheduler.timesteps[1], x)


BAD_TIMES = {
    "rising": ([100, 200, 300, 400, 500, 600, 700, 800], "timesteps=.*falling"),
    "beyond": ([1999, 870, 640, 500, 333, 217, 100, 20], r"timesteps has 1999.*\[0, 999\]"),
    "negative": ([999, 870, 640, 500, 333, 217, 100, -20], r"timesteps has -20.*\[0, 999\]"),
    "not a number": ([999.0, 870, 640, 500, 333, 217, 100, float("nan")], "timesteps has nan"),
    "rows": ([[999, 500]], r"timesteps has shape \(1, 2\)"),
    "none": ([], r"timesteps has shape \(0,\)"),
    "words": (["a", "b"], "timesteps=.*numbers"),
}


@pytest.mark.parametrize("case", BAD_TIMES)
def test_times_that_no_run_can_follow(case):
    times, message = BAD_TIMES[case]
    scheduler = laid_out(STEPS, "unipc")
    scheduler.timesteps = times if case == "words" else torch.tensor(times)
    with pytest.raises(ValueError, match=message):
        scheduler.step(start(), 999, start())


@pytest.mark.parametrize("solver", ["heun", "dpm2"])
def test_solvers_of_several_evaluations_a_step_refuse_times_they_do_not_go_through(solver):
    scheduler = laid_out(STEPS, solver)
    scheduler.timesteps[0] -= 5
    with pytest.raises(ValueError, match=f"timesteps.*{solver}.*go through"):
        scheduler.step(start(), scheduler.timesteps[0], start())


# --- levels


@pytest.mark.parametrize("kind", KINDS)
def test_sigmas_alone_are_refused(kind):
    for write in (
        lambda s: setattr(s, "sigmas", s.sigmas * 0.9),
        lambda s: s.sigmas[2].mul_(0.9),
        lambda s: setattr(s, "sigmas", s.sigmas[2:]),
    ):
        scheduler = laid_out(KINDS[kind][0], "unipc")
        write(scheduler)
        with pytest.raises(ValueError, match=r"sigmas(\[|.* has 7 entries)"):
            scheduler.step(start(), scheduler.timesteps[0], start())


@pytest.mark.parametrize("kind", ["steps", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_end_can_be_written_alone(solver, kind):
    """A model that knows x0 and eps stays on its path, so the sample shows where the run ends."""
    config = {**KINDS[kind][0], "prediction_type": "sample"}
    scheduler = laid_out(config, solver)
    scheduler.sigmas[-1] = 0.005
    x0, eps = start(torch.float64), start(torch.float64).flip(0)
    x = scheduler.add_noise(x0, eps, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(x0, t, x).prev_sample
    alpha = 0.995 if kind == "flow" else 1 / (1 + 0.005**2) ** 0.5
    assert_close(x, alpha * x0 + (1 - alpha if kind == "flow" else 0.005 * alpha) * eps, 1e-6)


def test_times_and_levels_together_are_those_of_stock_euler():
    """In units of the data plus noise, as stock has its states: x / alpha."""
    config = {**LATENT, "timestep_spacing": "linspace"}
    stock = diffusers.EulerDiscreteScheduler(**config)
    ours = PlanScheduler(**config, solver="ddim")
    times = torch.tensor([980.0, 800.0, 555.0, 321.0, 111.0])
    sigmas = torch.tensor([14.0, 6.5, 2.5, 1.0, 0.3, 0.02])  # not at all those of the times
    for scheduler in (stock, ours):
        scheduler.set_timesteps(5)
        scheduler.timesteps, scheduler.sigmas = times.clone(), sigmas.clone()
    x, y = start() * 14, start() * 14 / (1 + 14**2) ** 0.5
    for t, next_level in zip(times, sigmas[1:].tolist(), strict=True):
        output = network(stock.scale_model_input(x, t), t)
        x = stock.step(output, t, x).prev_sample
        y = ours.step(output, t, y).prev_sample
        assert_close(y * (1 + next_level**2) ** 0.5, x, 1e-5)


@pytest.mark.parametrize("shift", [0.6, 2.5])
def test_a_flow_model_whose_levels_and_times_are_shifted_by_hand(shift):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    ours = PlanScheduler(shift=1.0, solver="ddim")
    t = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0])
    for scheduler in (stock, ours):
        scheduler.set_timesteps(6)
        scheduler.sigmas = shift * t / (1 + (shift - 1) * t)
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    assert_close(drive(ours, start()), drive(stock, start()), 1e-5)


# --- the number of steps


def test_the_number_of_steps_is_the_runs():
    scheduler = laid_out(STEPS, "ddim")
    scheduler.num_inference_steps = 4
    with pytest.raises(ValueError, match="num_inference_steps=4.*8.*set_timesteps"):
        scheduler.step(start(), scheduler.timesteps[0], start())
    scheduler.timesteps, scheduler.num_inference_steps = scheduler.timesteps[4:], 4
    expected = laid_out(STEPS, "ddim")
    assert torch.equal(loop(scheduler), loop(expected, expected.timesteps[4:]))


# --- the noise schedule

TABLES = {
    "steeper": lambda table: table**1.5,
    "zero terminal SNR": lambda table: torch.cat([table[:-1], table.new_zeros(1)]),
    "on another grid": lambda table: torch.linspace(0.999, 0.01, 1000),
}
WHEN = ["before", "after", "in place", "in place after"]


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_another_alphas_cumprod_is_that_of_stock_ddim(table, when, eta):
    config = {**LATENT, "timestep_spacing": "leading", "prediction_type": "v_prediction"}
    stock = diffusers.DDIMScheduler(**config, clip_sample=False)
    ours = PlanScheduler(**config, solver="ddim")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        if when == "before":
            scheduler.alphas_cumprod = TABLES[table](scheduler.alphas_cumprod)
            scheduler.set_timesteps(10)
        elif when == "after":
            scheduler.alphas_cumprod = TABLES[table](scheduler.alphas_cumprod)
        else:
            if when == "in place":
                scheduler.set_timesteps(10)
            scheduler.alphas_cumprod.copy_(TABLES[table](scheduler.alphas_cumprod.clone()))
    results = []
    for scheduler in (stock, ours):
        options = {"eta": eta, "variance_noise": start().flip(0)}
        results.append(drive(scheduler, start(), **options))
        timesteps = torch.tensor([3, 801])
        results.append(scheduler.add_noise(start(), start().flip(0), timesteps))
    assert_close(results[2], results[0], 3e-4)
    assert_close(results[3], results[1], 3e-6)


@pytest.mark.parametrize("key", ["betas", "alphas"])
def test_other_betas_are_another_alphas_cumprod(key):
    scheduler, expected = scheduler_for("unipc"), scheduler_for("unipc")
    betas = scheduler.betas * 1.2
    setattr(scheduler, key, betas if key == "betas" else 1 - betas)
    expected.alphas_cumprod = torch.cumprod(1 - betas.double(), 0)
    results = []
    for item in (scheduler, expected):
        item.set_timesteps(6)
        results.append(drive(item, start()))
    assert_close(*results, 1e-5)
    assert not torch.equal(results[0], drive(laid_out(STEPS, "unipc", 6), start()))


def test_another_table_goes_where_the_config_goes(tmp_path):
    scheduler = scheduler_for("unipc", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    table = scheduler.alphas_cumprod**1.3
    scheduler.alphas_cumprod = table
    scheduler.save_pretrained(tmp_path)
    for other in (
        scheduler,
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
        PlanScheduler.from_config(scheduler.config),
        PlanScheduler.from_pretrained(tmp_path),
        scheduler.to_stock(),
    ):
        torch.testing.assert_close(other.alphas_cumprod, table, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_same_table_elsewhere_is_no_change(dtype):
    scheduler, expected = scheduler_for("unipc"), scheduler_for("unipc")
    for name in ("alphas_cumprod", "betas", "alphas"):
        setattr(scheduler, name, getattr(scheduler, name).to(dtype))
    assert scheduler.config.trained_betas is None
    assert scheduler.alphas_cumprod.dtype == dtype
    for item in (scheduler, expected):
        item.set_timesteps(6)
    assert torch.equal(drive(scheduler, start()), drive(expected, start()))


BAD_TABLES = {
    "rising": (lambda s: setattr(s, "alphas_cumprod", s.alphas_cumprod.flip(0)), "decrease"),
    "short": (lambda s: setattr(s, "alphas_cumprod", s.alphas_cumprod[:500]), "500.*need 1000"),
    "beyond": (lambda s: setattr(s, "alphas_cumprod", s.alphas_cumprod + 0.5), r"\[0, 1\)"),
    "betas": (lambda s: setattr(s, "betas", s.betas - 0.1), "betas was set"),
    "alphas": (lambda s: setattr(s, "alphas", s.alphas[:5]), "alphas has shape"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_is_no_schedule_is_refused(case):
    write, message = BAD_TABLES[case]
    with pytest.raises(ValueError, match=message):
        write(scheduler_for("unipc"))


@pytest.mark.parametrize("config", [{"shift": 3.0}, EDM])
@pytest.mark.parametrize("key", ["alphas_cumprod", "betas", "alphas"])
def test_models_without_a_table_refuse_one(config, key):
    with pytest.raises((ValueError, AttributeError), match=f"{key}|without training steps"):
        setattr(PlanScheduler(**config), key, torch.linspace(0.99, 0.01, 1000))


# --- the config after set_timesteps


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize(
    "key, value",
    [
        ("prediction_type", "v_prediction"),
        ("solver_order", 3),
        ("solver", "dpm-solver++"),
        ("thresholding", True),
        ("beta_end", 0.02),
        ("final_sigmas_type", "sigma_min"),
    ],
)
def test_a_key_that_is_set_after_set_timesteps_counts_from_there(key, value, when):
    scheduler, x = laid_out(STEPS, "unipc"), start()
    expected = PlanScheduler(**{**STEPS, "solver": "unipc", key: value})
    expected.set_timesteps(8)
    with torch.no_grad():
        for t in scheduler.timesteps[:when]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        scheduler.config[key] = value
        if when:
            expected.set_begin_index(when)
        y = x.clone()
        for k in range(when, 8):
            t = scheduler.timesteps[k]
            x = scheduler.step(network(x, t), t, x).prev_sample
            y = expected.step(network(y, t), expected.timesteps[k], y).prev_sample
    assert torch.equal(x, y)
    assert torch.equal(scheduler.sigmas, expected.sigmas)


@pytest.mark.parametrize(
    "key, value", [("timestep_spacing", "leading"), ("use_karras_sigmas", True)]
)
def test_a_key_that_moves_the_times_after_set_timesteps_is_refused(key, value):
    scheduler = laid_out(STEPS, "unipc")
    scheduler.config[key] = value
    with pytest.raises(ValueError, match="config was changed after set_timesteps"):
        scheduler.step(start(), scheduler.timesteps[0], start())
    with pytest.raises(ValueError, match="config was changed after set_timesteps"):
        scheduler.add_noise(start(), start(), scheduler.timesteps[:1])
    scheduler.set_timesteps(8)
    expected = laid_out({**STEPS, key: value}, "unipc")
    assert torch.equal(drive(scheduler, start()), drive(expected, start()))
