"""``step`` is where its timestep says, and goes on with the run that handed out the sample.

The truths are stock DDIM, which is a function of its arguments; a run that was left alone; and a
fresh scheduler that was told by ``set_begin_index`` where it begins.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import diffusers
import pytest
import torch
from scheduler_cases import (
    FAMILIES,
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
from logsnr.solvers import SOLVERS

N = 8
ALL = sorted(SOLVERS)
SOME = ["ddim", "unipc", "dpm-solver++", "heun", {"name": "dpm-solver++", "steps": "singlestep"}]
HANDED = {
    "view": lambda t: t,
    "batch of views": lambda t: t.expand(2),
    "number": lambda t: t.item(),
    "copy": lambda t: t.clone(),
    "bfloat16": lambda t: t.to(torch.bfloat16),
}


def laid_out(solver, **config) -> PlanScheduler:
    scheduler = scheduler_for(solver, **config)
    scheduler.set_timesteps(N)
    return scheduler


@torch.no_grad()
def step(scheduler, place: int, x: Tensor, factor: float = 1.0, handed=HANDED["view"]) -> Tensor:
    """The step at ``place`` with the network's output, times ``factor``; noise is none."""
    t = scheduler.timesteps[place]
    output, noise = factor * network(x, t), torch.zeros_like(x)
    return scheduler.step(output, handed(t), x, variance_noise=noise).prev_sample


def begun(solver, place: int, x: Tensor, until: int | None = None, **config) -> Tensor:
    """A fresh scheduler that begins at ``place``, after one step or at ``until``."""
    scheduler = laid_out(solver, **config)
    scheduler.set_begin_index(place)
    for k in range(place, place + 1 if until is None else until):
        x = step(scheduler, k, x)
    return x


def starts(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


# --- against stock


@pytest.mark.parametrize("handed", HANDED)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_is_a_function_of_its_arguments_as_in_stock(eta, handed):
    """In any order of places, each call twice, on what was handed out and on what was not."""
    config = {**LATENT, "timestep_spacing": "leading", "clip_sample": False, "steps_offset": 1}
    stock, ours = diffusers.DDIMScheduler(**config), PlanScheduler(**config, solver="ddim")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
    x = start()
    for k, place in enumerate([0, 1, 2, 1, 1, 2, 3, 0, 1, 5, 6, 7, 4, 9, 9, 8, 9, 0]):
        if place > 2 or k % 4 == 3:
            x = x + 0.1 * start()  # otherwise it is the very tensor that was handed out
        t = ours.timesteps[place]
        output = network(x, t)
        options = {"eta": eta, "variance_noise": start().flip(0)}
        expected = stock.step(output, int(t), x, **options).prev_sample
        for _ in range(2):
            result = ours.step(output, HANDED[handed](t), x, **options).prev_sample
            assert_close(result, expected, 2e-6)
        x = result


@pytest.mark.parametrize("family", FAMILIES)
def test_two_images_in_one_loop_in_every_family(family):
    config, given = FAMILIES[family]
    scheduler, states, expected = PlanScheduler(**config), starts(2), []
    for x in states:
        scheduler.set_timesteps(6, **given)
        expected.append(drive(scheduler, x))
    scheduler.set_timesteps(6, **given)
    for place in range(6):
        states = [step(scheduler, place, x) for x in states]
    for x, alone in zip(states, expected, strict=True):
        assert torch.equal(x, alone)


# --- against the same images alone


@pytest.mark.parametrize("solver", ALL)
def test_images_from_the_very_same_noise(solver):
    """As for two prompts: the first step of both is made from one tensor."""
    factors, expected = (0.5, 1.0, 1.5), []
    for factor in factors:
        scheduler, x = laid_out(solver), start()
        for place in range(N):
            x = step(scheduler, place, x, factor)
        expected.append(x)
    scheduler, states = laid_out(solver), [start()] * 3
    for place in range(N):
        states = [step(scheduler, place, x, f) for x, f in zip(states, factors, strict=True)]
    for x, alone in zip(states, expected, strict=True):
        assert torch.equal(x, alone)


@pytest.mark.parametrize("edited", [0.0, 0.5])
@pytest.mark.parametrize("solver", ALL)
def test_states_of_two_shapes_are_told_apart_by_them(solver, edited):
    """Sound and video in one loop, also where nothing is handed back as it was handed out."""
    sizes = [(2, 3, 4, 4), (2, 3, 2, 4)]

    def steps(scheduler: PlanScheduler, x: Tensor, place: int) -> Tensor:
        t, noise = scheduler.timesteps[place], torch.zeros_like(x)
        output = torch.tanh(x) * (1 + t / 1000)
        return scheduler.step(output, t, x + edited, variance_noise=noise).prev_sample + edited

    expected = []
    for shape in sizes:
        scheduler, x = laid_out(solver), start()[:, :, : shape[2]]
        for place in range(N):
            x = steps(scheduler, x, place)
        expected.append(x)
    scheduler, states = laid_out(solver), [start()[:, :, : shape[2]] for shape in sizes]
    for place in range(N):
        states = [steps(scheduler, x, place) for x in states]
    for x, alone in zip(states, expected, strict=True):
        assert_close(x, alone, 1e-6)


@pytest.mark.parametrize(
    "solver", [{"name": "ddim", "eta": 1.0}, "unipc", {"name": "heun", "s_churn": 4.0}], ids=str
)
def test_a_step_that_was_refused_can_be_made(solver):
    scheduler, expected = laid_out(solver), laid_out(solver)
    x = y = start()
    for place in range(N):
        t = scheduler.timesteps[place]
        for bad in ({"variance_noise": torch.zeros(5, 5)}, {"model_output": start()[:, :1]}):
            call = {"model_output": network(x, t), "timestep": t, "sample": x, **bad}
            try:
                scheduler.step(**call)
            except ValueError as error:
                assert "has shape" in str(error)
            else:
                assert "variance_noise" in bad  # of which this step takes none
        x, y = step(scheduler, place, x), step(expected, place, y)
        assert torch.equal(x, y)


@pytest.mark.parametrize("handed", ["view", "number"])
@pytest.mark.parametrize("solver", ALL)
def test_images_in_one_loop_are_what_they_are_alone(solver, handed):
    """Three of them, in another order at every timestep."""
    expected = []
    for x in starts(3):
        scheduler = laid_out(solver)
        for place in range(N):
            x = step(scheduler, place, x)
        expected.append(x)
    scheduler, states = laid_out(solver), starts(3)
    first, second, *_ = scheduler.timesteps.tolist()
    ambiguous = handed == "number" and first == second  # is it the next image or the next call?
    refused = pytest.raises(ValueError, match="occurs more than once in timesteps")
    with refused if ambiguous else nullcontext():
        for place in range(N):
            for k in ([0, 1, 2], [2, 0, 1], [1, 0, 2])[place % 3]:
                states[k] = step(scheduler, place, states[k], handed=HANDED[handed])
    if ambiguous:
        return
    for x, alone in zip(states, expected, strict=True):
        assert torch.equal(x, alone)


@pytest.mark.parametrize("solver", ALL)
def test_a_loop_that_was_left_is_begun_again(solver):
    scheduler, x = laid_out(solver), start()
    expected = [step(scheduler, 0, x)]
    for place in range(1, N):
        expected.append(step(scheduler, place, expected[-1]))
    for left in (1, 3, 5, N, N):
        again = start()
        for place in range(left):
            again = step(scheduler, place, again)
            assert torch.equal(again, expected[place])
    again, other, alone = start(), laid_out(solver), start()
    for place in range(N):
        # Edits are the new loop's, but where another was left they may be its: a run begins there.
        again = step(scheduler, place, again + 0.5)
        if place in (1, 3, 5):
            other.set_begin_index(place)
        alone = step(other, place, alone + 0.5)
        assert_close(again, alone, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("solver", ALL)
def test_a_call_that_is_repeated_gives_the_same(solver, dtype):
    once, often = laid_out(solver), laid_out(solver)
    x = y = start(dtype)
    for place in range(N):
        x = step(once, place, x)
        same = [step(often, place, y) for _ in range(3)]
        for result in same:
            assert torch.equal(result, x)
        y = same[-1]


@pytest.mark.parametrize("solver", ALL)
def test_two_outputs_at_one_state_are_two_branches(solver):
    """Each is what it is alone, whichever the loop goes on with."""

    def alone(factor: float) -> list[Tensor]:
        scheduler, x, states = laid_out(solver), start(), []
        for place in range(N):
            x = step(scheduler, place, x, factor if place == 3 else 1.0)
            states.append(x)
        return states

    scheduler, x = laid_out(solver), start()
    for place in range(3):
        x = step(scheduler, place, x)
    branches = [step(scheduler, 3, x, factor) for factor in (0.5, 2.0)]
    for factor, branch in zip((0.5, 2.0), branches, strict=True):
        assert torch.equal(branch, alone(factor)[3])
    for place in range(4, N):
        for k, factor in enumerate((0.5, 2.0)):
            branches[k] = step(scheduler, place, branches[k])
            assert torch.equal(branches[k], alone(factor)[place])


# --- against a run that begins there


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++", "dpm-solver", "deis", "ipndm"])
@pytest.mark.parametrize("back", [0, 2, 4])
def test_time_travel_goes_on_as_a_run_that_begins_there(solver, back):
    scheduler, x = laid_out(solver), start()
    for place in range(5):
        x = step(scheduler, place, x)
    t = scheduler.timesteps[back : back + 1]
    noisy = scheduler.add_noise(x, start().flip(0), t)
    for y in (noisy, x):  # RePaint adds the noise that belongs there, others do not
        result = y
        for place in range(back, N):
            result = step(scheduler, place, result)
        assert torch.equal(result, begun(solver, back, y, until=N))


@pytest.mark.parametrize("solver", ALL)
def test_resampling_at_every_step(solver):
    """RePaint: some steps down, noise added to go up again, with a known region blended in."""
    scheduler, x = laid_out(solver), start()
    known, mask = (
        start().flip(1),
        torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) > 0.5,
    )
    for place in [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 6, 7]:
        state = scheduler.add_noise(known, start(), scheduler.timesteps[place : place + 1])
        x = torch.where(mask, state, x)
        result = step(scheduler, place, x)
        assert result.isfinite().all()
        if solver == "ddim":
            assert_close(result, begun(solver, place, x), 1e-6)
        x = result


@pytest.mark.parametrize("handed", ["view", "copy"])
@pytest.mark.parametrize("solver", SOME, ids=str)
def test_parts_of_one_tensor_stepped_in_turn_are_never_mixed(solver, handed):
    """Nothing tells whose state a part is, so each call is a run that begins there."""
    scheduler, batch = laid_out(solver), torch.stack(starts(2))
    for place in range(N if solver != "heun" else 1):
        for k in range(2):
            part = batch[k]
            expected = begun(solver, place, part.clone())
            batch[k] = step(scheduler, place, part, handed=HANDED[handed])
            assert_close(batch[k], expected, 1e-6)


@pytest.mark.parametrize("solver", SOME, ids=str)
def test_every_second_timestep(solver):
    """A state that was handed out for the next timestep is too noisy for the one after it."""
    scheduler = laid_out(solver)
    x = step(scheduler, 0, start())
    with pytest.raises(ValueError, match="sample is a state of more noise.*set_timesteps"):
        step(scheduler, 3, x)
    # A caller who has brought the state there himself begins a run there.
    assert torch.equal(step(scheduler, 3, 1.0 * x), begun(solver, 3, 1.0 * x))
    scheduler.set_timesteps(timesteps=laid_out("unipc").timesteps[::2].tolist())
    assert len(scheduler.timesteps) in (4, 7)


# --- what callers say of the place


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++"])
def test_step_index_can_be_forgotten_and_set(solver, place):
    scheduler = laid_out(solver)
    step(scheduler, 1, step(scheduler, 0, start()))
    for index in (None, place):
        scheduler._step_index = index
        assert scheduler.step_index == index
        assert torch.equal(step(scheduler, place, start()), begun(solver, place, start()))
        assert scheduler.step_index == place + 1
    scheduler._step_index = place
    other = place + 1
    with pytest.raises(ValueError, match=f"is entry {other} of timesteps.*was set to {place}"):
        step(scheduler, other, start())
    assert torch.equal(step(scheduler, place, start()), begun(solver, place, start()))


@pytest.mark.parametrize("solver", ALL)
def test_step_index_counted_down_repeats_a_step(solver):
    once, twice = laid_out(solver), laid_out(solver)
    x = y = start()
    for place in range(N):
        x = step(once, place, x)
        step(twice, place, y)
        twice._step_index -= 1
        y = step(twice, place, y)
        assert torch.equal(x, y) and twice.step_index == place + 1


def test_the_step_index_says_which_of_equal_times_is_meant():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=[900, 600, 600, 300])
    with pytest.raises(ValueError, match="timestep=600 occurs more than once"):
        scheduler.step(start(), 600, start())
    scheduler._step_index = 2
    scheduler.step(start(), 600, start())
    assert scheduler.step_index == 3


def test_the_next_of_equal_times_is_meant_after_the_one_before():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=[900, 600, 600, 300])
    x = start()
    for time in (900, 600):  # the second from the very tensor that the first was made from
        scheduler.step(x, time, x)
    assert scheduler.step_index == 2


def test_the_begin_index_can_be_written_and_forgotten():
    scheduler = laid_out("unipc")
    scheduler._begin_index = 3
    assert scheduler.begin_index == 3 and scheduler.step_index is None
    with pytest.raises(ValueError, match="was set to 3"):
        step(scheduler, 0, start())
    scheduler._begin_index = None
    assert scheduler.begin_index is None
    assert torch.equal(step(scheduler, 4, start()), begun("unipc", 4, start()))


def test_a_begin_index_that_the_timestep_denies_is_refused():
    scheduler = laid_out("unipc")
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="is entry 0 of timesteps.*was set to 3"):
        step(scheduler, 0, start())
    step(scheduler, 3, start())


def test_eta_is_heard_at_every_step():
    stock = diffusers.DDIMScheduler(**LATENT, clip_sample=False)
    ours = scheduler_for("ddim", timestep_spacing="leading")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
    x = y = start()
    for t, eta in zip(
        ours.timesteps, [0.0, 1.0, 1.0, 0.3, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0], strict=True
    ):
        options = {"eta": eta, "variance_noise": start().flip(0)}
        x = stock.step(network(x, t), t, x, **options).prev_sample
        y = ours.step(network(y, t), t, y, **options).prev_sample
        assert_close(y, x, 2e-5)


@pytest.mark.parametrize("solver", ["unipc", "dpm-solver++", "heun"])
def test_a_solver_without_eta_goes_on_whatever_it_is(solver):
    scheduler, expected = laid_out(solver), laid_out(solver)
    x = y = start()
    for place, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x, eta=0.1 * place).prev_sample
        y = step(expected, place, y)
    assert torch.equal(x, y)


# --- times that are none of the run's

OFF_GRID = [450, -5, float("nan"), float("inf"), 1e9, 0.999, 499.0, torch.tensor(450)]


@pytest.mark.parametrize("timestep", OFF_GRID, ids=str)
@pytest.mark.parametrize("begun_already", [False, True])
@pytest.mark.parametrize("config", [{}, {"shift": 1.0}], ids=["steps", "flow"])
def test_a_time_on_no_grid_is_refused_at_every_step(timestep, begun_already, config):
    scheduler = PlanScheduler(**{**LATENT, **config})
    scheduler.set_timesteps(timesteps=[750, 500, 375, 125])
    x = step(scheduler, 0, start()) if begun_already else start()
    message = "timestep=.* is not one of the run's timesteps"
    with pytest.raises(ValueError, match=message):
        scheduler.step(start(), timestep, x)
    step(scheduler, 1, 1.0 * x)  # and the run can go on


@pytest.mark.parametrize("timestep", [None, "500", [500, 375], torch.tensor([500, 375])], ids=str)
def test_what_is_no_time_is_refused(timestep):
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(timesteps=[750, 500, 375, 125])
    with pytest.raises(ValueError, match="timestep=.*need (a|one) number"):
        scheduler.step(start(), timestep, start())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("as_number", [False, True])
def test_rounding_of_the_types_of_networks_is_accepted(family, dtype, as_number):
    config, given = FAMILIES[family]
    scheduler = PlanScheduler(**config)
    scheduler.set_timesteps(6, **given)
    expected = drive(scheduler, start())
    scheduler.set_timesteps(6, **given)
    x = start()
    with torch.no_grad():
        for t in scheduler.timesteps:
            handed = t.to(dtype).item() if as_number else t.to(dtype)
            x = scheduler.step(network(x, t), handed, x).prev_sample
    assert torch.equal(x, expected)


# --- modes


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", SOME, ids=str)
def test_runs_are_told_apart_in_every_mode(solver, mode):
    with mode():
        scheduler, states = laid_out(solver), starts(2)
        for place in range(N):
            states = [step(scheduler, place, step_twice(scheduler, place, x)) for x in states]
    for x, first in zip(states, starts(2), strict=True):
        assert torch.equal(x, drive(laid_out(solver), first))


def step_twice(scheduler, place: int, x: Tensor) -> Tensor:
    step(scheduler, place, x)
    return x


@pytest.mark.parametrize("solver", SOME, ids=str)
def test_a_copy_made_among_several_runs_goes_on_with_the_last(solver):
    scheduler, states = laid_out(solver), starts(2)
    for place in range(3):
        states = [step(scheduler, place, x) for x in states]
    other = copy.deepcopy(scheduler)
    assert other.step_index == 3
    expected = states[1]
    for place in range(3, N):
        expected = step(scheduler, place, expected)
    # Its caller's tensors are copies too, so that nothing tells the two images apart.
    result = states[1].clone()
    assert_close(step(other, 3, result), begun(solver, 3, result), 1e-6)


@pytest.mark.parametrize(
    ("solver", "separate"),
    # Sharing one scheduler, Heun's method tells the parts that are begun later other times.
    [(s, True) for s in SOME] + [(s, False) for s in SOME if s != "heun"],
    ids=str,
)
def test_the_states_of_several_views_are_exchanged(solver, separate):
    """MultiDiffusion: the pipeline keeps the scheduler's attributes for every part of a panorama.

    diffusers' own pipeline makes one copy for all parts, and then shares the scheduler among them.
    """
    scheduler, whole = laid_out(solver), torch.cat(starts(3), dim=-1)
    times, width = scheduler.timesteps, SHAPE[-1]
    if separate:
        states = [copy.deepcopy(scheduler.__dict__) for _ in range(3)]
    else:
        states = [copy.deepcopy(scheduler.__dict__)] * 3
    for place in range(N):
        for k in range(3):
            part = whole[..., k * width : (k + 1) * width]
            scheduler.__dict__.update(states[k])
            with torch.no_grad():
                output, noise = network(part, times[place]), torch.zeros_like(part)
                result = scheduler.step(output, times[place], part, variance_noise=noise)
            states[k] = dict(scheduler.__dict__) if separate else scheduler.__dict__
            whole[..., k * width : (k + 1) * width] = result.prev_sample
    if separate or solver == "ddim":
        for k, x in enumerate(starts(3)):
            alone = drive(laid_out(solver), x)
            assert_close(whole[..., k * width : (k + 1) * width], alone, 1e-6)


@pytest.mark.parametrize("solver", SOME, ids=str)
def test_runs_that_nobody_can_go_on_with_are_let_go(solver):
    """Jumps and repeated calls keep no history of what was left, while images in turn do."""
    scheduler, x = laid_out(solver), start()
    for place in [0, 1, 0, 1, 2, 1, 2, 3, 3, 3, 2, 3, 4]:
        for _ in range(2):
            x = step(scheduler, place, x + 0.1)
            assert len(scheduler._runs._others) <= 1  # of the state that x was till now
    states = [step(scheduler, 0, x) for x in starts(4)]
    assert len(scheduler._runs._others) == 4  # of x and of the first three
    del states, x
    x = step(scheduler, 0, start())
    step(scheduler, 1, x)
    assert not scheduler._runs._others
