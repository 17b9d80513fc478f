"""SA-Solver: its weights by another quadrature, marginals, limits, where tau acts, its input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import GAUSSIAN, RANGES, SCHEDULES, start_states
from scipy.integrate import quad

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import Plan, VPLinear, make_plan, sample
from logsnr.solvers.identities import marginal_deviations

LAMS = [-2.0, -1.2, -0.5, 0.6, 1.0, 1.5]
EVERYWHERE: dict[str, Any] = {"interval": (0, 1)}


def coefficients(plan: Plan) -> list[float]:
    return plan.coefficients().tolist()


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.5])
def test_weights_are_integrals_of_lagrange_polynomials(tau):
    """The third step, predictor of order 3 and corrector of order 4, by scipy."""
    plan = make_plan(
        "sa-solver", VPLinear(), lams=LAMS, order=3, corrector_order=4, tau=[tau] * 5,
        weights="taylor",
    )  # fmt: skip
    kappa, used = 1 + tau**2, [0, 1, 3, 5]  # rows that are evaluated, oldest first
    start, end = LAMS[2], LAMS[3]
    for row, at in ((plan.rows[5], used[:3]), (plan.rows[6], used)):
        for j, b in row.outputs:
            lam, others = LAMS[used.index(j)], [LAMS[used.index(k)] for k in at if k != j]

            def value(x, lam=lam, others=others):
                basis = math.prod((x - other) / (lam - other) for other in others)
                return kappa * math.exp(kappa * (x - end)) * basis

            expected = row.node.alpha * quad(value, start, end, epsabs=1e-14)[0]
            assert b == pytest.approx(expected, rel=1e-10, abs=1e-13)
        assert [term.scale for term in row.noise] == pytest.approx(
            [row.node.sigma * math.sqrt(-math.expm1(-2 * tau**2 * (end - start)))] * (tau > 0)
        )


@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 2, **EVERYWHERE},
        {"tau": 0.4, "pece": True, **EVERYWHERE},
        {"tau": lambda t: 1 + t, "tau_at": "mean", "weights": "taylor"},
        {"corrector_order": 0, "tau": [0.0, 1.0, 2.0] * 3},
    ],
)
def test_marginals_are_exact_at_every_node(options, range_name):
    range_ = RANGES[range_name]
    plan = make_plan("sa-solver", range_.schedule, nfe=9, **range_.ends, **options)
    assert plan.nfe == 9 and plan.stochastic
    wanted = [row.node.sigma for row in plan.rows]
    assert marginal_deviations(plan.rows) == pytest.approx(wanted, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("space", ["data", "noise"])
def test_tau_zero_is_the_deterministic_adams_method(space):
    grid: dict[str, Any] = {"nfe": 7, "t_end": 0.01}
    plan = make_plan("sa-solver", VPLinear(), **grid, tau=0.0, weights="taylor", space=space)
    adams = make_plan("adams", VPLinear(), **grid, order=3, corrector=True, space=space)
    assert not plan.stochastic
    assert coefficients(plan) == pytest.approx(coefficients(adams), rel=1e-11, abs=1e-13)


def test_published_weights_of_order_two_are_those_of_unipc():
    """The "rescaling" of the authors is B(h) = h of UniPC, "bh1"."""
    grid: dict[str, Any] = {"nfe": 6, "t_end": 0.01, "order": 2}
    plan = make_plan("sa-solver", VPLinear(), **grid, corrector_order=0, tau=0.0)
    unip = make_plan("unipc", VPLinear(), **grid, variant="bh1", corrector=False)
    assert coefficients(plan) == pytest.approx(coefficients(unip), rel=1e-11, abs=1e-13)
    grid |= {"order": 1}
    plan = make_plan("sa-solver", VPLinear(), **grid, corrector_order=2, tau=0.0)
    unipc = make_plan("unipc", VPLinear(), **grid, variant="bh1", corrector=True)
    assert coefficients(plan) == pytest.approx(coefficients(unipc), rel=1e-11, abs=1e-13)


def test_predictor_and_corrector_of_a_step_share_its_noise():
    plan = make_plan("sa-solver", VPLinear(), nfe=8, **EVERYWHERE, weights="taylor")
    pairs = [(a, b) for a, b in zip(plan.rows, plan.rows[1:], strict=False) if a.node == b.node]
    assert len(pairs) == 7
    for predicted, corrected in pairs:
        assert predicted.noise == corrected.noise and len(predicted.noise) == 1


@pytest.mark.parametrize("name", ["vp_linear", "vp_discrete", "flow", "edm"])
def test_a_number_acts_within_its_interval(name):
    schedule = SCHEDULES[name]

    def noisy(**options):
        plan = make_plan("sa-solver", schedule, nfe=20, corrector_order=0, **options)
        shares = []
        for before, row in zip(plan.rows, plan.rows[1:], strict=False):
            node = before.node if options.get("tau_at") == "start" else row.node
            share = node.t
            if name == "edm":
                share = math.log(node.t / 0.002) / math.log(80 / 0.002)
            shares.append((share, bool(row.noise)))
        return shares

    for options, (low, high) in (
        ({}, (0.2, 0.8)),
        ({"interval": (0.3, 0.5)}, (0.3, 0.5)),
        ({"interval": [0.3, 0.5], "tau_at": "start"}, (0.3, 0.5)),
    ):
        found = noisy(**options)
        assert any(noise for _, noise in found)
        assert all(noise == (low <= share <= high) for share, noise in found)


def test_where_a_function_is_asked():
    def tau(t):
        return 2 * t

    def asked(where, **options):
        plan = make_plan(
            "sa-solver", VPLinear(), times=[0.9, 0.5, 0.1], order=1, tau=tau, tau_at=where,
            weights="taylor", **options,
        )  # fmt: skip
        return plan.options["tau"]

    assert asked("end") == pytest.approx([1.0, 0.2])
    assert asked("start") == pytest.approx([1.8, 1.0])
    for value, (low, high) in zip(asked("mean"), [(0.5, 0.9), (0.1, 0.5)], strict=True):
        lam = VPLinear().lam
        square = quad(lambda x: tau(VPLinear().time(x)) ** 2, lam(high), lam(low))[0]
        assert value == pytest.approx(math.sqrt(square / (lam(low) - lam(high))), rel=1e-9)


def test_the_last_step_is_without_noise_as_published():
    def last(**options):
        rows = make_plan("sa-solver", VPLinear(), nfe=6, **options).rows
        return bool(rows[-1].noise)

    assert not last(**EVERYWHERE) and not last(tau=lambda t: 1.0)
    assert last(**EVERYWHERE, weights="taylor") and last(tau=[1.0] * 6)


@pytest.mark.parametrize("correct_last", [False, True])
@pytest.mark.parametrize("nfe", [5, 8, 11])
def test_the_budget_is_kept(nfe, correct_last):
    for pece in (False, True):
        for corrector_order in (0, 2) if not correct_last else (2,):
            plan = make_plan(
                "sa-solver", VPLinear(), nfe=nfe, order=2, corrector_order=corrector_order,
                pece=pece, correct_last=correct_last,
            )  # fmt: skip
            assert plan.nfe == nfe


def test_every_mode_reaches_the_ode_from_its_side():
    """PEC, PECE, a corrected last step: of order 3 and more on Gaussian data with tau = 0."""
    x, schedule = start_states(VPLinear(), 0.5), VPLinear()
    denoise = exact_denoiser(GAUSSIAN, schedule)
    for options in ({}, {"pece": True}, {"correct_last": True}):
        errors = []
        for nfe in (25, 50):
            plan = make_plan(
                "sa-solver", schedule, nfe=nfe, t_start=0.5, t_end=0.05, spacing="logsnr",
                tau=0.0, weights="taylor", lower_order_final=False, **options,
            )  # fmt: skip
            exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
            errors.append(float((sample(denoise, x, plan) - exact).norm()))
        assert errors[1] < errors[0] / 3.5 and errors[1] < 2e-3


def test_noise_space_leaves_the_marginals_and_says_so():
    options: dict[str, Any] = {"nfe": 8, "space": "noise"}
    with pytest.raises(ValueError, match="space='noise'.*keep_marginals=False"):
        make_plan("sa-solver", VPLinear(), **options)
    plan = make_plan(
        "sa-solver", VPLinear(), lams=[-1, 0, 1], tau=[0.5, 0.0], order=1, corrector_order=0,
        space="noise", keep_marginals=False,
    )  # fmt: skip
    excess = 1 + (0.5**2 + 0.5**4) * (math.e - 1) ** 2
    deviation = marginal_deviations(plan.rows)[1]
    assert deviation == pytest.approx(plan.rows[1].node.sigma * math.sqrt(excess), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 5}, "order=5"),
        ({"predictor_order": 5}, "predictor_order=5"),
        ({"corrector_order": 6}, "corrector_order=6"),
        ({"corrector_order": -1}, "corrector_order=-1"),
        ({"tau": -1.0}, "tau=-1.0"),
        ({"tau": "often"}, "tau='often'"),
        ({"tau": math.nan}, "tau=nan"),
        ({"tau": [1.0, 1.0]}, "tau has 2 entries: need 6"),
        ({"tau": lambda t: -t}, "tau=-"),
        ({"tau": [1.0] * 6, "interval": (0, 1)}, "interval=.* is for a number tau"),
        ({"interval": (0.8, 0.2)}, "interval="),
        ({"interval": (0.2,)}, "interval="),
        ({"interval": 0.5}, "interval=0.5"),
        ({"interval": (0, math.inf)}, "interval="),
        ({"tau_at": "middle"}, "tau_at='middle'"),
        ({"tau_at": "mean"}, "tau_at='mean'.*function"),
        ({"weights": "own"}, "weights='own'"),
        ({"space": "velocity"}, "space='velocity'"),
        ({"correct_last": True, "corrector_order": 0}, "correct_last=True"),
        ({"correct_last": True, "t_end": 0.0}, "correct_last=True"),
        ({"nfe": 2}, "nfe=2"),
        ({"nfe": 3, "pece": True}, "nfe=3"),
        ({"nfe": 0, "pece": True}, "nfe=0"),
        ({"invert": True}, "tau=1.0.*inversion"),
        ({"pece": 1}, "pece=1"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        make_plan("sa-solver", VPLinear(), **{"nfe": 6, **options})


def test_gradients_reach_tau():
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    plan = make_plan("sa-solver", VPLinear(), nfe=4, order=2, tau=tau, interval=(0, 1))
    x = start_states(VPLinear(), 1.0)
    sample(exact_denoiser(GAUSSIAN, VPLinear()), x, plan, noise=1).sum().backward()
    assert torch.isfinite(tau.grad) and tau.grad != 0
