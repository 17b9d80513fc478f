"""run_pipeline in loops that do more than step: FreeInit, and self-attention guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from tiny import stable_diffusion as sd
from tiny.family import as_tensor, seeded, using
from tiny_pipelines import FAMILIES

from logsnr.adapters import PlanScheduler, adaptive, parallel, run_pipeline
from logsnr.solvers import run

TRAILING = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}


def own(solver: str) -> Any:
    return lambda x, loop: run(loop.plan(solver), x, loop.prediction, noise=loop.noise)


@contextmanager
def free_init(**options: Any) -> Iterator[Any]:
    pipe = FAMILIES["animatediff"].build()
    pipe.enable_free_init(num_iters=3, **options)
    try:
        yield pipe
    finally:
        pipe.disable_free_init()


def arguments(**given: Any) -> dict[str, Any]:
    fixed = {"num_inference_steps": 6, "output_type": "latent", **given}
    return {"generator": torch.Generator().manual_seed(0), **fixed}


@pytest.mark.parametrize("fast", [False, True])
def test_a_plan_in_a_loop_with_free_init(fast):
    """Every pass through the loop is a run of its own: the same as with PlanScheduler."""
    given = FAMILIES["animatediff"].arguments()
    with free_init(use_fast_sampling=fast) as pipe:
        ours = PlanScheduler.from_config(pipe.scheduler.config, solver="ddim", **TRAILING)
        with using(pipe, ours):
            expected = as_tensor(pipe(**given, **arguments()))
            done = run_pipeline(pipe, own("ddim"), whole_timesteps=True, **given, **arguments())
    evaluations = 2 + 4 + 6 if fast else 18
    assert done.stats.evaluations == done.stats.iterations == evaluations
    torch.testing.assert_close(as_tensor(done.output), expected, rtol=0, atol=1e-5)


def test_adaptive_steps_with_free_init():
    """Also where the networks rest or the pipeline is stopped before the loop is over."""
    given = FAMILIES["animatediff"].arguments()
    with free_init() as pipe:
        steps = arguments(num_inference_steps=60)
        done = run_pipeline(pipe, adaptive(rtol=0.5, atol=0.5), **given, **steps)
        again = done.stats.calls["unet"]
    assert again == done.stats.evaluations + done.stats.unused
    assert done.stats.evaluations > done.result[1].nfe
    assert as_tensor(done.output).isfinite().all()


def test_free_init_is_no_loop_for_batches():
    with free_init() as pipe, pytest.raises(ValueError, match="FreeInit"):
        given = FAMILIES["animatediff"].arguments()
        run_pipeline(pipe, parallel("ddim", window=2), **given, **arguments())
    assert not hasattr(pipe.scheduler, "algorithm_run")


@seeded
def self_attention_guidance() -> Any:
    pipe = diffusers.StableDiffusionSAGPipeline(**sd.parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided() -> dict[str, Any]:
    return {**sd.prompt(), "height": 8, "width": 8, "sag_scale": 0.75}


def test_self_attention_guidance_with_whole_timesteps():
    pipe = self_attention_guidance()
    ours = PlanScheduler.from_config(pipe.scheduler.config, solver="ddim", **TRAILING)
    with using(pipe, ours):
        expected = as_tensor(pipe(**guided(), **arguments()))
        done = run_pipeline(pipe, own("ddim"), whole_timesteps=True, **guided(), **arguments())
    assert done.stats.calls == {"unet": 12}
    torch.testing.assert_close(as_tensor(done.output), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm, whole, words", [
    (own("ddim"), False, "whole_timesteps=True"),
    (parallel("ddim", window=2), True, "another for each sample"),
])  # fmt: skip
def test_what_self_attention_guidance_cannot_do_is_said(algorithm, whole, words):
    pipe = self_attention_guidance()
    with pytest.raises(ValueError, match=f"self-attention guidance.*{words}"):
        run_pipeline(pipe, algorithm, whole_timesteps=whole, **guided(), **arguments())


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "ipndm", "heun"])
def test_parallel_runs_what_plan_scheduler_runs(name, solver):
    """With the grid and the options of the solver that was named, also beside another default."""
    family = FAMILIES[name]
    config = family.build().scheduler.config
    given = family.arguments() | arguments(num_inference_steps=8)
    with using(family.build(), PlanScheduler.from_config(config, solver=solver)) as pipe:
        expected = as_tensor(pipe(**given))
    given["generator"] = torch.Generator().manual_seed(0)
    swept = run_pipeline(family.build(), parallel(solver, window=8), whole_timesteps=True, **given)
    scale = float(expected.abs().max())
    torch.testing.assert_close(as_tensor(swept.output), expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("grid", [
    {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    {"keep_sampling": True},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "logsnr"},
], ids=str)  # fmt: skip
def test_parallel_keeps_to_the_grid_of_a_plan_scheduler(grid):
    """Also to the stock grid, once it is named: then it is the run of diffusers' DDIM."""
    family = FAMILIES["sd"]
    config = family.build().scheduler.config
    ours = PlanScheduler.from_config(config, solver="ddim", **grid)
    given = family.arguments() | arguments(num_inference_steps=8)
    stock = grid.get("timestep_spacing", "leading") == "leading"
    expected_from = family.build().scheduler if stock else ours
    with using(family.build(), expected_from) as pipe:
        expected = as_tensor(pipe(**given))
    given["generator"] = torch.Generator().manual_seed(0)
    with using(family.build(), ours) as pipe:
        swept = run_pipeline(pipe, parallel("ddim", window=8), whole_timesteps=True, **given)
    scale = float(expected.abs().max())
    torch.testing.assert_close(as_tensor(swept.output), expected, rtol=0, atol=1e-4 * scale)
