"""What a step consists of. No timers: they would measure the machine that runs the tests."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.cli.overhead import overhead
from logsnr.benchmarks.studies.overhead import (
    LATENT,
    PAIRS,
    Count,
    Counter,
    count_step,
    pair,
    parse_shape,
)
from logsnr.solvers import SOLVERS

SHAPE = (2, 3, 8, 8)
FLOW = {"shift": 3.0}
AVAILABLE = [name for name, (_, _, solver) in PAIRS.items() if solver in SOLVERS]


@pytest.mark.parametrize("config", [LATENT, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize(
    "solver, order, expected",
    [
        ("ddim", 1, Count(operations=2, allocations=1, host_reads=0)),
        ("dpm-solver++", 2, Count(operations=2, allocations=1, host_reads=0)),
        ("dpm-solver++", 3, Count(operations=2, allocations=1, host_reads=0)),
        ("unipc", 2, Count(operations=3, allocations=1, host_reads=0)),
        ("unipc", 3, Count(operations=3, allocations=1, host_reads=0)),
    ],
)
def test_a_step_stores_an_output_and_forms_one_sum_a_row(config, solver, order, expected):
    scheduler = PlanScheduler(**config, solver=solver, solver_order=order)
    assert count_step(scheduler, SHAPE) == expected


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_step_is_a_fraction_of_the_stock_step(name):
    ours, stock = (count_step(scheduler, SHAPE) for scheduler in pair(name))
    assert 4 * ours.operations <= stock.operations
    assert 2 * ours.allocations < stock.allocations <= 30
    assert ours.host_reads == 0


def test_an_edited_state_costs_no_host_read():
    scheduler = PlanScheduler(**LATENT, solver="unipc")
    scheduler.set_timesteps(6)
    x = torch.randn(SHAPE)
    with torch.no_grad(), Counter(x.numel()) as counter:
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x + 1, return_dict=False)[0]
    assert counter.host_reads == 0


def test_the_counter_counts():
    x = torch.ones(4, 4)
    with Counter(16) as counter:
        y = x.view(16) + 1
        y.add_(1)
        torch.add(y, y, out=y)
        y.sum().item()
    assert counter.count == Count(operations=5, allocations=1, host_reads=1)


def test_the_command_prints_and_writes_json(tmp_path):
    app = typer.Typer()
    app.command()(overhead)
    out = tmp_path / "new" / "overhead.json"
    arguments = ["--shape", "1x2x4x4", "--runs", "1", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert records == json.loads(out.read_text())
    assert [record["pair"] for record in records] == AVAILABLE
    for record in records:
        assert record["shape"] == [1, 2, 4, 4]
        assert record["ratio"] == pytest.approx(record["stock_us"] / record["ours_us"])
    assert CliRunner().invoke(app, ["--shape", "1x2x4x4", "--runs", "1"]).exit_code == 0


@pytest.mark.parametrize("text", ["4", "4x", "0x4", "ax4", "-1x4"])
def test_bad_shapes_are_named(text):
    with pytest.raises(ValueError, match="shape="):
        parse_shape(text)
    app = typer.Typer()
    app.command()(overhead)
    result = CliRunner().invoke(app, [f"--shape={text}"])
    assert result.exit_code == 2 and "--shape" in result.output
