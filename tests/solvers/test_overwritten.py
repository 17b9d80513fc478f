"""Tensors that the caller overwrites once they are handed over: buffers that are used again.

A network may return the same buffer at every call, as captured graphs do, and whoever hands over a
start state, a table or a list of times may write other numbers to it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BETAS, GAUSSIAN, normal
from topologies import FROM_PURE_NOISE, REGULAR, topology_cases

from logsnr.adapters import PlanScheduler
from logsnr.adapters.k_diffusion import SAMPLERS, to_k_diffusion
from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    EMS,
    SOLVERS,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    VPLinear,
    estimate_ems,
    make_plan,
    reference_solution,
    run,
    sample,
    sample_adaptive,
    sample_parallel,
)

FLOW, SEEDS = FlowMatching(), [1, 2, 3]
BOTH = [(REGULAR, case) for case in topology_cases(stochastic=True)]
BOTH += [(FROM_PURE_NOISE, case) for case in topology_cases(FROM_PURE_NOISE, stochastic=True)]
CASES = [
    pytest.param(grid, *case.values, id=f"{grid['schedule'].__class__.__name__}-{case.id}")
    for grid, case in BOTH
]


def x_T() -> torch.Tensor:
    return normal(3, 4, seed=1)


def reusing(network: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``network`` with one output buffer for each shape."""
    buffers: dict[torch.Size, torch.Tensor] = {}

    def call(*inputs: Any) -> torch.Tensor:
        output = network(*inputs)
        return buffers.setdefault(output.shape, torch.empty_like(output)).copy_(output)

    return call


def denoisers(schedule: Any = FLOW) -> tuple[Denoiser, Denoiser]:
    """A denoiser, and the same one with one output buffer."""
    exact = exact_denoiser(GAUSSIAN, schedule, "flow_prediction")
    return tuple(
        Denoiser(network, schedule, "flow_prediction", network_time=exact.network_time)
        for network in (exact.network, reusing(exact.network))
    )


# the network's output


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("grid", "name", "options"), CASES)
def test_a_network_may_return_one_buffer(grid, name, options, differentiable):
    plan = make_plan(name, **grid, **options)

    def result(denoise):
        with torch.no_grad():
            process = run(
                plan, x_T(), "flow_prediction", noise=noise(), differentiable=differentiable
            )
            evaluation = next(process)
            while True:
                output = denoise.evaluate(evaluation.x, evaluation.node.t)
                try:
                    evaluation = process.send(output)
                except StopIteration as stop:
                    return stop.value

    fresh, reused = denoisers(grid["schedule"])
    assert torch.equal(result(reused), result(fresh))


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


WAYS: dict[str, Callable[[Denoiser, torch.Tensor], torch.Tensor]] = {
    "sample": lambda d, x: sample(d, x, make_plan("unipc", FLOW, nfe=9)),
    "parallel": lambda d, x: sample_parallel(d, x, make_plan("unipc", FLOW, nfe=9))[0],
    "adaptive": lambda d, x: sample_adaptive(d, x, FLOW, t_end=0.01)[0],
    "reference": lambda d, x: reference_solution(d, x, FLOW, rtol=1e-4)[0],
    **{
        f"k-diffusion {name}": lambda d, x, name=name: SAMPLERS[name](
            to_k_diffusion(d),
            x,
            torch.tensor([10.0, 4.0, 1.0, 0.3, 0.0]),
            disable=True,
            noise_sampler=7,
        )
        for name in SAMPLERS
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_sample(way):
    """With one output buffer, and a start state that is gone as soon as the network is called."""
    fresh, reused = denoisers(VPLinear() if way.startswith("k-diffusion") else FLOW)
    given, network = x_T(), reused.network

    def overwriting(x, t):
        given.fill_(torch.nan)
        return network(x, t)

    reused.network = overwriting
    assert torch.equal(WAYS[way](reused, given), WAYS[way](fresh, x_T()))


def test_the_estimation_of_statistics():
    def network(x, t):
        return x / (1 + t.reshape(-1, 1) * x * x)

    data, given = normal(8, 4, seed=3), normal(8, 4, seed=3)
    fresh, reused = (
        estimate_ems(
            Denoiser(function, VPLinear(), network_time=lambda t: t), samples, nodes=4, samples=8,
            jacobian="difference", derivative="difference", group=4,
        )
        for function, samples in ((network, data), (reusing(network), given))
    )  # fmt: skip
    given.fill_(torch.nan)
    for key in "lsb":
        assert torch.equal(getattr(fresh, key), getattr(reused, key))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_pipeline_may_step_with_one_buffer(name):
    scheduler = PlanScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver=name)
    fresh, reused = denoisers()

    def result(denoise):
        scheduler.set_timesteps(9)
        x, generator = x_T(), noise()
        for t in scheduler.timesteps:
            output = denoise.network(x, (t / 1000).expand(3))
            x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
        return x

    assert torch.equal(result(reused), result(fresh))


# start states


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("grid", "name", "options"), CASES)
def test_the_start_state_may_be_overwritten_from_the_first_evaluation_on(
    grid, name, options, differentiable
):
    plan, (denoise, _) = make_plan(name, **grid, **options), denoisers(grid["schedule"])
    given, chosen = x_T(), {"noise": SEEDS, "differentiable": differentiable}
    result = sample(denoise, given, plan, callback=lambda step: given.fill_(torch.nan), **chosen)
    assert torch.equal(result, sample(denoise, x_T(), plan, **chosen))


# tables, lists and statistics


def alphas() -> torch.Tensor:
    return torch.cumprod(1 - BETAS, 0)


def discrete(schedule: DiscreteVP) -> list[float]:
    return [schedule.alpha(t) for t in (0.001, 0.3, 0.5, 1.0)] + [schedule.time(0.0)]


def table(plan: Any) -> list[Any]:
    return list(plan.rows)


STATISTICS = {"lam": torch.linspace(-4, 4, 5), "l": 1.0, "s": 0.1, "b": 0.2}


def statistics(changed: str, values: torch.Tensor) -> EMS:
    others = {
        key: value if key == "lam" else torch.full((5, 4), value, dtype=torch.float64)
        for key, value in STATISTICS.items()
    }
    return EMS(**{**others, changed: values})


def values_of(ems: EMS) -> list[float]:
    return [x for key in STATISTICS for x in getattr(ems, key).flatten().tolist()]


def laid_out(**lists: Any) -> PlanScheduler:
    scheduler = PlanScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(**lists)
    return scheduler


def stepped(scheduler: PlanScheduler) -> list[float]:
    x = x_T()
    for t in scheduler.timesteps:
        x = scheduler.step(x.tanh(), t, x, return_dict=False)[0]
    return x.flatten().tolist()


FALLING = torch.tensor([1.0, 0.6, 0.3, 0.01], dtype=torch.float64)
COEFFICIENTS = make_plan("unipc", VPLinear(), nfe=4)
HANDED_OVER: dict[str, tuple[torch.Tensor, Callable[[Any], Any], Callable[[Any], Any]]] = {
    # what is handed over, what is made of it, what that says
    "alphas of a schedule": (alphas(), DiscreteVP, discrete),
    "betas of a schedule": (BETAS, DiscreteVP.from_betas, discrete),
    "times of a plan": (FALLING, lambda x: make_plan("unipc", VPLinear(), times=x), table),
    "sigmas of a plan": (FALLING, lambda x: make_plan("unipc", FLOW, sigmas=x), table),
    "lams of a plan": (-FALLING, lambda x: make_plan("unipc", VPLinear(), lams=x), table),
    "coefficients of a plan": (
        COEFFICIENTS.coefficients(),
        COEFFICIENTS.with_coefficients,
        lambda plan: [float(c) for row in plan.rows for c in row.coefficients()],
    ),
    **{
        f"{key} of the statistics": (
            STATISTICS["lam"].double() if key == "lam" else normal(5, 4, seed=2),
            lambda x, key=key: statistics(key, x),
            values_of,
        )
        for key in STATISTICS
    },
    "betas of a scheduler": (
        BETAS,
        lambda x: PlanScheduler(trained_betas=x),
        lambda scheduler: scheduler.add_noise(x_T(), x_T(), torch.tensor([3, 500, 999])).tolist(),
    ),
    "timesteps of a scheduler": (1000 * FALLING, lambda x: laid_out(timesteps=x), stepped),
    "sigmas of a scheduler": (FALLING, lambda x: laid_out(sigmas=x), stepped),
}
AS_ARRAYS = [
    name for name in HANDED_OVER if not name.endswith(("of the statistics", "ients of a plan"))
]


@pytest.mark.parametrize(
    ("name", "array"), [(n, False) for n in HANDED_OVER] + [(n, True) for n in AS_ARRAYS]
)
def test_what_was_made_of_a_tensor_does_not_follow_it(name, array):
    values, make, says = HANDED_OVER[name]
    given = values.clone()
    made = make(given.numpy() if array else given)
    given.fill_(0.123)
    assert says(made) == says(make(values.clone()))
