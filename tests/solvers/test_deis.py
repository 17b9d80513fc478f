r"""DEIS, LMS and iPNDM: their weights against closed forms and adaptive quadrature.

The multistep variants must be exact when eps is a polynomial of degree order - 1 in their own
variable: then x / alpha at the end of the step is known in closed form, or by adaptive
quadrature where the variable is t.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.solvers import (
    DiscreteVP,
    FlowMatching,
    Node,
    NoiseSchedule,
    Plan,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
    sample,
)
from logsnr.solvers.methods.lagrange import means, panels

SCHEDULES: list[NoiseSchedule] = [VPLinear(), VPCosine(), FlowMatching(), VarianceExploding()]
TIMES = [0.9, 0.7, 0.45, 0.3, 0.12, 0.05]


def rho(node: Node) -> float:
    return node.sigma / node.alpha


def increments(plan: Plan, row: int, eps: dict[int, float]) -> float:
    """(x_t / alpha_t - x_s / alpha_s) of a row of a noise-space plan, for given eps of its rows."""
    end = plan.rows[row]
    (base, a), *_ = end.states
    assert a == pytest.approx(end.node.alpha / plan.rows[base].node.alpha, rel=1e-14)
    return sum(b * eps[j] for j, b in end.outputs) / end.node.alpha


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("solver, options", [
    ("deis", {"variant": "rhoab"}), ("lms", {}), ("ipndm", {"variant": "variable"}),
])  # fmt: skip
def test_polynomials_in_rho_are_integrated_exactly(
    schedule: NoiseSchedule, order: int, solver: str, options: dict[str, Any]
) -> None:
    plan = make_plan(solver, schedule, times=TIMES, order=order, **options)
    nodes = [row.node for row in plan.rows]
    unit = rho(nodes[0])
    for k in range(order, len(nodes)):
        for degree in range(order):
            power = Polynomial.basis(degree + 1) / (degree + 1)
            exact = unit * (power(rho(nodes[k]) / unit) - power(rho(nodes[k - 1]) / unit))
            eps = {j: (rho(node) / unit) ** degree for j, node in enumerate(nodes)}
            assert increments(plan, k, eps) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomials_in_time_are_integrated_exactly(schedule: NoiseSchedule, order: int) -> None:
    plan = make_plan("deis", schedule, times=TIMES, order=order, variant="tab")
    nodes = [row.node for row in plan.rows]
    for k in range(order, len(nodes)):
        for degree in range(order):
            exact, bound = quad(
                lambda lam, d=degree: schedule.time(lam) ** d * -math.exp(-lam),
                nodes[k - 1].lam,
                nodes[k].lam,
                epsabs=0,
                epsrel=1e-13,
                limit=200,
            )
            assert bound < 1e-11 * abs(exact)
            eps = {j: node.t**degree for j, node in enumerate(nodes)}
            assert increments(plan, k, eps) == pytest.approx(exact, rel=1e-11)


def test_time_of_a_discrete_schedule_is_integrated_across_its_kinks() -> None:
    betas = torch.linspace(1e-3, 0.15, 20, dtype=torch.float64)
    schedule = DiscreteVP.from_betas(betas)
    plan = make_plan("deis", schedule, times=[1.0, 0.62, 0.33, 0.07], order=3, variant="tab")
    nodes = [row.node for row in plan.rows]
    knots = schedule.lam(torch.arange(1, 21, dtype=torch.float64) / 20).tolist()
    for degree in range(3):
        edges = [nodes[2].lam, *sorted(v for v in knots if nodes[2].lam < v < nodes[3].lam)]
        exact = sum(
            quad(lambda lam, d=degree: schedule.time(lam) ** d * -math.exp(-lam), a, b,
                 epsabs=0, epsrel=1e-13)[0]
            for a, b in zip(edges, [*edges[1:], nodes[3].lam], strict=True)
        )  # fmt: skip
        eps = {j: node.t**degree for j, node in enumerate(nodes)}
        assert increments(plan, 3, eps) == pytest.approx(exact, rel=1e-12)


@given(
    st.lists(st.floats(0.02, 3.0), min_size=1, max_size=5),
    st.floats(0.01, 30.0),
)
def test_means_of_lagrange_polynomials_sum_to_one(gaps: list[float], width: float) -> None:
    at = -np.cumsum([0.0, *gaps[1:]])
    shares = means(at.tolist(), *panels(0.0, width))
    assert sum(shares) == pytest.approx(1.0, abs=1e-12 * float(np.abs(shares).sum()))


def test_equal_steps_have_the_classical_weights() -> None:
    # Equal steps in sigma: rhoAB, LMS and both forms of iPNDM are one method.
    times = np.linspace(10.0, 1.0, 10).tolist()
    plans = [
        make_plan(solver, VarianceExploding(), times=times, order=4, **options)
        for solver, options in [
            ("ipndm", {}), ("ipndm", {"variant": "variable"}), ("lms", {}),
            ("deis", {"variant": "rhoab"}),
        ]
    ]  # fmt: skip
    for plan in plans:
        weights = [b for _, b in plan.rows[7].outputs]
        assert weights == pytest.approx([-55 / 24, 59 / 24, -37 / 24, 9 / 24], rel=1e-12)


def test_order_one_is_ddim() -> None:
    ddim = make_plan("ddim", VPLinear(), nfe=6, space="noise")
    for variant in ("tab", "rhoab", "rhork"):
        plan = make_plan("deis", VPLinear(), nfe=6, order=1, variant=variant)
        assert plan.nfe == 6
        for ours, theirs in zip(plan.rows, ddim.rows, strict=True):
            assert ours.coefficients() == pytest.approx(theirs.coefficients(), rel=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_reaches_sigma_zero_at_full_order(order: int) -> None:
    sigmas = [8.0, 5.0, 3.0, 1.5, 0.5, 0.0]
    plan = make_plan("lms", VarianceExploding(), times=sigmas, order=order)
    assert len(plan.rows[-1].outputs) == order
    point = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    x_T = point + 8.0 * torch.tensor([[1.0, 0.5], [-2.0, 0.1]], dtype=torch.float64)
    result = sample(lambda x, t: point.expand_as(x), x_T, plan)
    torch.testing.assert_close(result, point.expand_as(result), rtol=0, atol=1e-12)


def test_order_and_corrector_lower_the_error_on_a_gaussian() -> None:
    schedule = VPLinear()
    problem = Gaussian(torch.tensor([0.5, -0.2]), torch.tensor([0.7, 1.4]))
    x_T = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(**options: Any) -> float:
        plan = make_plan("deis", schedule, nfe=40, spacing="quadratic", **options)
        exact = problem.flow(plan.rows[0].node, x_T)(plan.rows[-1].node)
        return float((sample(exact_denoiser(problem, schedule), x_T, plan) - exact).norm())

    errors = [error(order=order) for order in (1, 2, 3)]
    assert errors[2] < 0.3 * errors[1] < 0.1 * errors[0]
    for order in (1, 2):
        assert error(order=order, corrector=True) < 0.3 * error(order=order)


@pytest.mark.parametrize("options, message", [
    ({"variant": "rab"}, "variant='rab'"),
    ({"order": 5}, "order=5"),
    ({"order": 4, "nfe": 3}, "nfe=3"),
    ({"variant": "rhork", "corrector": True}, "corrector=True"),
])  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("deis", VPLinear(), **{"nfe": 8, **options})
