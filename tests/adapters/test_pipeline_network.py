"""A pipeline called as a network: its own output and guidance, and the gradients of its network."""

from __future__ import annotations

import threading

import pytest
import torch
from scheduler_cases import assert_close
from tiny_pipelines import FAMILIES
from torch import Tensor

from logsnr.adapters import run_pipeline
from logsnr.adapters.pipelines import pipeline_network
from logsnr.adapters.pipelines.pipeline_network import PipelineNetwork
from logsnr.solvers import Plan, make_plan, run, sample, sample_parallel

NAMES = ("sd", "flux", "sd3", "ddpm", "mochi")


def opened(name: str, **changed) -> PipelineNetwork:
    family = FAMILIES[name]
    return PipelineNetwork(family.build(), {**family.arguments(), **changed})


def starts(network: PipelineNetwork, count: int = 1) -> Tensor:
    return torch.randn(count, *network.event, generator=torch.Generator().manual_seed(4))


def waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "logsnr-pipeline"]


def run_of_the_pipeline(name: str, plan: Plan, x: Tensor) -> Tensor:
    """The plan from x in the loop of the pipeline itself."""
    family = FAMILIES[name]

    def process(_: Tensor, loop):
        return (yield from run(plan, x, loop.prediction))

    arguments = family.arguments() | ({"output_type": "latent"} if family.latent else {})
    return run_pipeline(family.build(), process, num_inference_steps=9, **arguments).result


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_through_it_is_the_plan_in_the_pipelines_loop(name):
    pipe = FAMILIES[name].build()
    own, networks = pipe.scheduler, [m for m in vars(pipe).values() if hasattr(m, "parameters")]
    wanted = [p.requires_grad for m in networks for p in m.parameters()]
    with opened(name) as network:
        x = starts(network)
        plan = make_plan("unipc", network.schedule, nfe=4)
        found = sample(network.denoiser([0]), x, plan)
        together, _ = sample_parallel(network.denoiser([0]), x, plan)
        pair = sample(network.denoiser([0, 0]), torch.cat([x, 1 + x]), plan)
    expected = run_of_the_pipeline(name, plan, x)
    assert torch.equal(found, expected)
    assert_close(together, expected, 1e-5)
    assert_close(pair[:1], expected, 1e-5)
    # and nothing of the pipeline is changed
    assert pipe.scheduler is own and not waiting()
    assert [p.requires_grad for m in networks for p in m.parameters()] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_output(name):
    """With respect to the states and to the time, against central differences."""
    with opened(name) as network:
        denoise, x = network.denoiser([0]), starts(network).requires_grad_()
        t = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
        weights = starts(network).flip(-1)

        def value(x: Tensor, t: Tensor) -> Tensor:
            return (denoise.evaluate(x, t).double() * weights).sum()

        slopes = torch.autograd.grad(value(x, t), (x, t))
        with torch.no_grad():
            direction = slopes[0] / slopes[0].norm()
            h = 0.1
            along = (value(x + h * direction, t) - value(x - h * direction, t)) / (2 * h)
            late, early = value(x, t + 1e-4), value(x, t - 1e-4)
    assert abs(along - slopes[0].norm()) < 0.02 * slopes[0].norm()
    assert abs((late - early) / 2e-4 - slopes[1]) < 0.02 * slopes[1].abs() + 1e-2


def test_a_plan_is_differentiated_through_the_pipeline():
    with opened("flux") as network:
        plan = make_plan("unipc", network.schedule, nfe=3)
        values = plan.coefficients().requires_grad_()
        x, denoise = starts(network), network.denoiser([0])

        def loss(values: Tensor) -> Tensor:
            return sample(denoise, x, plan.with_coefficients(values)).double().square().mean()

        (slopes,) = torch.autograd.grad(loss(values), values)
        step = 1e-2 * slopes / slopes.norm()
        with torch.no_grad():
            change = (loss(values + step) - loss(values - step)) / 2
    assert abs(change - (slopes * step).sum()) < 0.02 * (slopes * step).sum()


def test_its_loop_begins_again_when_it_is_through(monkeypatch):
    monkeypatch.setattr(pipeline_network, "ITERATIONS", 3)
    with opened("ddpm") as network:
        x, plan = starts(network), make_plan("unipc", network.schedule, nfe=4)
        found = sample(network.denoiser([0]), x, plan)
    assert torch.equal(found, run_of_the_pipeline("ddpm", plan, x))


def test_errors_of_the_pipeline_are_the_callers():
    with pytest.raises(TypeError, match="nonsense"):
        opened("flux", nonsense=3).__enter__()
    with pytest.raises(ValueError, match=r"begin in the middle of a run \(strength\)"):
        opened("sd-img2img")
    assert not waiting()
    with opened("sd") as network:
        denoise = network.denoiser([0])
        with pytest.raises(RuntimeError):
            denoise.evaluate(torch.zeros(1, 2, 3, 3), 0.5)  # channels that its network has not
        x = starts(network)
        assert denoise.evaluate(x, 0.5).isfinite().all()  # and it goes on
