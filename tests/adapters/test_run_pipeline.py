"""run_pipeline: algorithms that choose their own times, in the loops of real (tiny) pipelines."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from cases import normal
from tiny.family import as_tensor, using
from tiny_pipelines import FAMILIES

from logsnr.adapters import (
    Algorithm,
    Loop,
    PlanScheduler,
    adaptive,
    noise_schedule,
    parallel,
    reference,
    run_pipeline,
    statistics,
)
from logsnr.adapters.pipelines.ode_algorithms import finite_ends
from logsnr.adapters.pipelines.statistics_algorithm import training_range
from logsnr.solvers import (
    Denoiser,
    Evaluation,
    NFELimitError,
    make_plan,
    plan_on_grid,
    run,
    sample_adaptive,
)
from logsnr.solvers.adaptive import AdaptiveStats
from logsnr.solvers.grids import Grid, node_at
from logsnr.solvers.model_statistics import estimate_ems
from logsnr.solvers.requests import Batch

STEPS = 6


def own(solver: str = "dpm-solver++", **options: Any):
    """A solver on the pipeline's own nodes: what PlanScheduler runs."""
    return lambda x, loop: run(loop.plan(solver, **options), x, loop.prediction, noise=loop.noise)


def arguments(name: str, **changed: Any) -> dict[str, Any]:
    family = FAMILIES[name]
    fixed = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)}
    kind = {"output_type": "latent" if family.latent else "np"}
    return {**fixed, **family.arguments(), **kind, **changed}


def call(name: str, algorithm: Any, *, whole_timesteps: bool = False, **changed: Any):
    pipe = FAMILIES[name].build()
    return run_pipeline(
        pipe, algorithm, whole_timesteps=whole_timesteps, **arguments(name, **changed)
    )


def scheduled(name: str, scheduler: Any) -> torch.Tensor:
    """What the pipeline hands out with another scheduler."""
    with using(FAMILIES[name].build(), scheduler) as pipe:
        return as_tensor(pipe(**arguments(name)))


def result(run_: Any) -> torch.Tensor:
    """What the pipeline handed out."""
    return as_tensor(run_.output)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@contextmanager
def seen(network: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The states and times of a network's calls, as they reach its forward."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = network.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        calls.append((x.clone(), torch.as_tensor(t).clone()))
        return forward(*args, **kwargs)

    noted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    network.forward = noted
    try:
        yield calls
    finally:
        del network.forward


# One evaluation an iteration


@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3", "flux", "wan", "mochi", "sdxl", "dit"])
@pytest.mark.parametrize("solver", ["dpm-solver++", "dpm-solver"])
def test_a_plan_on_the_pipelines_nodes_is_what_plan_scheduler_runs(name, solver):
    family = FAMILIES[name]
    scheduler = PlanScheduler.from_config(family.build().scheduler.config, solver=solver)
    expected = scheduled(name, scheduler)
    got = call(name, own(solver, order=2), whole_timesteps=True)
    assert relative(result(got), expected) < 1e-6
    assert got.stats.evaluations == STEPS == got.stats.iterations
    assert set(got.stats.calls.values()) == {STEPS * family.calls}


def test_ddim_in_stable_diffusion_is_stock_ddim():
    pipe = FAMILIES["sd"].build()
    expected = scheduled("sd", diffusers.DDIMScheduler.from_config(pipe.scheduler.config))
    ours = PlanScheduler.from_config(pipe.scheduler.config, solver="ddim", keep_sampling=True)
    with using(pipe, ours):
        got = call("sd", own("ddim"))
    assert relative(result(got), expected) < 1e-5  # stock keeps its tables in float32


def test_a_plan_made_beforehand_brings_its_own_nodes_and_number_of_evaluations():
    pipe = FAMILIES["sd"].build()
    plan = make_plan("unipc", noise_schedule(pipe.scheduler.config), nfe=9, order=2)
    with seen(pipe.unet) as calls:
        got = call("sd", plan, num_inference_steps=50)
    told = [float(t) for _, t in calls]
    assert told == pytest.approx([1000 * t - 1 for t in plan.times], rel=1e-6)
    assert any(t != round(t) for t in told)  # the times themselves, not whole training steps
    assert got.stats.evaluations == 9 and not got.stats.unused
    with seen(pipe.unet) as calls:
        call("sd", plan, whole_timesteps=True)
    assert [float(t) for _, t in calls] == [float(round(t)) for t in told]


def the_denoiser(loop: Loop) -> Denoiser:
    """The velocity of the tiny SD3 with its guidance, taken out of the pipeline by hand."""
    given = FAMILIES["sd3"].arguments()
    transformer = FAMILIES["sd3"].build().transformer

    def both(name: str, count: int) -> torch.Tensor:
        kinds = [given[f"negative_{name}"], given[name]]
        return torch.cat([kind.expand(count, *kind.shape[1:]) for kind in kinds])

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        doubled = transformer(
            hidden_states=torch.cat([x, x]),
            timestep=torch.cat([t, t]),
            encoder_hidden_states=both("prompt_embeds", len(x)),
            pooled_projections=both("pooled_prompt_embeds", len(x)),
            return_dict=False,
        )[0]
        without, prompted = doubled.chunk(2)
        return without + 7.0 * (prompted - without)

    return Denoiser(velocity, loop.schedule, "flow_prediction", network_time=lambda t: 1000.0 * t)


def test_adaptive_steps_through_sd3_are_those_of_sample_adaptive():
    """The same steps from the same state; the ends, where lambda is infinite, take one each."""
    kept: list[tuple[torch.Tensor, Loop]] = []
    algorithm = adaptive(rtol=0.02)

    def noting(x: torch.Tensor, loop: Loop) -> Any:
        kept.append((x, loop))
        return algorithm.process(x, loop)

    got = call("sd3", Algorithm(noting), num_inference_steps=100, guidance_scale=7.0)
    sample, stats = got.result
    assert isinstance(stats, AdaptiveStats)
    assert got.stats.evaluations == stats.nfe + 2 == got.stats.calls["transformer"] < 100
    (x, loop) = kept[0]
    first, last = finite_ends(loop)
    denoise = the_denoiser(loop)

    def step(x: torch.Tensor, start: Any, end: Any) -> torch.Tensor:
        plan = plan_on_grid("ddim", Grid(loop.schedule, start.t, end.t, explicit=(start, end)), 1)
        process = run(plan, x, "flow_prediction")
        with torch.no_grad(), pytest.raises(StopIteration) as stop:
            process.send(denoise.evaluate(next(process).x, start.t))
        return stop.value.value

    inner = step(x, loop.nodes[0], first)
    inner, expected = sample_adaptive(
        denoise, inner, loop.schedule, rtol=0.02, t_start=first.t, t_end=last.t
    )
    assert stats.nfe == expected.nfe and stats.rejected == expected.rejected
    assert stats.times == pytest.approx(expected.times, rel=1e-5)
    assert relative(sample, step(inner, last, loop.nodes[-1])) < 1e-4
    assert torch.equal(sample, result(got))


@contextmanager
def gaussian(name: str, scale: float) -> Iterator[None]:
    """The pipeline with the exact network of data N(0, scale^2) in the place of its own.

    The flow maps x_T to scale x_T / sqrt(alpha_T^2 scale^2 + sigma_T^2) at the data.
    """
    pipe = FAMILIES[name].build()
    network, schedule = getattr(pipe, FAMILIES[name].network), noise_schedule(pipe.scheduler.config)
    flow = name == "sd3"

    def exact(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        told = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).double()
        t = (told if flow else told + 1) / 1000
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = schedule.alpha(t).view(shape), schedule.sigma(t).view(shape)
        variance = (alpha * scale) ** 2 + sigma**2
        eps, x0 = sigma * x / variance, alpha * scale**2 * x / variance
        return ((eps - x0 if flow else eps).to(x.dtype),)

    exact.__signature__ = inspect.signature(network.forward)  # type: ignore[attr-defined]
    network.forward = exact
    try:
        yield
    finally:
        del network.forward


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_converged_solutions_of_a_model_with_a_closed_form(name):
    """x_T comes from `latents`; the pipelines hand it to the loop as it is."""
    x = normal(1, 4, 8, 8, dtype=torch.float32)
    kept: list[Loop] = []

    def noting(x: torch.Tensor, loop: Loop) -> Any:
        kept.append(loop)
        return own()(x, loop)

    with gaussian(name, 0.7):
        call(name, noting, latents=x)
        start = kept[0].nodes[0]
        exact = 0.7 / (start.alpha**2 * 0.49 + start.sigma**2) ** 0.5 * x
        # The last step is from one training step short of the data: off by some sigma^2 there.
        end = 1e-3 if name == "sd" else 1e-6
        solution, bar = call(name, reference(nfe=60, coarse=40), latents=x).result
        assert relative(solution, exact) < end + 1e-4 and bar < 5e-4
        finer, finer_bar = call(name, reference(nfe=150, coarse=100), latents=x).result
        assert relative(finer, exact) < end + 5e-6 and finer_bar < 0.3 * bar
        steps, _ = call(name, adaptive(), latents=x, num_inference_steps=80).result
        assert relative(steps, exact) < 3e-2
        tight, stats = call(
            name, adaptive(atol=1e-5, rtol=1e-4), latents=x, num_inference_steps=300
        ).result
        assert relative(tight, exact) < end + 1e-3 and stats.nfe < 298
        few = call(name, own("unipc", order=3), latents=x, num_inference_steps=12).result
        swept = parallel(lambda loop: loop.plan("unipc", order=3), window=12)
        swept = call(name, swept, latents=x, num_inference_steps=12).result[0]
        assert relative(swept, few) < 1e-5


@pytest.mark.parametrize("name", ["sd-img2img", "flux-img2img"])
def test_algorithms_begin_where_the_pipeline_begins(name):
    """At strength 0.5 an image-to-image pipeline starts in the middle of its times."""
    begins: list[float] = []

    def noting(x: torch.Tensor, loop: Loop) -> Any:
        begins.append(loop.nodes[0].sigma)
        return own()(x, loop)

    half = call(name, Algorithm(noting), strength=0.5)
    whole = call(name, Algorithm(noting), strength=1.0)
    assert half.stats.evaluations == STEPS // 2 and whole.stats.evaluations == STEPS
    assert begins[0] < 0.9 * begins[1]
    run_ = call(name, reference(nfe=14, coarse=10), strength=0.5, num_inference_steps=48)
    assert run_.stats.evaluations == 24 and run_.result[1] > 0
    with pytest.raises(ValueError, match="leaves 20 iterations .* needs 24"):
        call(name, reference(nfe=14, coarse=10), strength=0.5, num_inference_steps=40)


def test_thresholding_and_learned_variance_are_those_of_plan_scheduler():
    for name in ("sd", "dit"):
        pipe = FAMILIES[name].build()
        scheduler = PlanScheduler.from_config(
            pipe.scheduler.config, solver="dpm-solver++", thresholding=True
        )
        expected = scheduled(name, scheduler)
        with using(pipe, scheduler):
            got = call(name, own(order=2), whole_timesteps=True)
        assert relative(result(got), expected) < 1e-6


def test_several_images_of_a_prompt_and_stochastic_plans():
    several = {"num_images_per_prompt": 3}
    first = call("sd", own("ddim", eta=1.0), **several)
    again = call("sd", own("ddim", eta=1.0), **several)
    assert len(result(first)) == 3 and torch.equal(result(first), result(again))
    assert not torch.equal(result(first), result(call("sd", own("ddim"), **several)))


def test_callbacks_see_every_evaluation_and_a_plan_heeds_their_edits():
    steps: list[int] = []

    def clear(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return {"latents": torch.zeros_like(given["latents"])} if step == 1 else {}

    with seen(FAMILIES["sd"].build().unet) as calls:
        call("sd", own("unipc"), callback_on_step_end=clear)
    assert steps == [*range(STEPS)]
    assert not calls[2][0].any() and calls[1][0].any() and calls[3][0].any()
    with pytest.raises(ValueError, match="changed the state between two evaluations"):
        call("sd", adaptive(), callback_on_step_end=clear, num_inference_steps=99)


def test_networks_rest_where_a_pipeline_cannot_be_interrupted():
    """DDPMPipeline runs through all its times, but computes nothing after the end."""
    pipe = FAMILIES["ddpm"].build()
    plan = make_plan("ddim", noise_schedule(pipe.scheduler.config), nfe=2, spacing="time")
    expected = result(call("ddpm", plan))
    with seen(pipe.unet) as calls:
        got = call("ddpm", lambda x, loop: run(plan, x, loop.prediction))
    assert len(calls) == 2 == got.stats.calls["unet"] and got.stats.after_end == STEPS - 2
    assert torch.equal(result(got), expected)
    assert "forward" not in vars(pipe.unet)


# Several pairs (x, t) an iteration


def sweeps(solver: str, groups: int, *, opening: bool = True) -> Algorithm:
    """Plain fixed-point sweeps over a plan: all its evaluations at once, until nothing changes."""

    def process(x: torch.Tensor, loop: Loop) -> Any:
        plan = loop.plan(solver)
        nodes = [plan.rows[k].node for k in plan.evaluated]
        states = [x] * len(nodes)
        for _ in nodes:
            outputs = yield Batch(torch.stack(states), nodes)
            replay = run(plan, x, loop.prediction)
            states, evaluation = [], next(replay)
            for output in outputs:
                states.append(evaluation.x)
                try:
                    evaluation = replay.send(output)
                except StopIteration as stop:
                    final = stop.value
        return final

    first = (lambda loop: loop.nodes[: min(groups, len(loop.nodes) - 1)]) if opening else None
    return Algorithm(process, iterations=40, edits=False, groups=groups, opening=first)


BATCHED = ["sd", "sd3", "flux", "wan", "ltx", "qwen-image", "z-image", "sd-controlnet", "lumina2"]


@pytest.mark.parametrize("name", BATCHED)
def test_a_window_of_times_in_one_iteration(name):
    expected = result(call(name, own("ddim"), num_inference_steps=4))
    got = call(name, parallel("ddim", window=4), num_inference_steps=4)
    assert relative(result(got), expected) < 1e-5
    assert got.stats.iterations == got.result[1].sweeps <= 4
    assert got.stats.evaluations == got.result[1].evaluations
    networks = FAMILIES[name].calls * got.stats.iterations
    assert set(got.stats.calls.values()) == {networks}


@pytest.mark.parametrize("groups", [4, 3, 7])
@pytest.mark.parametrize("opening", [True, False])
def test_batches_of_another_size_than_the_iterations(groups, opening):
    """More groups take several iterations, fewer are filled up; both are counted."""
    expected = result(call("sd3", own("ddim"), num_inference_steps=4))
    got = call("sd3", sweeps("ddim", groups, opening=opening), num_inference_steps=4)
    assert relative(result(got), expected) < 1e-5
    iterations = 4 * -(-4 // groups) + (not opening)
    assert got.stats.iterations == iterations == got.stats.calls["transformer"]
    assert got.stats.evaluations == 16
    assert got.stats.unused == iterations * groups - 16


def test_every_sample_is_told_its_own_time_in_the_pipelines_units():
    """Flux divides by 1000; SD passes the time as it is, once for each copy of guidance."""
    schedule = {"sd": lambda node: 1000 * node.t - 1, "flux": lambda node: node.sigma}
    for name, unit in schedule.items():
        pipe, nodes = FAMILIES[name].build(), []

        def noting(x: torch.Tensor, loop: Loop, nodes: list = nodes) -> Any:
            nodes.extend(loop.nodes[:-1])
            return sweeps("ddim", 4).process(x, loop)

        algorithm = Algorithm(noting, groups=4, opening=lambda loop: loop.nodes[:4])
        with seen(getattr(pipe, FAMILIES[name].network)) as calls:
            call(name, algorithm, num_inference_steps=4)
        told = [unit(node) for node in nodes]
        copies = 2 if name == "sd" else 1
        for x, t in calls:
            assert t.tolist() == pytest.approx(told * copies, rel=1e-6) and len(x) == 4 * copies


def test_several_prompts():
    two = {
        "prompt_embeds": normal(2, 5, 16, dtype=torch.float32),
        "negative_prompt_embeds": torch.zeros(2, 5, 16),
        "latents": normal(2, 4, 8, 8, seed=1, dtype=torch.float32),
    }
    expected = result(call("sd", own("ddim"), num_inference_steps=4, **two))
    got = result(call("sd", sweeps("ddim", 4), num_inference_steps=4, **two))
    assert len(got) == 2 and relative(got, expected) < 1e-5


def test_only_the_wanted_sample_is_decoded():
    """Whether the pipeline can be interrupted (SD) or runs on with resting networks (depth)."""
    decoded: list[int] = []
    for name in ("sd", "sd-depth2img"):
        vae = FAMILIES[name].build().vae
        handle = vae.post_quant_conv.register_forward_pre_hook(
            lambda module, args: decoded.append(len(args[0]))
        )
        got = call(name, parallel("ddim", window=4), num_inference_steps=5, output_type="pt")
        handle.remove()
        assert len(got.output.images) == 1
    assert decoded == [1, 1]


def test_groups_of_more_states_than_the_pipeline_has_prompts():
    """With one prompt, a batch of G groups of B states is G B groups of one."""
    answers = []

    def process(x: torch.Tensor, loop: Loop) -> Any:
        states = torch.cat([x, 2 * x, 3 * x]).expand(2, -1, -1, -1, -1)
        answers.append((yield Batch(states, loop.nodes[:2])))
        for node in loop.nodes[:2]:  # the same, group by group and state by state
            for k in (1, 2, 3):
                answers.append((yield Batch(k * x[None], [node])))
        return x

    call("sd3", Algorithm(process, groups=4), num_inference_steps=20)
    together, *single = answers
    assert together.shape == (2, 3, 4, 8, 8)
    torch.testing.assert_close(together.flatten(0, 1), torch.cat(single)[:, 0])


def test_statistics_through_sd3_are_those_of_estimate_ems():
    data = normal(8, 4, 8, 8, dtype=torch.float32)
    kept: list[Loop] = []
    given = {"nodes": 4, "samples": 8, "granularity": "channel", "group": 4, "check": False}
    algorithm = statistics(data, groups=4, **given)

    def noting(x: torch.Tensor, loop: Loop) -> Any:
        kept.append(loop)
        return algorithm.process(x, loop)

    wanted = replace(algorithm, process=noting)
    got = call("sd3", wanted, guidance_scale=7.0)
    expected = estimate_ems(
        the_denoiser(kept[0]),
        data,
        *training_range(kept[0]),
        jacobian="difference",
        derivative="difference",
        lam_step=0.1,
        **given,
    )
    # float32 leaves nothing of s at the ends, where it is a difference of differences.
    for name in ("lam", "l", "s", "b"):
        ours, theirs = getattr(got.result, name)[1:-1], getattr(expected, name)[1:-1]
        torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=1e-3)


# The pipeline afterwards, and errors


def test_the_pipeline_is_as_it_was_whatever_happens():
    pipe = FAMILIES["sd"].build()
    pipe._interrupt = "mine"
    before = {key: value for key, value in vars(pipe).items()}
    hooks = (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks))

    def breaks(x: torch.Tensor, loop: Loop) -> Any:
        yield from own()(x, loop)
        raise RuntimeError("halfway")

    for algorithm in (breaks, own(), parallel("ddim", window=2)):
        try:
            call("sd", algorithm)
        except RuntimeError as error:
            assert str(error) == "halfway"
        assert pipe.scheduler is before["scheduler"] and pipe._interrupt == "mine"
        assert hooks == (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks))
        assert pipe.config["scheduler"] == ("diffusers", "DDIMScheduler")
    del pipe._interrupt


def test_an_interrupt_of_the_users_ends_without_a_result():
    def stop(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    got = call("sd", own(), callback_on_step_end=stop)
    assert got.result is None and got.stats.evaluations == 2


def test_too_few_iterations():
    with pytest.raises(ValueError, match="num_inference_steps allows 3 iterations"):
        call("sd3", forever, num_inference_steps=3)
    with pytest.raises(NFELimitError):
        call("sd3", adaptive(), num_inference_steps=9)


def forever(x: torch.Tensor, loop: Loop) -> Any:
    while True:
        yield Evaluation(x, loop.nodes[0], 0)


def test_a_copy_of_the_times_is_noticed():
    """A pipeline that moves its times to another place does not see what is written later."""

    class UpFront(diffusers.DDPMPipeline):
        @torch.no_grad()
        def __call__(self, num_inference_steps: int = 8, generator: Any = None) -> Any:
            x = torch.randn(1, 3, 8, 8, generator=generator)
            self.scheduler.set_timesteps(num_inference_steps)
            for t in self.scheduler.timesteps.clone():
                x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
            return (x,)

    parts = FAMILIES["ddpm"].build().components
    pipe = UpFront(**parts)
    run_pipeline(pipe, own("ddim"))  # the times of the layout: as good as views
    with pytest.raises(ValueError, match="reads its times up front"):
        run_pipeline(pipe, adaptive(), num_inference_steps=90)


def test_pipelines_that_copy_their_scheduler():
    class Two(diffusers.DDPMPipeline):
        def __call__(self, num_inference_steps: int = 8) -> Any:
            return copy.deepcopy(self.scheduler)

    with pytest.raises(ValueError, match="steps copies of its scheduler"):
        run_pipeline(Two(**FAMILIES["ddpm"].build().components), own())


def test_bad_input():
    pipe = FAMILIES["sd"].build()
    for wrong in (3, "unipc", Algorithm):
        with pytest.raises(ValueError, match="algorithm="):
            run_pipeline(pipe, wrong)
    with pytest.raises(ValueError, match="need a generator"):
        call("sd", lambda x, loop: x)
    with pytest.raises(ValueError, match="yielded Batch"):
        call("sd", sweeps("ddim", 4).process)
    with pytest.raises(ValueError, match="no scheduler"):
        run_pipeline(pipe.unet, own())
    with pytest.raises(ValueError, match="cfg_truncation=0.5"):
        call("z-image", own(), cfg_truncation=0.5)
    with pytest.raises(ValueError, match="groups=0"):
        Algorithm(own(), groups=0)
    with pytest.raises(ValueError, match="coarse=5"):
        reference(nfe=400, coarse=5)
    with pytest.raises(ValueError, match="window=0"):
        parallel("ddim", window=0)
    with pytest.raises(ValueError, match="num_images_per_prompt=2: need 1"):
        call("sd", parallel("ddim"), num_images_per_prompt=2)
    with pytest.raises(ValueError, match="takes none of num_images_per_prompt"):
        call("dit", parallel("ddim"))
    wan = FAMILIES["wan"].build()
    wan.register_to_config(boundary_ratio=0.875)
    with pytest.raises(ValueError, match="boundary_ratio=0.875"):
        call("wan", parallel("ddim"))
    wan.register_to_config(boundary_ratio=None)
    with pytest.raises(ValueError, match="generator has 2 entries"):
        generators = [torch.Generator(), torch.Generator()]
        call("sd", parallel("ddim"), generator=generators)


def test_plans_of_another_schedule_or_start():
    schedule = noise_schedule(FAMILIES["sd"].build().scheduler.config)
    with pytest.raises(ValueError, match="on the pipeline's schedule"):
        call("sd3", make_plan("ddim", schedule, nfe=4))
    plan = make_plan("ddim", schedule, times=[0.3, 0.1, 0.01])
    with pytest.raises(ValueError, match=r"the plan starts at t=0\.3"):
        call("sd", plan)
    with pytest.raises(ValueError, match="the plan starts at t=1"):
        plan = make_plan("ddim", schedule, nfe=4)
        call("sd-img2img", plan, strength=0.5, num_inference_steps=20)
    assert node_at(schedule, 0.3).sigma < 0.9
