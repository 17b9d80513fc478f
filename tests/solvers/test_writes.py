"""Tensors that others write to: the network its input, the caller what was handed out.

A write by the network is no edit, and neither it nor the caller's later use of a tensor touches the
run or the caller's start states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from cases import GAUSSIAN, Options, normal
from topologies import FROM_PURE_NOISE, topology_cases

from logsnr.adapters import PlanScheduler
from logsnr.adapters.k_diffusion import SAMPLERS, from_k_diffusion, to_k_diffusion
from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    SOLVERS,
    ClassifierFree,
    Denoiser,
    FlowMatching,
    VPLinear,
    estimate_ems,
    make_plan,
    reference_solution,
    sample,
    sample_adaptive,
    sample_parallel,
)

FLOW = FlowMatching()
SEEDS = [1, 2, 3]

WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "all": lambda x: x.mul_(3),
    "a view": lambda x: x.view(-1)[1:4].zero_(),
}


def denoisers(write: Callable, schedule=FLOW, **options) -> tuple[Denoiser, Denoiser]:
    """A denoiser that leaves its input alone, and the same one that writes to it."""
    exact = exact_denoiser(GAUSSIAN, schedule, "flow_prediction")

    def clean(x, t, **condition):
        return exact.network(x.double(), t.double()).to(x.dtype)

    def dirty(x, t, **condition):
        output = clean(x, t)
        write(x)
        return output

    return tuple(
        Denoiser(network, schedule, "flow_prediction", network_time=exact.network_time, **options)
        for network in (clean, dirty)
    )


def assert_the_same(run: Callable, clean: Denoiser, dirty: Denoiser, dtype=torch.float64) -> None:
    x_T = normal(3, 4, seed=1, dtype=dtype)
    given = x_T.clone()
    assert torch.equal(run(dirty, given), run(clean, x_T.clone()))
    assert torch.equal(given, x_T)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("name", "options"), topology_cases(FROM_PURE_NOISE, stochastic=True))
def test_a_network_may_write_to_its_input(name: str, options: Options, write: str):
    plan = make_plan(name, **FROM_PURE_NOISE, **options)
    clean, dirty = denoisers(WRITES[write])
    assert_the_same(lambda denoise, x: sample(denoise, x, plan, noise=SEEDS), clean, dirty)


MODES: list[Callable[[], AbstractContextManager]] = [torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", WRITES)
def test_every_way_to_sample_and_every_dtype(write, dtype, mode):
    clean, dirty = denoisers(WRITES[write])
    plans = [make_plan(name, FLOW, nfe=9) for name in ("unipc", "ddim", "heun")]
    with mode():
        for plan in plans:
            assert_the_same(lambda d, x, p=plan: sample(d, x, p), clean, dirty, dtype)
            assert_the_same(lambda d, x, p=plan: sample_parallel(d, x, p)[0], clean, dirty, dtype)
        assert_the_same(
            lambda d, x: sample_adaptive(d, x, FLOW, t_end=0.01)[0], clean, dirty, dtype
        )
        if dtype != torch.bfloat16:
            assert_the_same(lambda d, x: reference_solution(d, x, FLOW)[0], clean, dirty, dtype)


def test_a_network_that_writes_now_and_then():
    clean, dirty = denoisers(WRITES["all"])

    def network(x, t, **condition):
        return (dirty if 0.2 < float(t[0]) < 0.7 else clean).network(x, t)

    sometimes = Denoiser(network, FLOW, "flow_prediction", network_time=clean.network_time)
    plan = make_plan("unipc", FLOW, nfe=10)
    assert_the_same(lambda denoise, x: sample(denoise, x, plan), clean, sometimes)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_guidance_thresholds_and_plain_functions(write, scale):
    guidance = ClassifierFree(scale, {"y": torch.ones(3)}, {"y": torch.zeros(3)})
    clamp = lambda x0: x0.clamp(-1, 1)  # noqa: E731
    plan = make_plan("unipc", FLOW, nfe=8)
    a_call_each = ClassifierFree(scale, {"y": "a cat"}, {"y": ""})
    for options in ({"guidance": guidance}, {"guidance": a_call_each}, {"threshold": clamp}):
        clean, dirty = denoisers(WRITES[write], **options)
        assert_the_same(lambda denoise, x: sample(denoise, x, plan), clean, dirty)
        x = normal(3, 4, seed=2)
        assert torch.equal(dirty(x, 0.4), clean(normal(3, 4, seed=2), 0.4))
        assert torch.equal(x, normal(3, 4, seed=2))

    def function(x, t):
        x0 = clean(x.clone(), t)
        WRITES[write](x)
        return x0

    assert_the_same(lambda denoise, x: sample(denoise, x, plan), clean, function)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_network_that_writes_to_its_condition_is_named(scale):
    def network(x, t, y):
        y.add_(1)
        return x

    given, null = {"y": torch.zeros(3)}, {"y": torch.ones(3)}
    options = {"condition": given}
    if scale is not None:
        options = {"guidance": ClassifierFree(scale, given, null)}
    denoise = Denoiser(network, FLOW, "flow_prediction", **options)
    with pytest.raises(ValueError, match="condition 'y'"):
        sample(denoise, normal(3, 4), make_plan("ddim", FLOW, nfe=2))


@pytest.mark.parametrize("way", ["difference", "jvp"])
@pytest.mark.parametrize("write", WRITES)
def test_the_estimation_of_statistics(write, way):
    def clean(x, t):
        return x / (1 + t.reshape(-1, 1) * x * x)

    def dirty(x, t):
        output = clean(x, t)
        WRITES[write](x)
        return output

    data, given = normal(8, 4, seed=3), normal(8, 4, seed=3)
    found = [
        estimate_ems(
            Denoiser(network, VPLinear(), network_time=lambda t: t), samples, jacobian=way,
            derivative=way, nodes=4, samples=8, group=4,
        )
        for network, samples in ((clean, data), (dirty, given))
    ]  # fmt: skip
    for name in "lsb":
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))
    assert torch.equal(given, data)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_k_diffusion(name):
    clean, dirty = (to_k_diffusion(d) for d in denoisers(WRITES["all"], schedule=VPLinear()))

    def model(x, sigma):
        denoised = clean(x.clone(), sigma)
        x.zero_()
        return denoised

    sigmas = torch.tensor([10.0, 4.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    run = lambda model, x: SAMPLERS[name](  # noqa: E731
        model, x, sigmas, disable=True, noise_sampler=7
    )
    assert_the_same(run, clean, model)
    assert_the_same(run, clean, dirty)
    plan = make_plan("heun", from_k_diffusion(clean).schedule, nfe=6)
    run = lambda model, x: sample(from_k_diffusion(model), x, plan)  # noqa: E731
    assert_the_same(run, clean, model)


def test_the_callback_sees_the_state_and_its_edits_stay_edits():
    clean, dirty = denoisers(WRITES["all"])
    plan = make_plan("unipc", FLOW, nfe=8)
    seen: dict[Denoiser, list[torch.Tensor]] = {clean: [], dirty: []}

    def run(denoise, x_T):
        def edit(step):
            seen[denoise].append(step.x.clone())
            step.x.add_(0.1)

        return sample(denoise, x_T, plan, callback=edit)

    assert_the_same(run, clean, dirty)
    torch.testing.assert_close(seen[dirty], seen[clean], rtol=0, atol=0)
    unedited = sample(clean, normal(3, 4, seed=1), plan)
    assert not torch.allclose(run(clean, normal(3, 4, seed=1)), unedited)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("name", "options"), topology_cases(FROM_PURE_NOISE, stochastic=True))
def test_a_state_that_a_callback_was_handed_may_be_overwritten_later(name, options, differentiable):
    plan = make_plan(name, **FROM_PURE_NOISE, **options)
    clean, _ = denoisers(WRITES["all"])
    handed: list[torch.Tensor] = []

    def overwrite(step):
        for x in handed:
            x.detach().zero_()
        handed.append(step.x)

    def run(callback, x_T):
        return sample(
            clean, x_T, plan, noise=SEEDS, callback=callback, differentiable=differentiable
        )

    assert torch.equal(run(overwrite, normal(3, 4, seed=1)), run(None, normal(3, 4, seed=1)))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_that_step_handed_out_may_be_overwritten_later(name):
    scheduler = PlanScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver=name)
    scheduler.set_timesteps(9)
    clean, _ = denoisers(WRITES["all"])

    def run(after: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        engine, x = copy.deepcopy(scheduler), normal(3, 4, seed=1)
        generator = torch.Generator().manual_seed(0)
        for t in engine.timesteps:
            output = clean.network(x, (t / 1000).expand(3))
            new = engine.step(output, t, x, generator=generator, return_dict=False)[0]
            x = after(x, new)
        return x

    def over_the_old_one(old, new):
        old.zero_()
        return new

    expected = run(lambda old, new: new)
    assert torch.equal(run(over_the_old_one), expected)
    # One buffer for all states, ``latents[:] = scheduler.step(...)[0]``.
    torch.testing.assert_close(run(lambda old, new: old.copy_(new)), expected)
