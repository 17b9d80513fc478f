"""DPM-Solver-v3: its integrals, its degenerate forms, both treatments, tensor plans.

Equality with the official code is in ``test_conformance_command``, the orders of the degenerate
case in ``test_orders``.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import GAUSSIAN, MIXTURE, RANGES, SCHEDULES, normal, start_states, tensor
from scipy.integrate import solve_ivp

from logsnr.benchmarks.problems.analytic import exact_denoiser, point_mass
from logsnr.benchmarks.studies.orders import assert_order
from logsnr.solvers import (
    DATA,
    EMS,
    Grid,
    Plan,
    VPLinear,
    make_plan,
    plan_on_grid,
    reference_solution,
    run,
    sample,
)
from logsnr.solvers.model_statistics.integrals import closed, quadratures, trapezoids

SCHEDULE = VPLinear()
LAMS = [-5.0, -3.3, -0.7, 0.4, 0.45, 4.5]


def smooth(lam: torch.Tensor, *event: int) -> EMS:
    """Statistics that vary with lambda and the coordinate about as those of a model do."""
    phase = torch.linspace(0, 1, math.prod(event), dtype=torch.float64).view(event)
    at = lam.view(-1, *[1] * len(event)) + phase
    return EMS(lam, torch.sigmoid(-at), 0.4 * torch.sin(at) - 0.3, 0.3 * torch.cos(0.7 * at))


def on_schedule(intervals: int, *event: int) -> EMS:
    return smooth(EMS.degenerate(SCHEDULE, intervals=intervals).lam, *event)


def of_gaussian(problem, lam: torch.Tensor) -> EMS:
    """Statistics of N(m, c^2): l = sigma^2 / (alpha^2 c^2 + sigma^2), and g = l m."""
    l = torch.sigmoid(-2 * (lam[:, None] + torch.log(problem.scale)))
    return EMS(lam, l, torch.zeros_like(l), 2 * l * (1 - l) * problem.mean)


def flat(entry) -> list[torch.Tensor]:
    """The numbers of a span, or of a row."""
    values = [*entry[:4], *entry.moments]
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# integrals


def test_splines_are_integrated_to_rounding():
    """Against the differential equations that define the integrals, with the functions exact."""
    ems = smooth(torch.linspace(-5, 4.5, 1001, dtype=torch.float64))

    def functions(lam):
        lam = torch.tensor(lam, dtype=torch.float64)
        return torch.sigmoid(-lam), 0.4 * torch.sin(lam) - 0.3, 0.3 * torch.cos(0.7 * lam)

    def right_side(u, y, start):
        L, S, beta = y[:3]
        l, s, b = map(float, functions(start + u))
        growth = math.exp(L + S)
        powers = [growth * u**i / math.factorial(i) for i in range(4)]
        return [l, s, math.exp(-S) * b, growth * beta, *powers]

    found = quadratures(ems, LAMS, 4)
    for k, (start, end) in enumerate(zip(LAMS, LAMS[1:], strict=False)):
        solution = solve_ivp(
            right_side, (0, end - start), [0.0] * 8, "DOP853", rtol=1e-13, atol=1e-14, args=(start,)
        )
        L, S, bias, response, *moments = solution.y[:, -1]
        scale = math.exp(-L)
        expected = [L, S, bias, response * scale, *(m * scale for m in moments)]
        np.testing.assert_allclose(flat(found.spans[k]), expected, rtol=1e-9, atol=1e-10)
        assert found.l[k] == pytest.approx(float(functions(start)[0]), abs=1e-10)


def test_degenerate_integrals_are_closed():
    ems = EMS.degenerate(SCHEDULE, t_start=1.0, t_end=1e-3, intervals=40)
    lams = [-5.0, -3.3, -0.7, 0.4, 0.45, 4.5]
    for exact, found in zip(closed(lams, 4).spans, quadratures(ems, lams, 4).spans, strict=True):
        np.testing.assert_allclose(flat(found), flat(exact), rtol=1e-10, atol=1e-13)


def test_trapezoids_approach_the_integrals_with_order_two():
    """Halving the spacing of the statistics divides the error by four."""
    errors = []
    for intervals in (60, 120, 240, 480):
        ems = on_schedule(intervals, 2)
        indices = [0, intervals // 6, intervals // 2, intervals]
        found = trapezoids(ems, indices, 4)
        exact = quadratures(on_schedule(960, 2), ems.lam[indices].tolist(), 4)
        pairs = zip(found.spans, exact.spans, strict=True)
        errors.append([relative(torch.stack(flat(a)), torch.stack(flat(b))) for a, b in pairs])
    for coarse, fine in zip(errors, errors[1:], strict=False):
        np.testing.assert_allclose(np.log2(np.array(coarse) / fine), 2, atol=0.1)


def test_blocks_of_coordinates_are_independent(monkeypatch):
    ems = on_schedule(48, 3, 5)
    whole = quadratures(ems, LAMS[:3], 3), trapezoids(ems, [0, 7, 48], 3)
    monkeypatch.setattr("logsnr.solvers.model_statistics.integrals.BLOCK", 4)
    parts = quadratures(ems, LAMS[:3], 3), trapezoids(ems, [0, 7, 48], 3)
    for one, two in zip(whole, parts, strict=True):
        for a, b in zip(one.spans, two.spans, strict=True):
            torch.testing.assert_close(flat(a), flat(b), rtol=1e-14, atol=1e-15)


# degenerate forms


@pytest.mark.parametrize("spacing", ["logsnr", "time"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_statistics_it_is_dpm_solver_pp_with_taylor_weights(order, spacing):
    options = {"nfe": 9, "order": order, "spacing": spacing}
    ours = make_plan("dpm-solver-v3", SCHEDULE, corrector=False, **options)
    theirs = make_plan("dpm-solver++", SCHEDULE, solver_type="taylor", weights="taylor", **options)
    assert len(ours.rows) == len(theirs.rows)
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert (a.node, a.target) == (b.node, b.target)
        assert [j for j, _ in a.outputs] == [j for j, _ in b.outputs]
        scale = max([1.0, *map(abs, b.coefficients())])
        assert a.coefficients() == pytest.approx(b.coefficients(), rel=0, abs=1e-12 * scale)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_degenerate_statistics_and_none_give_one_result(order):
    options = {"nfe": 9, "order": order, "corrector": True, "c_pseudo": False}
    plan = make_plan("dpm-solver-v3", SCHEDULE, **options)
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    x = normal(3, 4)
    spline = make_plan(
        "dpm-solver-v3", SCHEDULE, ems=EMS.degenerate(SCHEDULE), treatment="spline", **options
    )
    torch.testing.assert_close(
        sample(denoise, x, spline), sample(denoise, x, plan), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_l_0_and_s_minus_1_is_dpm_solver(order):
    """Then g = -e^-lambda eps and G = -e^-lambda_s eps: what DPM-Solver interpolates."""
    ems = EMS.degenerate(SCHEDULE)
    ems = replace(ems, l=torch.zeros_like(ems.l), s=-torch.ones_like(ems.s))
    options = {"nfe": 9, "order": order, "t_start": 1.0, "t_end": 1e-3}
    ours = make_plan(
        "dpm-solver-v3", SCHEDULE, ems=ems, treatment="spline", corrector=False, **options
    )
    theirs = make_plan(
        "dpm-solver",
        SCHEDULE,
        steps="multistep",
        solver_type="taylor",
        weights="taylor",
        **options,
    )
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    x = start_states(SCHEDULE, 1.0)
    torch.testing.assert_close(
        sample(denoise, x, ours), sample(denoise, x, theirs), rtol=1e-8, atol=1e-8
    )


# what the statistics are for


@pytest.mark.parametrize("nfe", [1, 3, 5])
def test_a_gaussian_is_solved_exactly_with_its_own_statistics(nfe):
    """There g = l m on every trajectory, so that G is constant and one step is exact."""
    ems = of_gaussian(GAUSSIAN, EMS.degenerate(SCHEDULE).lam)
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    x = normal(5, 4)
    for treatment, tolerance in (("spline", 1e-6), ("published", 2e-3)):
        options = {"ems": ems, "treatment": treatment, "order": min(nfe, 3), "nfe": nfe}
        plan = make_plan("dpm-solver-v3", SCHEDULE, t_start=1.0, t_end=1e-3, **options)
        exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
        assert relative(sample(denoise, x, plan), exact) < tolerance
    plain = make_plan("dpm-solver++", SCHEDULE, nfe=nfe, order=min(nfe, 2), t_end=1e-3)
    assert relative(sample(denoise, x, plain), exact) > 0.03


@pytest.mark.parametrize("options", [{"c_pseudo": False}, {"corrector": False}, {}], ids=str)
def test_both_treatments_converge_and_splines_have_no_floor(options):
    """Trapezoids on 120 intervals leave an error that steps do not remove; splines do not."""
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    x = start_states(SCHEDULE, 1.0)
    exact, _ = reference_solution(denoise, x, SCHEDULE, t_start=1.0, t_end=1e-3, rtol=1e-10)

    def error(treatment: str, intervals: int) -> float:
        ems = EMS.degenerate(SCHEDULE, intervals=intervals)
        plan = make_plan(
            "dpm-solver-v3",
            SCHEDULE,
            nfe=120,
            spacing="logsnr",
            t_start=1.0,
            t_end=1e-3,
            ems=ems,
            treatment=treatment,
            lower_order_final=False,
            **options,
        )
        return relative(sample(denoise, x, plan), exact)

    floor, finer, spline = error("published", 120), error("published", 1920), error("spline", 120)
    assert spline < 0.2 * floor
    assert finer == pytest.approx(spline, rel=0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("order", "corrector", "p_pseudo", "c_pseudo", "expected"),
    [
        (1, False, False, False, 1),
        (1, True, False, True, 2),
        (2, False, False, False, 2),
        (2, True, False, False, 2),
        (3, False, False, False, 3),
        (3, False, True, False, 2),
        (3, True, False, False, 3),
        (3, True, False, True, 2),
    ],
)
def test_the_order_does_not_depend_on_the_statistics(
    order, corrector, p_pseudo, c_pseudo, expected
):
    ems = smooth(torch.linspace(-5, 12, 171, dtype=torch.float64))
    assert_order(
        "dpm-solver-v3",
        expected,
        order=order,
        corrector=corrector,
        p_pseudo=p_pseudo,
        c_pseudo=c_pseudo,
        ems=ems,
        treatment="spline",
    )


# plans with tensors


@pytest.mark.parametrize("treatment", ["published", "spline"])
def test_every_coordinate_is_solved_with_its_own_statistics(treatment):
    """A Gaussian has independent coordinates: each must equal a run with plain numbers."""
    ems = on_schedule(60, 4)
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    x = normal(5, 4)
    options = {"nfe": 7, "t_start": 1.0, "t_end": 1e-3, "treatment": treatment}
    together = make_plan("dpm-solver-v3", SCHEDULE, ems=ems, **options)
    assert not together.numeric and not together.consistent
    result = sample(denoise, x, together)
    for i in range(4):
        one = replace(ems, **{name: getattr(ems, name)[:, i] for name in "lsb"})
        plan = make_plan("dpm-solver-v3", SCHEDULE, ems=one, **options)
        assert plan.numeric
        torch.testing.assert_close(result[:, i], sample(denoise, x, plan)[:, i])


def test_shared_axes_hold_for_all_their_coordinates():
    x = normal(2, 3, 4, 4)
    ems = on_schedule(60, 3, 1, 1)
    expanded = replace(ems, **{name: getattr(ems, name).expand(-1, 3, 4, 4) for name in "lsb"})
    results = [
        sample(lambda x, t: torch.tanh(x), x, make_plan("dpm-solver-v3", SCHEDULE, nfe=5, ems=e))
        for e in (ems, expanded)
    ]
    torch.testing.assert_close(*results)


def test_a_plan_with_tensors_survives_a_file_and_prints(tmp_path):
    ems = replace(on_schedule(60, 4), about={"schedule": repr(SCHEDULE), "samples": 64})
    plan = make_plan("dpm-solver-v3", SCHEDULE, nfe=6, ems=ems, order=2)
    assert json.loads(json.dumps(plan.options)) == plan.options
    assert plan.options["ems"]["samples"] == 64 and plan.options["order"] == 2
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    x, denoise = normal(3, 4), exact_denoiser(GAUSSIAN, SCHEDULE)
    assert torch.equal(sample(denoise, x, loaded), sample(denoise, x, plan))
    assert str(loaded) == str(plan) and "tensor(4,) x0" in str(plan)
    ems.save(tmp_path / "ems")
    again = make_plan("dpm-solver-v3", SCHEDULE, nfe=6, ems=str(tmp_path / "ems"), order=2)
    assert torch.equal(sample(denoise, x, again), sample(denoise, x, plan))
    assert again.options == plan.options


def test_gradients_flow_through_a_plan_with_tensors():
    plan = make_plan("dpm-solver-v3", SCHEDULE, nfe=4, ems=on_schedule(60, 4))
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    x = normal(2, 4).requires_grad_()
    moved, step = normal(2, 4, seed=1), 1e-6
    (gradient,) = torch.autograd.grad(sample(denoise, x, plan).sum(), x)
    ends = [sample(denoise, x.detach() + h * moved, plan).sum() for h in (step, -step)]
    assert float((gradient * moved).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * step), rel=1e-6
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_edit_before_the_corrector_is_kept(k):
    """The run carries it to the state that the corrector starts from, along the row's own a."""
    plan = make_plan("dpm-solver-v3", SCHEDULE, nfe=5, ems=on_schedule(60, 4))
    constant = torch.zeros(2, 4, dtype=torch.float64)

    def final(edit: float) -> torch.Tensor:
        process = run(plan, constant, "sample")
        evaluation = next(process)
        for i in range(5):
            if i == k:
                evaluation.x = evaluation.x + edit
            l = plan.rows[evaluation.index].target.x * plan.rows[evaluation.index].node.alpha + 1
            # A network whose g does not depend on x: the run is linear in x with the row's a's.
            output = (1 - l) * evaluation.x / plan.rows[evaluation.index].node.alpha
            try:
                evaluation = process.send(output)
            except StopIteration as stop:
                return stop.value
        raise AssertionError

    corrections = [row for row in plan.rows[plan.evaluated[k] :] if row.target is None]
    assert len(corrections) > 1
    starts = [dict(row.states) for row in plan.rows]
    factor = torch.ones(4, dtype=torch.float64)
    row = len(plan.rows) - 1
    while plan.rows[row].node != plan.rows[plan.evaluated[k]].node:
        (row, a), *_ = starts[row].items()
        factor = factor * a
    # Of an edit this large the corrector leaves all but its own share, which is of order 1.
    change = final(1e8) - final(0.0)
    torch.testing.assert_close(change, (1e8 * factor).expand(2, 4), rtol=1e-6, atol=0)


# ends and refusals


@pytest.mark.parametrize("treatment", ["published", "spline"])
@pytest.mark.parametrize("name", [name for name, range_ in RANGES.items() if range_.to_data])
def test_singular_ends_lie_outside_the_statistics(name, treatment):
    """A point mass is reached exactly at sigma = 0, whatever the statistics say."""
    range_ = RANGES[name]
    schedule = range_.schedule
    first, last = (schedule.time(lam) for lam in (3.5, -2.5))
    ends = {"t_start": last, "t_end": first}
    ems = smooth(EMS.degenerate(schedule, intervals=600, **ends).lam, 4)
    times = [range_.t_start] if range_.from_pure_noise else []
    times += [schedule.time(lam) for lam in np.linspace(-2.5, 3.5, 8)] + [0.0]
    point = tensor(0.7, -1.3, 0.2, 2.0)
    denoise = exact_denoiser(point_mass(point), schedule, "flow_prediction")
    plan = make_plan("dpm-solver-v3", schedule, times=times, ems=ems, treatment=treatment)
    if range_.from_pure_noise:
        assert plan.rows[0].target == DATA
    result = sample(denoise, normal(3, 4), plan)
    torch.testing.assert_close(result, point.expand(3, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("treatment", ["published", "spline"])
@pytest.mark.parametrize("distance", [1e-8, 1e-12, 1e-16])
def test_a_start_near_pure_noise_needs_no_statistics(distance, treatment):
    schedule = SCHEDULES["flow"]
    ends = {"t_start": schedule.time(-2.5), "t_end": schedule.time(3.5)}
    ems = smooth(EMS.degenerate(schedule, intervals=600, **ends).lam, 4)
    inner = [*(schedule.time(lam) for lam in np.linspace(-2.5, 3.5, 8)), 0.0]
    denoise = exact_denoiser(GAUSSIAN, schedule, "flow_prediction")
    options = {"ems": ems, "treatment": treatment}
    near, limit = (
        sample(
            denoise,
            normal(3, 4),
            make_plan("dpm-solver-v3", schedule, times=[start, *inner], **options),
        )
        for start in (1 - distance, 1.0)
    )
    torch.testing.assert_close(near, limit, rtol=0, atol=10 * distance + 1e-12)


def test_two_nodes_on_one_node_of_the_statistics_are_refused():
    ems = on_schedule(20)
    with pytest.raises(ValueError, match="two nodes .* fall on node .*treatment='spline'"):
        make_plan("dpm-solver-v3", SCHEDULE, nfe=40, ems=ems)
    assert make_plan("dpm-solver-v3", SCHEDULE, nfe=40, ems=ems, treatment="spline").nfe == 40


def test_a_repeated_node_changes_nothing():
    """Explicit grids of pipelines may hold one: the step between equal nodes is none."""
    nodes = make_plan("ddim", SCHEDULE, nfe=5).rows
    repeated = [row.node for row in (*nodes[:3], nodes[2], *nodes[3:])]
    ems = on_schedule(60, 4)
    options = {"ems": ems, "treatment": "spline", "order": 2, "corrector": False}
    grid = Grid(SCHEDULE, repeated[0].t, repeated[-1].t, explicit=tuple(repeated))
    x, denoise = normal(3, 4), exact_denoiser(GAUSSIAN, SCHEDULE)
    expected = sample(denoise, x, make_plan("dpm-solver-v3", SCHEDULE, nfe=5, **options))
    torch.testing.assert_close(
        sample(denoise, x, plan_on_grid("dpm-solver-v3", grid, **options)), expected
    )


def test_published_nodes_lie_on_the_grid_and_splines_leave_them():
    ems = on_schedule(50)
    plain = make_plan("dpm-solver-v3", SCHEDULE, nfe=8)
    published = make_plan("dpm-solver-v3", SCHEDULE, nfe=8, ems=ems)
    spline = make_plan("dpm-solver-v3", SCHEDULE, nfe=8, ems=ems, treatment="spline")
    assert spline.times == plain.times
    spacing = (ems.lam[1] - ems.lam[0]).item()
    for moved, asked in zip(published.rows, plain.rows, strict=True):
        assert abs(ems.lam - moved.node.lam).min() < 1e-9
        assert abs(moved.node.lam - asked.node.lam) <= 0.5 * spacing + 1e-9
    assert (published.times[0], published.rows[-1].node.t) == (1.0, 1e-3)


def test_a_state_of_another_shape_is_refused_before_the_network_is_called():
    plan = make_plan("dpm-solver-v3", SCHEDULE, nfe=5, ems=on_schedule(60, 4))
    for shape in ((3,), (4, 4), ()):
        with pytest.raises(ValueError, match=r"x has event shape .* coefficients of shape \(4,\)"):
            next(run(plan, torch.zeros(2, *shape)))


def test_corrector_above_corrects_early_states_only():
    plan = make_plan("dpm-solver-v3", SCHEDULE, nfe=8, corrector_above=0.5)
    corrected = [row.node.t for row in plan.rows[:-1] if row.target is None]
    assert corrected == [t for t in plan.times[1:] if t > 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treatment": "best"}, "treatment='best': choose one of 'published', 'spline'"),
        ({"order": 4}, "order=4"),
        ({"corrector_above": -1.0}, "corrector_above=-1.0"),
        ({"corrector": "half"}, "corrector='half': need True or False"),
        ({"p_pseudo": 1}, "p_pseudo=1"),
        ({"ems": "no_such_file"}, "no_such_file.*does not exist"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_plan("dpm-solver-v3", SCHEDULES["vp_linear"], nfe=5, **options)
