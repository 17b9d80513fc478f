"""The tensor part of a step can be compiled whole and captured: nothing in it asks the host.

Between two network evaluations a run stores the output and fills in rows (`Products`). Which rows
is known before the run, so the work is a fixed list of operations: no graph break under
torch.compile, no value read back, no control flow that depends on data.
"""

from __future__ import annotations

import pytest
import torch
from scheduler_cases import FAMILIES, start
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logsnr.adapters import PlanScheduler
from logsnr.solvers import SOLVERS, Plan
from logsnr.solvers.products import Products

NFE = 4
# Operations by which a value reaches the host, or whose result's shape depends on data.
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


def advance(rows: Products, k: int, until: int, output: Tensor) -> Tensor:
    """What happens between two evaluations: the output of row k in, the state of row until out."""
    rows.evaluate(k, output, shared=True)
    for j in range(k + 1, until + 1):
        state = rows.combine(j, lambda term, like: like)
    return state


def run_through(plan: Plan, step) -> list[Tensor]:
    rows = Products(plan, "epsilon", start())
    outputs = torch.randn(plan.nfe, *start().shape, generator=torch.Generator().manual_seed(2))
    ends = [*plan.evaluated[1:], len(plan.rows) - 1]
    pairs = zip(plan.evaluated, ends, outputs, strict=True)
    return [step(rows, k, until, output).clone() for k, until, output in pairs]


def plan_of(solver: str) -> Plan:
    config, _ = FAMILIES["sd"]
    scheduler = PlanScheduler(**config, solver=solver)
    scheduler.set_timesteps(NFE)
    return scheduler._evaluations.plan(0, scheduler._nodes, 0.0)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc", "heun"])
def test_the_tensor_part_of_a_step_compiles_without_a_graph_break(solver):
    plan = plan_of(solver)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        expected = run_through(plan, advance)
        # fullgraph raises at the first graph break
        compiled = run_through(plan, torch.compile(advance, backend=backend, fullgraph=True))
        torch._dynamo.reset()
        report = torch._dynamo.explain(advance)
        rows = Products(plan, "epsilon", start())
        counted = report(rows, 0, plan.evaluated[1], start())
    torch._dynamo.reset()
    assert counted.graph_break_count == 0 and counted.graph_count == 1
    assert len(graphs) == NFE
    for a, b in zip(compiled, expected, strict=True):
        assert torch.equal(a, b)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("family", ["sd", "flow", "edm", "video"])
def test_no_step_reads_a_value_and_every_image_runs_the_same_operations(solver, family):
    config, given = FAMILIES[family]
    scheduler = PlanScheduler(**config, solver=solver)

    @torch.no_grad()
    def operations(x: Tensor) -> list[list[str]]:
        scheduler.set_timesteps(NFE, **given)
        steps = []
        for t in scheduler.timesteps:
            output = torch.tanh(x)
            with Operations() as seen:
                x = scheduler.step(output, t, x, return_dict=False)[0]
            steps.append(seen.names)
        return steps

    operations(start())  # plans and their tables are kept from the first image on
    once, other = operations(start()), operations(1e6 * start())
    assert once == other
    assert not READS & {name for step in once for name in step}
    # The first step also lays out the run; every other one is a handful of operations.
    tensor_work = [name for step in once[1:] for name in step if "view" not in name]
    assert len(tensor_work) <= 8 * (NFE - 1)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
def test_compiling_step_compiles_nothing_again(solver):
    """It runs as it is, also inside what is compiled around it, which is compiled once."""
    scheduler = PlanScheduler(**FAMILIES["sd"][0], solver=solver)

    @torch.no_grad()
    def loop(step) -> Tensor:
        scheduler.set_timesteps(12)
        x = start()
        for t in scheduler.timesteps:
            x = step(torch.tanh(x), t, x, return_dict=False)[0]
        return x

    def doubled(output: Tensor, t: Tensor, x: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (scheduler.step(output * 2, t, x, return_dict=return_dict)[0] * 2,)

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(
            loop(torch.compile(scheduler.step, backend=backend)), loop(scheduler.step)
        )
        assert not graphs
        assert torch.equal(loop(torch.compile(doubled, backend=backend)), loop(doubled))
        assert len(graphs) == 2  # before step and after it
    torch._dynamo.reset()
