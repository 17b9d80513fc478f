"""Nothing in a run waits for its device: on the meta device, which has no values, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import SCHEDULES, solver_cases
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logsnr.adapters import PlanScheduler
from logsnr.solvers import SOLVERS, Denoiser, Evaluation, make_plan, run, sample
from logsnr.solvers.noise import noise_source
from logsnr.solvers.products import Products

SCHEDULE = SCHEDULES["vp_linear"]
SHAPE = (2, 4, 8, 8)
NFE = 8


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 + t.to(x.dtype)).view(-1, 1, 1, 1)


DENOISE = Denoiser(network, SCHEDULE)


def to_the_end(process, evaluation: Evaluation) -> Tensor:
    while True:
        try:
            evaluation = process.send(DENOISE.evaluate(evaluation.x, evaluation.node.t))
        except StopIteration as stop:
            return stop.value


class OneDevice(TorchDispatchMode):
    """Fails for an operation between a tensor of the run and one on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [arg for arg in torch.utils._pytree.tree_leaves(args) if isinstance(arg, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, Tensor) else tensors[0]
        assert {tensor.device for tensor in [*tensors, made]} == {made.device}, str(func)
        return result


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_a_step_reads_no_value_and_takes_nothing_from_the_host(name, options):
    plan = make_plan(name, SCHEDULE, nfe=NFE, **options)
    with torch.no_grad():
        process = run(plan, torch.empty(SHAPE, device="meta"), "epsilon")
        evaluation = next(process)
        with OneDevice():
            assert to_the_end(process, evaluation).device.type == "meta"


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_no_step_waits_for_the_gpu(name, options):
    plan = make_plan(name, SCHEDULE, nfe=NFE, **options)
    x = torch.randn(SHAPE, device="cuda")
    with torch.no_grad():
        process = run(plan, x, "epsilon")
        evaluation = next(process)
        with no_waiting():
            result = to_the_end(process, evaluation)
    if not plan.stochastic:
        expected = sample(DENOISE, x.cpu(), plan)
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-5)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", SOLVERS)
def test_no_step_of_a_scheduler_waits_for_the_gpu(name):
    scheduler = PlanScheduler(solver=name)
    scheduler.set_timesteps(NFE, device="cuda")
    x = torch.randn(SHAPE, device="cuda")
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            output = torch.tanh(x)
            if i == 0:  # the plan's numbers go to the device with the first step
                x = scheduler.step(output, t, x, return_dict=False)[0]
                continue
            with no_waiting():
                x = scheduler.step(output, t, x, return_dict=False)[0]
    assert x.isfinite().all()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_can_be_captured_in_a_cuda_graph(name):
    plan = make_plan(name, SCHEDULE, nfe=NFE)
    if plan.stochastic:
        pytest.skip("a captured run has the noise of its capture")
    static = torch.randn(SHAPE, device="cuda")

    def whole() -> Tensor:
        executor = Products(plan, "epsilon", static)
        for k, row in enumerate(plan.rows):
            if k > 0:
                executor.combine(k, noise_source(None))
            if row.evaluated:
                output = DENOISE.evaluate(executor.waiting, row.node.t)
                executor.evaluate(k, output, shared=False)
        return executor.waiting

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            whole()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = whole()
        static.copy_(torch.randn(SHAPE, device="cuda"))
        graph.replay()
        torch.testing.assert_close(captured, whole(), rtol=1e-5, atol=1e-5)
