"""The noise of stochastic plans in the loop of a pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.family import as_tensor, using
from tiny_pipelines import FAMILIES
from torch import Tensor

from logsnr.adapters import PlanScheduler, parallel, run_pipeline
from logsnr.adapters.pipelines.loop_noise import LoopNoise
from logsnr.adapters.steps.step_noise import StepNoise
from logsnr.solvers import CounterNoise, run


def own(x: Tensor, loop: Any) -> Any:
    return run(loop.plan("ddim", eta=1.0), x, loop.prediction, noise=loop.noise)


def arguments() -> dict[str, Any]:
    given = FAMILIES["sd"].arguments()
    fixed = {"num_inference_steps": 5, "output_type": "latent"}
    return {**given, **fixed, "generator": torch.Generator().manual_seed(0)}


def planned(**config: Any) -> PlanScheduler:
    theirs = FAMILIES["sd"].build().scheduler.config
    return PlanScheduler.from_config(theirs, solver={"name": "ddim", "eta": 1.0}, **config)


def scheduled(scheduler: PlanScheduler) -> Tensor:
    with using(FAMILIES["sd"].build(), scheduler) as pipe:
        return as_tensor(pipe(**arguments(), eta=1.0))


def looped(algorithm: Any, scheduler: PlanScheduler, **given: Any) -> Tensor:
    with using(FAMILIES["sd"].build(), scheduler) as pipe:
        done = run_pipeline(pipe, algorithm, whole_timesteps=True, **arguments(), **given)
    return as_tensor(done.output)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_a_seed_means_one_sample_in_every_way_through_a_pipeline():
    expected = scheduled(planned(noise_seed=11))
    assert relative(looped(own, planned(noise_seed=11)), expected) < 1e-4
    assert relative(looped(own, planned(noise_seed=5), noise=11), expected) < 1e-4
    assert relative(looped(own, planned(noise_seed=5)), expected) > 1e-2
    assert relative(looped(parallel("ddim"), planned(noise_seed=11)), expected) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_generator_draws_for_a_loop_what_it_draws_for_a_scheduler(dtype):
    plan, x = planned(), torch.zeros(2, 3, 4, dtype=dtype)
    plan.set_timesteps(4)
    steps = StepNoise(plan.plan, x)
    steps.generator = torch.Generator().manual_seed(3)
    loop = LoopNoise(None, torch.Generator().manual_seed(3), dtype)
    term = plan.plan.rows[1].noise[0]
    for _ in range(2):
        assert torch.equal(loop(term, x.float()), steps(term, x.float()))


def test_noise_that_does_not_fit_is_refused_before_the_loop_goes_on():
    for noise in ([1, 2, 3], CounterNoise(1, samples=[1, 2, 3]), [torch.zeros(1)] * 9):
        for algorithm in (own, parallel("ddim")):
            with pytest.raises(ValueError, match="noise (has|is for)"):
                looped(algorithm, planned(), noise=noise)
    with pytest.raises(ValueError, match="noise='x'"):
        looped(own, planned(), noise="x")
