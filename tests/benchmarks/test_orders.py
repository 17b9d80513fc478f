"""Every registered solver has the order it declares, locally and globally."""

import json
import math

import pytest
import torch
from places import ROOT
from typer import Typer
from typer.testing import CliRunner

from logsnr.benchmarks.cli.order import order
from logsnr.benchmarks.problems.analytic import Gaussian, Mixture, exact_denoiser
from logsnr.benchmarks.reports.order_table import BEGIN, COLUMNS, END, label, rows_of
from logsnr.benchmarks.studies.curves import Curve
from logsnr.benchmarks.studies.exact_history import exact_flows
from logsnr.benchmarks.studies.orders import assert_order, local_errors, measure
from logsnr.benchmarks.studies.solver_methods import full_options, resolve, variations
from logsnr.solvers import DATA, SOLVERS, Node, Plan, VPLinear, reference_solution
from logsnr.solvers.methods.multistep import first_order, multistep

METHODS = [(name, options) for name in SOLVERS for options in variations(name)]
PAGE = ROOT / "docs" / "orders.md"


def name_of(method):
    return "-".join([method[0], *map(str, method[1].values())])


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_declared_order_is_the_local_and_the_global_order(method):
    solver, options = method
    assert_order(solver, **options)


def test_every_solver_is_measured_in_every_space_and_order_it_has():
    noisy = [(name, options) for name in SOLVERS for options in variations(name, noisy=True)]
    methods = METHODS + noisy
    assert {name for name, _ in methods} == set(SOLVERS)
    for name, solver in SOLVERS.items():
        for key in ("space", "order", "steps"):
            if key not in solver.defaults:
                continue
            values = {options[key] for found, options in methods if found == name}
            assert solver.defaults[key] in values
            assert len(values) > 1


# DPM-Solver-3 needs its last inner evaluation at 2/3 of the step, up to O(h): so its order does
# not survive steps whose sizes alternate. iPNDM's fixed weights are those of equal steps.
UNEVEN = [
    (name, options)
    for name, options in METHODS
    if not (options.get("order") == 3 and "singlestep" in options.get("steps", ""))
    and not (name == "ipndm" and options["variant"] == "fixed" and options["order"] > 1)
]


@pytest.mark.parametrize("method", UNEVEN[::3], ids=name_of)
def test_local_order_survives_uneven_steps(method):
    name, options = method
    declared = SOLVERS[name].order(full_options(name, SOLVERS[name].build, options))
    slopes = [curve.slope for curve in local_errors(name, grid="uneven", **options).values()]
    assert min(slopes) - 1 == pytest.approx(declared, abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_fixed_adams_bashforth_weights_have_their_order_on_the_ratio_grid(order):
    assert_order("ipndm", expected=order, grid="ratio", order=order, variant="fixed")


def extrapolated(grid, nfe=None, *, weight=0.5):
    """The second-order multistep method; its ``weight`` of the difference should be 1/2."""

    def predictor(past, end):
        a, b = first_order(DATA, past[0], end)
        if len(past) == 1:
            return a, [b]
        r = (past[0].lam - past[1].lam) / (end.lam - past[0].lam)
        return a, [b * (1 + weight / r), -b * weight / r]

    nodes = grid.nodes(grid.intervals if nfe is None else nfe)
    return Plan(tuple(multistep(nodes, predictor, order=2, lower_order_final=False)))


def test_a_users_own_solver_is_measured():
    assert_order(extrapolated, expected=2)


def test_a_wrong_weight_is_noticed_although_the_plan_is_consistent():
    with pytest.raises(AssertionError, match=r"extrapolated\(weight=0.45\).*local order 0\.98"):
        assert_order(extrapolated, expected=2, weight=0.45)


def test_an_order_that_is_better_than_claimed_is_noticed_too():
    with pytest.raises(AssertionError, match="expected 1"):
        assert_order(extrapolated, expected=1)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="expected is missing"):
        assert_order(extrapolated)
    with pytest.raises(ValueError, match="grid='even'"):
        measure("ddim", grid="even")
    with pytest.raises(ValueError, match="orders=3"):
        measure("unipc", orders=3)
    with pytest.raises(ValueError, match="adds noise"):
        measure("ddim", eta=1.0)
    with pytest.raises(ValueError, match="no_such_module"):
        resolve("no_such_module:solver")


def test_slope_ignores_what_rounding_blurs():
    power = Curve((0.4, 0.2, 0.1, 0.05), (64e-6, 8e-6, 1e-6, 1e-15))
    assert power.slope == pytest.approx(3)
    assert Curve((0.2, 0.1), (0.0, 0.0)).slope == math.inf


def test_the_flow_of_the_mixture_agrees_with_the_reference_solution():
    schedule = VPLinear()
    mixture, flow = exact_flows()[1]
    start, end = (
        Node(t, schedule.alpha(t), schedule.sigma(t)) for t in map(schedule.time, (-4.0, 3.0))
    )
    reference, bar = reference_solution(
        exact_denoiser(mixture, schedule),
        flow(start),
        schedule,
        t_start=start.t,
        t_end=end.t,
        rtol=1e-10,
    )
    assert bar < 1e-7
    torch.testing.assert_close(flow(end), reference, rtol=0, atol=1e-8)


def test_a_mixture_of_one_is_a_gaussian():
    mean, scale = torch.tensor([0.3, -1.0]), 0.7
    mixture = Mixture(torch.ones(1), mean[None], torch.tensor([scale]))
    gaussian = Gaussian(mean, torch.full((2,), scale))
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(6, 2)
    for alpha, sigma in ((0.6, 0.8), (1.0, 1e-6), (1e-6, 1.0)):
        for ours, closed in zip(
            mixture.predict(x, alpha, sigma), gaussian.predict(x, alpha, sigma), strict=True
        ):
            torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-12)


def test_the_denoiser_of_a_mixture_is_the_posterior_mean():
    """Tweedie: x0 = (x + sigma^2 grad log p(x)) / alpha, and eps = -sigma grad log p(x)."""
    mixture = Mixture(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[1.0, 0.0], [-0.5, 0.8]]),
        torch.tensor([0.3, 0.6]),
    )
    alpha, sigma = 0.7, 0.5
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2).requires_grad_()
    variance = (alpha * mixture.scales) ** 2 + sigma**2
    square = (x[:, None] - alpha * mixture.means).square().sum(-1)
    log_p = torch.logsumexp(
        torch.log(mixture.weights) - torch.log(variance) - 0.5 * square / variance, dim=1
    )
    (score,) = torch.autograd.grad(log_p.sum(), x)
    eps, x0 = mixture.predict(x.detach(), alpha, sigma)
    torch.testing.assert_close(eps, -sigma * score)
    torch.testing.assert_close(x0, (x.detach() + sigma**2 * score) / alpha)


def test_the_page_lists_every_method_with_its_declared_order():
    text = PAGE.read_text()
    table = text[text.index(BEGIN) : text.index(END)]
    rows = [tuple(row) for row in rows_of(table)]
    assert rows[0] == COLUMNS
    listed = {(solver, options): declared for solver, options, _, declared, _, _ in rows[1:]}
    declared = {
        (name, label(name, options)): str(
            SOLVERS[name].order(full_options(name, SOLVERS[name].build, options))
        )
        for name, options in METHODS
    }
    assert listed == declared, "docs/orders.md is out of date: see its first lines"


def run_command(*arguments):
    app = Typer()
    app.command()(order)
    return CliRunner().invoke(app, arguments)


def test_command_prints_declared_beside_measured_and_draws(tmp_path):
    plot = tmp_path / "orders.png"
    result = run_command("--solver", "ddim", "--json", "--out", str(plot))
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert entry["declared"] == 1
    assert entry["local_order"] == pytest.approx(1, abs=0.2)
    assert entry["global"]["gaussian"]["slope"] == pytest.approx(1, abs=0.2)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_command_names_a_bad_option():
    result = run_command("--solver", "unipc", "--set", "order")
    assert result.exit_code == 2
    assert "name=value" in result.output
    assert run_command("--solver", "unipcc").exit_code == 2
