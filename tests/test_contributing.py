"""The worked example of CONTRIBUTING.md runs as printed and has the order that it declares."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from cases import GAUSSIAN, RANGES, grids, normal, plan_for
from places import ROOT

from logsnr.benchmarks.problems.analytic import exact_denoiser, point_mass
from logsnr.solvers import SOLVERS, make_plan, sample

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
NAME = "exp-ab2"


@pytest.fixture
def example():
    """The namespace that the blocks of the document leave; the solver is forgotten afterwards."""
    torch.manual_seed(0)
    namespace: dict = {}
    try:
        for block in BLOCKS:
            exec(compile(block, "CONTRIBUTING.md", "exec"), namespace)
        yield namespace
    finally:
        SOLVERS.pop(NAME, None)


def test_the_solver_has_about_thirty_lines():
    solver, _ = BLOCKS
    assert len([line for line in solver.splitlines() if line.strip()]) <= 32


def test_the_example_prints_its_table_and_ends_near_the_exact_solution(example, capsys):
    exec("print(plan)", example)
    assert capsys.readouterr().out.startswith(f"{NAME}(): 20 NFE, 21 rows")
    assert example["plan"].nfe == 20
    assert float(example["error"]) < 0.1


@pytest.mark.parametrize("space", ["data", "noise"])
def test_its_measured_order_is_the_declared_one(example, space):
    range_ = RANGES["vp_linear"]
    schedule, denoise = range_.schedule, exact_denoiser(GAUSSIAN, range_.schedule)
    x = normal(5, 4, seed=1)
    errors = []
    for nfe in (80, 160, 320):
        plan = make_plan(NAME, schedule, nfe=nfe, space=space, **range_.ends)
        exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
        errors.append((sample(denoise, x, plan) - exact).square().mean().sqrt())
    declared = SOLVERS[NAME].order({"space": space})
    for coarse, fine in pairwise(errors):
        assert float(torch.log2(coarse / fine)) == pytest.approx(declared, abs=0.2)


def test_it_needs_nothing_more_to_be_exact_at_both_singular_ends(example):
    problem = point_mass(torch.tensor([0.7, -1.3, 0.2, 2.0], dtype=torch.float64))
    for name, range_ in RANGES.items():
        if not range_.to_data:
            continue
        denoise = exact_denoiser(problem, range_.schedule, "flow_prediction")
        for arguments in grids(name, 12):
            plan = plan_for(NAME, arguments, {})
            first = plan.rows[0].node
            x = first.alpha * problem.mean + first.sigma * normal(3, 4)
            result = sample(denoise, x, plan)
            torch.testing.assert_close(result, problem.mean.expand(3, 4), rtol=0, atol=1e-10)
