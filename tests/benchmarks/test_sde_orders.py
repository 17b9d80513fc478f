"""Every stochastic solver has the strong and weak orders that it declares."""

import json
import math

import numpy as np
import pytest
import torch
from places import ROOT
from typer import Typer
from typer.testing import CliRunner

from logsnr.benchmarks.cli.order import order
from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.benchmarks.reports.order_table import SDE_BEGIN, SDE_COLUMNS, SDE_END, label, rows_of
from logsnr.benchmarks.studies.coupled_noise import CoupledNoise
from logsnr.benchmarks.studies.curves import Curve
from logsnr.benchmarks.studies.gaussian_law import mean_square_difference, response
from logsnr.benchmarks.studies.orders import assert_order
from logsnr.benchmarks.studies.sde_orders import measure_sde
from logsnr.benchmarks.studies.solver_methods import full_options, variations
from logsnr.solvers import DATA, SOLVERS, Noise, Plan, Row, VPLinear, make_plan, sample

NOISY = [(name, options) for name in SOLVERS for options in variations(name, noisy=True)]
PAGE = ROOT / "docs" / "orders.md"


def name_of(method):
    return "-".join([method[0], *map(str, method[1].values())])


@pytest.mark.parametrize("method", NOISY, ids=name_of)
def test_declared_orders_are_the_strong_and_the_weak_order(method):
    solver, options = method
    assert_order(solver, paths=0, **options)


@pytest.mark.parametrize("method", NOISY[::4], ids=name_of)
def test_orders_hold_where_the_network_is_not_affine(method):
    solver, options = method
    assert_order(solver, **options)


def test_every_solver_that_can_add_noise_declares_a_weak_order():
    for name, options in NOISY:
        entry = SOLVERS[name]
        assert entry.weak is not None, name
        # Noise that does not shrink with the steps leads to no limit.
        least = 0 if name in ("cps", "langevin") else 1
        assert entry.weak(full_options(name, entry.build, options)) >= least


def extrapolated(grid, nfe=None, *, weight=0.5, clock="snr"):
    """The second-order multistep method with noise; its ``weight`` of the difference is 1/2."""
    nodes = grid.nodes(grid.intervals if nfe is None else nfe)
    rows = [Row(nodes[0], target=DATA)]
    for k, (s, t) in enumerate(zip(nodes, nodes[1:], strict=False)):
        h = t.lam - s.lam
        a, b = t.sigma / s.sigma * math.exp(-h), -t.alpha * math.expm1(-2 * h)
        outputs = ((k, b),)
        if k > 0:
            r = (s.lam - nodes[k - 1].lam) / h
            outputs = ((k, b * (1 + weight / r)), (k - 1, -b * weight / r))
        ends = (s.lam, t.lam) if clock == "lambda" else (math.exp(2 * s.lam), math.exp(2 * t.lam))
        noise = Noise(t.sigma * math.sqrt(-math.expm1(-2 * h)), *ends, clock)
        rows.append(
            Row(t, ((k, a),), outputs, DATA if t is not nodes[-1] else None, noise=(noise,))
        )
    return Plan(tuple(rows))


@pytest.mark.parametrize("clock", ["snr", "lambda"])
def test_a_users_own_sampler_is_measured(clock):
    assert_order(extrapolated, strong=1, weak=2, clock=clock)


def test_a_wrong_weight_is_noticed_although_all_marginals_of_a_point_are_right():
    with pytest.raises(AssertionError, match=r"extrapolated\(weight=0.4, .*weak order (0\.9|1\.0)"):
        assert_order(extrapolated, strong=1, weak=2, weight=0.4)


def noise_of_each_step(grid, nfe=None):
    """Ancestral sampling whose noise is no path's: a step's does not add up from its halves'."""
    plan = make_plan(
        "ddim", grid.schedule, lams=[node.lam for node in grid.nodes(grid.intervals)], eta=1.0
    )
    rows = [
        Row(
            row.node,
            row.states,
            row.outputs,
            row.target,
            noise=tuple(term._replace(clock=f"step of {len(plan.rows)}") for term in row.noise),
        )
        for row in plan.rows
    ]
    return Plan(tuple(rows))


def test_noise_that_is_no_path_has_no_strong_order_but_a_weak_one():
    measured = measure_sde(noise_of_each_step, paths=256)
    assert measured.strong_order == pytest.approx(0, abs=0.1)
    assert measured.weak_order == pytest.approx(1, abs=0.25)


def test_the_closed_form_is_what_paths_do():
    """The affine map from start and noise, column by column, and two grids on one path."""
    schedule = VPLinear()
    problem = Gaussian(torch.tensor([0.4, -0.2]), torch.tensor([0.3, 1.5]))
    denoise = exact_denoiser(problem, schedule)
    lams = torch.linspace(-1.5, 1.0, 9, dtype=torch.float64)
    fine, coarse = (
        make_plan("heun", schedule, lams=lams[::stride], s_churn=2.0) for stride in (1, 2)
    )
    generator = torch.Generator().manual_seed(3)
    start, end = fine.rows[0].node, fine.rows[-1].node
    spread = ((start.alpha * problem.scale) ** 2 + start.sigma**2).numpy()
    deviation = (
        torch.randn(20000, 2, dtype=torch.float64, generator=generator)
        * torch.from_numpy(spread).sqrt()
    )
    x_T = start.alpha * problem.mean + deviation
    noise = CoupledNoise([fine, coarse], x_T.shape, generator)
    runs = [sample(denoise, x_T, plan, noise=noise) for plan in (fine, coarse)]
    laws = [response(plan, problem) for plan in (fine, coarse)]
    for x, law in zip(runs, laws, strict=True):
        centred = x - end.alpha * problem.mean
        np.testing.assert_allclose(
            centred.square().mean(0).numpy(), law.variance(spread), rtol=0.05
        )
        # Without noise the map is the plan's to rounding.
        quiet = sample(denoise, x_T[:4], fine, noise=lambda term, like: torch.zeros_like(like))
        expected = end.alpha * problem.mean + deviation[:4] * torch.from_numpy(laws[0].start)
        torch.testing.assert_close(quiet, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        (runs[0] - runs[1]).square().mean(0).numpy(),
        mean_square_difference(*laws, spread),
        rtol=0.05,
    )


def test_a_step_has_the_increments_of_its_halves():
    schedule = VPLinear()
    lams = torch.linspace(-2, 2, 9, dtype=torch.float64)
    plans = [make_plan("ddim", schedule, lams=lams[::n], eta=1.0) for n in (1, 2)]
    noise = CoupledNoise(plans, (3, 2), torch.Generator().manual_seed(0))
    like = torch.zeros(3, 2, dtype=torch.float64)
    fine, coarse = ([row.noise[0].key for row in plan.rows[1:]] for plan in plans)
    for k, term in enumerate(coarse):
        halves = [increment(noise, half, like) for half in fine[2 * k : 2 * k + 2]]
        torch.testing.assert_close(increment(noise, term, like), sum(halves))


def increment(noise, term, like):
    return noise(term, like) * math.sqrt(term.end - term.start)


def test_a_sampled_error_counts_only_if_it_is_told_from_zero():
    assert Curve((0.4, 0.2, 0.1), (16.0, 4.0, 3.0), (0.1, 0.1, 1.0)).slope == pytest.approx(2)
    assert Curve((0.4, 0.2), (16.0, 4.0), (0.1, 1.0)).slope == math.inf


def test_requests_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match=r"expected=1: the plan adds noise; give strong and weak"):
        assert_order("ddim", expected=1, eta=1.0)
    with pytest.raises(ValueError, match=r"strong=1: the plan adds no noise; give expected"):
        assert_order("ddim", strong=1)
    with pytest.raises(ValueError, match=r"strong is missing: extrapolated declares no order"):
        assert_order(extrapolated)
    with pytest.raises(ValueError, match="adds no noise"):
        measure_sde("ddim")


def test_the_page_lists_every_method_with_its_declared_orders():
    text = PAGE.read_text()
    table = text[text.index(SDE_BEGIN) : text.index(SDE_END)]
    rows = [tuple(row) for row in rows_of(table)]
    assert rows[0] == SDE_COLUMNS
    listed = {(row[0], row[1]): (row[2], row[4]) for row in rows[1:]}
    declared = {}
    for name, options in NOISY:
        entry, full = SOLVERS[name], full_options(name, SOLVERS[name].build, options)
        rules = (entry.strong, entry.weak)
        orders = (None if rule is None else rule(full) for rule in rules)
        declared[name, label(name, options)] = tuple(
            "-" if order is None else f"{order:g}" for order in orders
        )
    assert listed == declared, "docs/orders.md is out of date: see its first lines"


def test_command_prints_both_kinds(tmp_path):
    app = Typer()
    app.command()(order)
    page, plot = tmp_path / "page.md", tmp_path / "orders.png"
    old = "".join(f"| {name} | {'1 | ' * 5}\n" for name in ("solver", "ddim", "ddim", "other"))
    page.write_text(f"before\n{SDE_BEGIN}\n{old}{SDE_END}\nafter\n")
    arguments = ["--solver", "ddim", "--set", "eta=1.0", "--paths", "256", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(plot), "--markdown", str(page)])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert entry["strong_order"] == pytest.approx(1, abs=0.25)
    assert entry["weak"]["gaussian"]["slope"] == pytest.approx(1, abs=0.25)
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    head, ddim, other = rows_of(text)
    assert tuple(head) == SDE_COLUMNS
    assert ddim[:3] == ["ddim", "eta=1.0", "1"] and other == ["other", *"11111"]
