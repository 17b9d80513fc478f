"""What the library itself costs beside what cannot be avoided: ``make bench``.

Plans beside the tables that stock's schedulers lay out, noise beside bare ``torch.randn``, and a
run of large states, without a network, beside a copy of as many bytes. Each group is a pair, timed
in one process; read its ratio. Nothing here is asserted: times belong to a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from scheduler_cases import LATENT

from logsnr.benchmarks.studies.overhead import keep_freed_memory
from logsnr.solvers import DiscreteVP, Plan, VPLinear, make_plan, run
from logsnr.solvers.noise import noise_source

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULE = DiscreteVP.from_betas(BETAS)
TABLES = {
    # solver: stock's scheduler and its options
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}
LARGE = (8, 4, 128, 128)
BATCHES = {"small": (64, 4, 8, 8), "large": LARGE}
ROWS = {
    # solver: options; a row in the middle takes a state and this many outputs
    "1 output": ("ddim", {}),
    "2 outputs": ("dpm-solver++", {"order": 2}),
    "3 outputs": ("deis", {"order": 3}),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


@pytest.mark.parametrize("side", ["stock", "ours"])
@pytest.mark.parametrize("nfe", [10, 50])
@pytest.mark.parametrize("solver", TABLES)
def test_tables(benchmark: Any, solver: str, nfe: int, side: str) -> None:
    """A plan from its arguments, beside the timesteps of stock; Heun's evaluates twice a step."""
    benchmark.group = f"table of {solver}, {nfe} NFE"
    name, options = TABLES[solver]
    stock = getattr(diffusers, name)(**LATENT, **options)
    steps = nfe // 2 if solver == "heun" else nfe
    ours: Callable[[], object] = lambda: make_plan(solver, SCHEDULE, nfe=nfe)  # noqa: E731
    benchmark(ours if side == "ours" else lambda: stock.set_timesteps(steps))


@pytest.mark.parametrize("side", ["torch.randn", "ours"])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("kind", ["generator", "seeds"])
def test_noise(benchmark: Any, kind: str, shape: str, side: str) -> None:
    """One noise term of a row: from one generator, and from a seed for each sample."""
    benchmark.group = f"noise from {kind}, {shape} batch"
    like = torch.zeros(BATCHES[shape])
    generators = [torch.Generator().manual_seed(i) for i in range(len(like))]
    if side == "ours":
        (term, *_) = make_plan("ddim", VPLinear(), nfe=4, eta=1.0).rows[1].noise
        draw = noise_source(generators[0] if kind == "generator" else list(range(len(like))))
        benchmark(lambda: draw(term, like))
    elif kind == "generator":
        benchmark(lambda: torch.randn(like.shape, generator=generators[0]))
    else:
        benchmark(lambda: [torch.randn(like.shape[1:], generator=g) for g in generators])


def traffic(plan: Plan) -> int:
    """Tensors that a run reads and writes at least: the terms of each row and its result."""
    return sum(len(row.states) + len(row.outputs) + 1 for row in plan.rows[1:])


@pytest.mark.parametrize("side", ["copies", "ours"])
@pytest.mark.parametrize("rows", ROWS)
def test_rows(benchmark: Any, rows: str, side: str) -> None:
    """A run of large states, beside copies of as many bytes; a copy reads one and writes one."""
    benchmark.group = f"traffic of rows with {rows}"
    solver, options = ROWS[rows]
    plan = make_plan(solver, VPLinear(), nfe=12, **options)
    x, output = torch.randn(2, *LARGE)
    copies = [torch.empty_like(x) for _ in range(4)]

    @torch.no_grad()
    def ours() -> torch.Tensor:
        process = run(plan, x, "epsilon")
        next(process)
        while True:
            try:
                process.send(output)
            except StopIteration as stop:
                return stop.value

    def copy() -> None:
        for i in range(traffic(plan) // 2):
            copies[i % 4].copy_(copies[(i + 1) % 4])

    benchmark(ours if side == "ours" else copy)
