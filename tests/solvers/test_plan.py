"""Plans: identities, evaluation counts, refusals, the table, files, and differentiation."""

from __future__ import annotations

import math
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from cases import (
    GAUSSIAN,
    NFE,
    RANGES,
    SCHEDULES,
    every_option,
    grids,
    is_consistent,
    main_options,
    normal,
    plan_for,
    solver_cases,
)

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    DATA,
    NOISE,
    SOLVERS,
    Node,
    Noise,
    Plan,
    Row,
    Target,
    make_plan,
    sample,
)
from logsnr.solvers.identities import identity_residual
from logsnr.solvers.methods.multistep import multistep
from logsnr.solvers.methods.unipc import unic, unip

REGULAR = {"schedule": SCHEDULES["vp_linear"], "nfe": NFE, "spacing": "logsnr"}
SINGULAR = {"schedule": SCHEDULES["flow"], "nfe": NFE, "spacing": "time"}


def worst_identity(plan: Plan) -> float:
    return max(identity_residual(plan.rows, k) for k in range(1, len(plan.rows)))


@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("name", SOLVERS)
def test_identities_and_times_on_every_grid(name, range_name):
    """Identities hold to rounding; calls run from noise to data within the range."""
    for arguments, options in product(grids(range_name, NFE), main_options(name)):
        plan = plan_for(name, arguments, options)
        assert plan.consistent == is_consistent(name, options)
        assert not plan.consistent or worst_identity(plan) < 1e-12, (arguments, options)
        first, last = plan.rows[0].node, plan.rows[-1].node
        assert plan.times[0] == first.t <= arguments["t_start"]
        assert last.t == arguments["t_end"]
        assert all(last.t <= t <= first.t for t in plan.times)
        # Where lambda is infinite nothing can be learnt about the other end of the schedule.
        for k in plan.evaluated:
            node, target = plan.rows[k].node, plan.rows[k].target
            assert node.sigma > 0
            assert node.alpha > 0 or target == DATA


@pytest.mark.parametrize("name", SOLVERS)
def test_identities_hold_for_every_combination_of_options(name):
    for arguments in (REGULAR, SINGULAR):
        for options in filter(partial(is_consistent, name), every_option(name)):
            assert worst_identity(plan_for(name, arguments, options)) < 1e-12, options


def test_identity_residual_is_what_the_formula_says():
    """The identities written out for a row with two states, two outputs, a mixed target, noise."""
    nodes = [Node(1.0, 0.1, 0.99), Node(0.7, 0.4, 0.9), Node(0.4, 0.8, 0.6)]
    rows = [
        Row(nodes[0], target=Target(0.5, 0.25, 2.0)),
        Row(nodes[1], ((0, 1.5),), target=NOISE),
        Row(nodes[2], ((0, 0.3), (1, 0.7)), ((0, 0.2), (1, 0.1)), noise=(Noise(0.5, 0.0, 1.0),)),
    ]
    signal = 0.3 * 0.1 + 0.7 * 0.4 + 0.2 * (0.25 + 2.0 * 0.1)
    noise = 0.3 * 0.99 + 0.7 * 0.9 + 0.2 * (0.5 + 2.0 * 0.99) + 0.1 * 1.0
    variance, largest = noise**2 + 0.5**2, 0.7 * 0.9
    expected = max(abs(signal - 0.8) / 0.8, abs(variance - 0.6**2) / (2 * largest**2))
    assert identity_residual(rows, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "options"), solver_cases(consistent=True))
def test_a_wrong_coefficient_is_refused(name, options):
    plan = make_plan(name, SCHEDULES["vp_linear"], nfe=NFE, **options)
    for k, row in enumerate(plan.rows):
        if not row.outputs:
            continue
        (j, b), *others = row.outputs
        broken = replace(row, outputs=((j, b + 1e-6 * max(1.0, abs(b))), *others))
        with pytest.raises(ValueError, match=f"row {k} breaks its identities"):
            replace(plan, rows=(*plan.rows[:k], broken, *plan.rows[k + 1 :]))


# NFE and times


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 6, 7, 8, 9, 20])
@pytest.mark.parametrize("name", SOLVERS)
def test_nfe_is_what_was_asked_for(name, nfe):
    entry = SOLVERS[name]
    for options in main_options(name):
        block = max(entry.nfe_per_step({**entry.defaults, **options}), options.get("order", 1))
        if nfe < block:
            continue
        for range_name in ("vp_linear", "flow_singular", "edm_to_data"):
            range_ = RANGES[range_name]
            plan = make_plan(
                name, range_.schedule, nfe=nfe, spacing="time", **range_.ends, **options
            )
            fixed = options.get("steps") == "singlestep_fixed"
            assert plan.nfe == (nfe - nfe % block if fixed else nfe), options
            assert plan.nfe == len(plan.times) == sum(row.evaluated for row in plan.rows)


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_a_plan_is_a_pure_function_of_its_arguments(name, options):
    schedule = SCHEDULES["vp_cosine"]
    one, two = (make_plan(name, schedule, nfe=NFE, **options) for _ in range(2))
    assert one.rows == two.rows
    assert one.solver == name and one.options == options


def test_denoise_to_zero_adds_one_evaluation_and_ends_in_it():
    range_ = RANGES["vp_linear"]
    for name in SOLVERS:
        plan = make_plan(name, range_.schedule, nfe=NFE, denoise_to_zero=True, **range_.ends)
        plain = make_plan(name, range_.schedule, nfe=NFE, **range_.ends)
        assert plan.nfe == plain.nfe + 1 and plan.times[-1] == range_.t_end
        assert plan.rows[-1] == Row(Node(0.0, 1.0, 0.0), outputs=((len(plain.rows) - 1, 1.0),))


def test_explicit_grids_are_used_exactly():
    schedule = SCHEDULES["vp_linear"]
    times = [1.0, 0.61, 0.35, 0.2, 1e-3]
    for name, entry in SOLVERS.items():
        plan = make_plan(name, schedule, times=times)
        visited = [row.node.t for row in plan.rows]
        assert entry.nfe_per_step(entry.defaults) > 1 or list(dict.fromkeys(visited)) == times
        assert set(times) <= set(visited)
    plan = make_plan("ddim", schedule, lams=[-3.0, 0.0, 2.0, math.inf])
    assert [row.node.lam for row in plan.rows] == pytest.approx([-3.0, 0.0, 2.0, math.inf])
    plan = make_plan("ddim", schedule, sigmas=[0.99, 0.5, 0.0])
    assert [row.node.sigma for row in plan.rows] == pytest.approx([0.99, 0.5, 0.0], abs=1e-15)


# what a plan refuses

A, B, C = Node(1.0, 0.1, 0.9), Node(0.5, 0.6, 0.8), Node(0.0, 1.0, 0.0)
START = Row(A, target=DATA)
MIDDLE = Row(B, ((0, 0.8 / 0.9),), ((0, 0.6 - 0.8 / 0.9 * 0.1),), DATA)
END = Row(C, outputs=((1, 1.0),))


def test_the_smallest_plans_are_accepted():
    assert Plan((START, Row(C, outputs=((0, 1.0),)))).nfe == 1
    assert Plan((START, MIDDLE, END)).times == (1.0, 0.5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((START,), "rows has 1 entries"),
        ((replace(START, outputs=((0, 1.0),)), END), "row 0 is the start state"),
        ((Row(A), Row(B, ((0, 1.0),))), "no row is evaluated"),
        ((START, MIDDLE), "the last row is the sample"),
        ((START, replace(MIDDLE, states=((1, 1.0),)), END), "row 1: states refers to row 1"),
        ((START, replace(MIDDLE, states=((-1, 1.0),)), END), "row 1: states refers to row -1"),
        ((START, replace(MIDDLE, target=None), END), "row 2: outputs refers to row 1"),
        ((START, replace(MIDDLE, states=((0, math.nan),)), END), "row 1 .*not finite"),
        ((START, replace(MIDDLE, offset=math.inf), END), "row 1 .*not finite"),
        ((START, replace(MIDDLE, noise=(Noise(math.nan, 0, 1),)), END), "row 1 .*not finite"),
        ((START, replace(MIDDLE, node=Node(0.5, 0.6, math.nan)), END), "row 1 .*not finite"),
        ((replace(START, target=Target(math.nan, 1.0, 0.0)), MIDDLE, END), "row 0 .*not finite"),
        ((START, replace(MIDDLE, states=((0, 0.8),)), END), "row 1 breaks its identities"),
    ],
)
def test_malformed_rows_are_refused_by_number(rows, message):
    with pytest.raises(ValueError, match=message):
        Plan(rows)


# the frame of multistep methods


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("space", ["data", "noise"])
def test_a_step_between_equal_nodes_leaves_the_state_alone(space, corrected):
    """And the later steps are as without it: of two evaluations at a node the newer one counts."""
    chosen = {"order": 3, "space": space, "lower_order_final": False}
    chosen["corrector"] = unic(space) if corrected else None
    nodes = [row.node for row in make_plan("ddim", SCHEDULES["vp_linear"], nfe=6).rows]
    at = 3
    plain = Plan(tuple(multistep(nodes, unip(space), **chosen)))
    repeated = Plan(tuple(multistep([*nodes[:at], *nodes[at - 1 :]], unip(space), **chosen)))
    same = repeated.evaluated[at]
    ((state, factor),) = repeated.rows[same].states
    assert factor == 1 and repeated.rows[state].node == repeated.rows[same].node
    assert repeated.rows[same].outputs == ()
    if not corrected:  # otherwise it is evaluated at the corrected state, which is another
        x = normal(3, 4)
        results = [sample(lambda x, t: x.tanh() * t, x, plan) for plan in (plain, repeated)]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


# table


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_table_shows_every_row_once(name, options):
    plan = make_plan(name, SCHEDULES["vp_linear"], nfe=NFE, **options)
    title, head, *lines = str(plan).splitlines()
    assert title.startswith(f"{name}(") and title.endswith(f"{NFE} NFE, {len(plan.rows)} rows")
    assert head.split()[:6] == ["row", "t", "lambda", "alpha", "sigma", "calls"]
    assert [int(line.split()[0]) for line in lines] == list(range(len(plan.rows)))
    for line, row in zip(lines, plan.rows, strict=True):
        assert float(line.split()[1]) == pytest.approx(row.node.t, rel=1e-5)
        for j, b in row.outputs:
            assert f"{b:+.5g} g{j}" in line
        for j, a in row.states:
            assert f"{a:+.5g} x{j}" in line


# files


@pytest.mark.parametrize("arguments", [REGULAR, SINGULAR], ids=["regular", "singular"])
@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_saving_and_loading_is_exact(name, options, arguments, tmp_path):
    plan = plan_for(name, arguments, options)
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.rows == plan.rows
    assert (loaded.solver, loaded.options, loaded.consistent) == (name, options, plan.consistent)
    assert str(loaded) == str(plan)


def test_tensor_coefficients_survive_a_file(tmp_path):
    weight = normal(4, seed=1)
    rows = (
        replace(START, target=Target(0.0, weight, normal(4, seed=2))),
        replace(MIDDLE, outputs=((0, torch.tensor(0.3, dtype=torch.float32)),)),
        replace(END, offset=normal(4, seed=3)),
    )
    plan = Plan(rows, "fitted", {"note": "x"}, consistent=False)
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert not loaded.consistent and not loaded.numeric
    pairs = [
        (plan.rows[0].target.data, loaded.rows[0].target.data),
        (plan.rows[0].target.x, loaded.rows[0].target.x),
        (plan.rows[1].outputs[0][1], loaded.rows[1].outputs[0][1]),
        (plan.rows[2].offset, loaded.rows[2].offset),
    ]
    for saved, read in pairs:
        assert saved.dtype == read.dtype and torch.equal(saved, read)


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "junk").write_bytes(b"not a plan at all")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    for name in ("junk", "weights"):
        with pytest.raises(ValueError, match=f"path=.*{name}.*not a saved plan"):
            Plan.load(tmp_path / name)


# coefficients


@pytest.mark.parametrize("name", SOLVERS)
def test_coefficients_and_back_is_the_same_plan(name):
    schedule = SCHEDULES["vp_linear"]
    plan = make_plan(name, schedule, nfe=NFE)
    values = plan.coefficients()
    rebuilt = plan.with_coefficients(values)
    assert torch.equal(values, torch.stack([c for row in rebuilt.rows for c in row.coefficients()]))
    denoise = exact_denoiser(GAUSSIAN, schedule)
    x = normal(3, 4)
    torch.testing.assert_close(
        sample(denoise, x, rebuilt, noise=7),
        sample(denoise, x, plan, noise=7),
        rtol=1e-11,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_gradient_with_respect_to_coefficients_agrees_with_differences(name):
    schedule = SCHEDULES["vp_linear"]
    plan = make_plan(name, schedule, nfe=NFE)
    denoise = exact_denoiser(GAUSSIAN, schedule)
    x, weights = normal(2, 4, seed=3), normal(2, 4, seed=4)
    values = plan.coefficients().requires_grad_()
    direction = normal(len(values), seed=5)

    def loss(shift: float) -> torch.Tensor:
        shifted = plan.with_coefficients(values + shift * direction)
        return (weights * sample(denoise, x, shifted, noise=7)).sum()

    (gradient,) = torch.autograd.grad(loss(0.0), values)
    step = 1e-6
    with torch.no_grad():
        slope = float(loss(step) - loss(-step)) / (2 * step)
    assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5)


def test_values_of_the_wrong_shape_are_refused():
    plan = make_plan("ddim", SCHEDULES["vp_linear"], nfe=3)
    with pytest.raises(ValueError, match=r"values has shape \(2,\): need \(6,\)"):
        plan.with_coefficients(torch.zeros(2))
    with pytest.raises(ValueError, match="plain numbers"):
        plan.with_coefficients(plan.coefficients().requires_grad_()).coefficients()


def test_a_fitted_plan_without_gradients_is_a_plan_of_numbers(tmp_path):
    plan = make_plan("unipc", SCHEDULES["vp_linear"], nfe=NFE)
    values = (plan.coefficients() * 1.01).requires_grad_()
    fitted = plan.with_coefficients(values.detach())
    expected = values.detach().clone()
    assert not plan.with_coefficients(values).numeric and fitted.numeric
    with torch.no_grad():
        values.zero_()  # what it was fitted with goes on changing, the plan does not
    assert torch.equal(fitted.coefficients(), expected)
    fitted.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.numeric and torch.equal(loaded.coefficients(), expected)
    denoise, x = exact_denoiser(GAUSSIAN, SCHEDULES["vp_linear"]), normal(3, 4)
    assert torch.equal(sample(denoise, x, loaded), sample(denoise, x, fitted))


def test_a_copy_of_a_plan_is_itself_and_a_label_makes_another():
    plan = make_plan("ddim", SCHEDULES["vp_linear"], nfe=3)
    assert copy(plan) is plan and deepcopy([plan])[0] is plan
    other = plan.labelled("other", {"a": 1})
    assert (other.solver, other.options, other.rows) == ("other", {"a": 1}, plan.rows)
    assert plan.solver == "ddim"


def test_stochastic_plans_say_so():
    schedule = SCHEDULES["vp_linear"]
    assert make_plan("ddim", schedule, nfe=3, eta=1.0).stochastic
    assert not make_plan("ddim", schedule, nfe=3).stochastic
