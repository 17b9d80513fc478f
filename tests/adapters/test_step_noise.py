"""The noise of the scheduler's steps: seeds, copies, shared noise, lists, and densities."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from scheduler_cases import LATENT, assert_close, drive, network, scheduler_for, start
from torch import Tensor
from torch.distributions import Normal

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.solvers import CounterNoise, Denoiser, Noise, Plan, make_plan, sample, step_log_prob
from logsnr.solvers.shared_noise import draws, sharing

N = 6
CHURN = {"name": "heun", "s_churn": 5.0}
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {"ddim": ("ddim", {"eta": 0.8}), "churn": (CHURN, {})}
SCHEDULE = noise_schedule(PlanScheduler(**LATENT).config)
# As PlanScheduler's network sees time.
NETWORK = Denoiser(lambda x, t: network(x, t[0]), SCHEDULE, "epsilon")


def shared_plan() -> Plan:
    """Steps that share noise with the step before, and draw two normals each."""
    plan = make_plan("ddim", SCHEDULE, nfe=N, eta=0.8)
    rows = [
        replace(row, noise=(Noise(0.3, k, k + 1.5), Noise(0.2, k, k + 1.0, moment=1))) if k else row
        for k, row in enumerate(plan.rows)
    ]
    return Plan(tuple(rows), consistent=False)


SHARED = shared_plan()


def laid_out(way: str, **config: Any) -> tuple[PlanScheduler, dict[str, Any]]:
    solver, options = WAYS[way]
    scheduler = scheduler_for(solver, **config)
    scheduler.set_timesteps(7)
    return scheduler, options


# one stream


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_is_the_same_in_any_batch_and_any_run(way):
    scheduler, options = laid_out(way, noise_seed=11)
    x = torch.cat([start(), start().flip(2), start().flip(3)])  # six samples
    whole = drive(scheduler, x, **options)
    assert torch.equal(drive(scheduler, x, **options), whole)  # a run repeated
    other, _ = laid_out(way, noise_seed=12)
    assert not torch.equal(drive(other, x, **options), whole)
    for samples in ([4], [0, 5, 2]):
        part, _ = laid_out(way)
        part.noise = CounterNoise(11, samples=samples)
        assert torch.equal(drive(part, x[samples], **options), whole[samples])
    own, _ = laid_out(way, noise_seed=[7, 11])  # a seed a sample: that of each is its sample 0
    assert torch.equal(drive(own, x[[3, 0]], **options)[1], whole[0])


@pytest.mark.parametrize("way", WAYS)
def test_every_precision_sees_one_stream(way):
    drawn: dict[torch.dtype, list[Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scheduler, options = laid_out(way)
        seen = drawn[dtype] = []
        scheduler.noise = lambda term, like, seen=seen: (
            seen.append(CounterNoise(11)(term, like)) or seen[-1]
        )
        drive(scheduler, start(dtype), **options)
    exact = drawn.pop(torch.float32)
    for found in drawn.values():
        assert len(found) == len(exact) > 0
        assert all(map(torch.equal, found, exact))


def test_a_start_in_the_middle_goes_on_with_the_noise_of_those_intervals():
    drawn: dict[int, dict[Noise, Tensor]] = {}
    for begin in (0, 3):
        scheduler, options = laid_out("ddim")
        scheduler.set_begin_index(begin)
        seen = drawn[begin] = {}
        scheduler.noise = lambda term, like, seen=seen: seen.setdefault(
            term.key, CounterNoise(11)(term, like)
        )
        drive(scheduler, start(), begin, **options)
    assert len(drawn[3]) == len(drawn[0]) - 3
    assert all(torch.equal(drawn[0][key], z) for key, z in drawn[3].items())


def test_the_seed_is_saved_and_handed_on(tmp_path):
    scheduler, options = laid_out("ddim", noise_seed=[3, 4])
    whole = drive(scheduler, start(), **options)
    scheduler.save_config(tmp_path)
    for again in (
        PlanScheduler.from_pretrained(tmp_path),
        PlanScheduler.from_config(scheduler.config),
    ):
        again.set_timesteps(7)
        assert torch.equal(drive(again, start(), **options), whole)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_repeated_is_the_step(way):
    scheduler, options = laid_out(way, noise_seed=11)
    x = start()
    for t in scheduler.timesteps:
        out = network(x, t)
        first = scheduler.step(out, t, x, **options).prev_sample
        again = scheduler.step(out, t, x, **options).prev_sample
        assert torch.equal(first, again)
        x = again


# noise that steps share


def shared_scheduler(**config: Any) -> PlanScheduler:
    scheduler = PlanScheduler(**LATENT, plan=SHARED, **config)
    scheduler.set_timesteps()
    return scheduler


def exact(noise: Any) -> Tensor:
    return sample(NETWORK, start(torch.float64), SHARED, noise=noise)


def test_shared_noise_is_that_of_the_plain_loop():
    assert not sharing(SHARED).none
    found = drive(shared_scheduler(noise_seed=11), start(torch.float64))
    assert_close(found, exact(11), 1e-4)  # timesteps are float32


@pytest.mark.parametrize("how", ["seed", "generator"])
@pytest.mark.parametrize("at", range(1, N))
def test_a_copy_made_in_the_middle_remembers_the_noise_that_it_shares(at, how):
    def generator() -> torch.Generator | None:
        return torch.Generator().manual_seed(5) if how == "generator" else None

    config = {"noise_seed": 11} if how == "seed" else {}
    whole = drive(shared_scheduler(**config), start(), generator=generator())
    scheduler, x, draw = shared_scheduler(**config), start(), generator()
    for i, t in enumerate(scheduler.timesteps):
        if i == at:
            scheduler = deepcopy(scheduler)
        x = scheduler.step(network(x, t), t, x, generator=draw).prev_sample
    assert torch.equal(x, whole)


@pytest.mark.parametrize("at", range(N))
def test_a_step_made_again_takes_the_same_shared_noise(at):
    whole = drive(shared_scheduler(noise_seed=11), start())
    scheduler, x, kept = shared_scheduler(noise_seed=11), start(), []
    for i, t in enumerate(scheduler.timesteps):
        out = network(x, t)
        if i == at:
            kept.append(scheduler.step(out, t, x).prev_sample)  # so that the run is forked
            scheduler.step(2 * out, t, x)
        x = scheduler.step(out, t, x).prev_sample
    assert torch.equal(x, whole)


# what a step is given


def tensors(count: int) -> list[Tensor]:
    return list(torch.randn(count, *start().shape, generator=torch.Generator().manual_seed(3)))


def test_variance_noise_is_a_list_where_a_step_draws_several():
    given, each = tensors(draws(SHARED)), [len(parts) for parts in sharing(SHARED).fresh if parts]
    assert len(each) == N and max(each) > 1
    scheduler, x, left = shared_scheduler(), start(torch.float64), list(given)
    for t, count in zip(scheduler.timesteps, each, strict=True):
        mine, left = left[:count], left[count:]
        for wrong in (mine[0], mine[:-1], [*mine, mine[0]]):
            if count > 1:
                with pytest.raises(ValueError, match=f"variance_noise.* {count} independent"):
                    scheduler.step(network(x, t), t, x, variance_noise=wrong)
        x = scheduler.step(network(x, t), t, x, variance_noise=mine).prev_sample
    assert_close(x, exact(given), 1e-4)


def test_a_list_of_tensors_serves_every_run_of_a_scheduler():
    given = tensors(draws(SHARED))
    scheduler = shared_scheduler()
    scheduler.noise = given
    for _ in range(2):
        found = drive(scheduler, start(torch.float64))
        assert_close(found, exact(given), 1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generator": 11}, "generator=11: need a torch.Generator.*noise_seed"),
        ({"generator": [torch.Generator()] * 3}, "generator has 3 entries: need one a sample, 2"),
        ({"generator": []}, "generator has 0 entries"),
        ({"generator": [1, 2]}, r"generator=\[1, 2\]"),
        ({"variance_noise": [torch.zeros(3, 4)]}, r"variance_noise has shape \(3, 4\)"),
        ({"variance_noise": tensors(2)}, "variance_noise is a list of 2: .* draws 1"),
        ({"variance_noise": [1.0]}, "variance_noise has a float"),
    ],
)
def test_noise_that_does_not_fit_a_step_is_named(given, message):
    scheduler, options = laid_out("ddim")
    t, x = scheduler.timesteps[0], start()
    with pytest.raises(ValueError, match=message):
        scheduler.step(network(x, t), t, x, **options, **given)
    scheduler.step(network(x, t), t, x, **options)  # as if nothing had been


@pytest.mark.parametrize("seed", [-1, 1.5, True, [1, -2], [None], 2**63, "x"])
def test_bad_seeds_are_heard_in_the_line_that_has_them(seed):
    with pytest.raises(ValueError, match="noise_seed="):
        PlanScheduler(noise_seed=seed)


def test_noise_of_another_batch_is_refused_at_the_first_step():
    for noise in ([1, 2, 3], CounterNoise(1, samples=[4]), [torch.zeros(1)] * 9):
        scheduler, options = laid_out("ddim")
        scheduler.noise = noise
        t, x = scheduler.timesteps[0], start()
        with pytest.raises(ValueError, match="noise (has|is for)"):
            scheduler.step(network(x, t), t, x, **options)
    with pytest.raises(ValueError, match="noise='x'"):
        scheduler.noise = "x"


# densities


@pytest.mark.parametrize("way", [*WAYS, "shared"])
def test_densities_of_the_steps_are_those_of_the_plain_loop(way):
    if way == "shared":
        scheduler, options = shared_scheduler(noise_seed=11), {}
    else:
        scheduler, options = laid_out(way, noise_seed=11)
    x, found, plain = start(), [], drive(deepcopy(scheduler), start(), **options)
    for t in scheduler.timesteps:
        x, log_prob = scheduler.step(
            network(x, t), t, x, log_prob=True, return_dict=False, **options
        )
        found.append(log_prob)
    assert torch.equal(x, plain)
    plan = scheduler.plan
    _, exact = sample(NETWORK, start(), plan, noise=11, log_prob=True)
    drawn = [log_prob for log_prob in found if log_prob.any()]
    torch.testing.assert_close(torch.stack(drawn, dim=1), exact, rtol=1e-4, atol=1e-3)


def test_the_density_of_a_step_is_that_of_a_normal_and_has_the_gradient_of_its_mean():
    scheduler, options = laid_out("ddim", noise_seed=11)
    t, x = scheduler.timesteps[0], start(torch.float64)
    out = network(x, t).requires_grad_()
    made = scheduler.step(out, t, x, log_prob=True, **options)
    normal = Normal(made.prev_sample_mean, made.std_dev)
    exact = normal.log_prob(made.prev_sample).flatten(1).sum(1)
    torch.testing.assert_close(made.log_prob, exact)
    (ours,) = torch.autograd.grad(made.log_prob.sum(), out)
    # d log p / d out = (x - mean) / n^2 times d mean / d out, which is one number.
    h = torch.full_like(out, 1e-3)
    again = deepcopy(scheduler)
    again.set_timesteps(7)
    moved = again.step(out.detach() + h, t, x, log_prob=True, **options).prev_sample_mean
    slope = (moved - made.prev_sample_mean.detach()) / h
    residual = made.prev_sample - made.prev_sample_mean.detach()
    torch.testing.assert_close(ours, slope * residual / made.std_dev**2, rtol=1e-6, atol=1e-9)
    assert not made.prev_sample.requires_grad
    assert scheduler.step(out, t, x, **options).log_prob is None


def test_stored_states_are_taken_and_not_drawn():
    """What a policy gradient asks of every stored transition, in any order."""
    scheduler, options = laid_out("ddim", noise_seed=11)
    x, kept = start(torch.float64), []
    for t in scheduler.timesteps[:-1]:
        made = scheduler.step(network(x, t), t, x, log_prob=True, **options)
        kept.append((t, x, made.prev_sample, made.log_prob))
        x = made.prev_sample
    state = torch.get_rng_state()
    for t, x, after, log_prob in [*kept[::-1], *kept]:
        out = network(x, t).requires_grad_()
        made = scheduler.step(out, t, x, log_prob=True, prev_sample=after, **options)
        assert torch.equal(made.prev_sample, after)
        torch.testing.assert_close(made.log_prob, log_prob)
        assert made.log_prob.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    states = torch.stack([start(torch.float64), *[after for _, _, after, _ in kept]], dim=1)
    plan = scheduler.plan if scheduler.plan.nfe == 7 else laid_out("ddim")[0].plan
    fresh, options = laid_out("ddim", noise_seed=11)
    t = fresh.timesteps[0]
    fresh.step(network(states[:, 0], t), t, states[:, 0], **options)
    plan = fresh.plan
    found = step_log_prob(NETWORK, plan, states)
    torch.testing.assert_close(found, torch.stack([entry[3] for entry in kept], dim=1))


@pytest.mark.parametrize(
    ("make", "prev_sample", "message"),
    [
        (lambda: laid_out("ddim")[0], start(), "prev_sample: this step adds no noise"),  # eta = 0
        (lambda: laid_out("churn")[0], start(), "prev_sample: this step adds no noise"),
        (shared_scheduler, start(), "a later step has noise of this one"),
        (lambda: laid_out("ddim")[0], torch.zeros(2), r"prev_sample is shape \(2,\)"),
        (lambda: laid_out("ddim")[0], 1.0, "prev_sample is float"),
    ],
)
def test_stored_states_that_say_nothing_are_refused(make, prev_sample, message):
    scheduler = make()
    t, x = scheduler.timesteps[0], start()
    with pytest.raises(ValueError, match=message):
        scheduler.step(network(x, t), t, x, log_prob=True, prev_sample=prev_sample)
