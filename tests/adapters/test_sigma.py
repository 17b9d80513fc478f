r"""Runge-Kutta in rho = sigma / alpha: Euler, Heun, DPM2, DEIS rhoRK, and EDM's churn.

The truth is a Runge-Kutta step written out for dy / d rho = eps with y = x / alpha, in numpy, and
the tableaus' order conditions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logsnr.benchmarks.problems.analytic import Gaussian, exact_denoiser
from logsnr.solvers import (
    DiscreteVP,
    FlowMatching,
    Grid,
    Node,
    NoiseSchedule,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
    plan_on_grid,
    sample,
)
from logsnr.solvers.methods.runge_kutta import EULER, HEUN, HEUN3, KUTTA3, MAX_CHURN, RK4, Tableau

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROBLEM = Gaussian(torch.tensor([0.4, -1.0]), torch.tensor([0.6, 1.7]))
Derivative = Callable[[np.ndarray, float], np.ndarray]


def heun(f: Derivative, y: np.ndarray, s: float, t: float) -> np.ndarray:
    first = f(y, s)
    return y + (t - s) / 2 * (first + f(y + (t - s) * first, t))


def midpoint(f: Derivative, y: np.ndarray, s: float, t: float) -> np.ndarray:
    return y + (t - s) * f(y + (t - s) / 2 * f(y, s), (s + t) / 2)


def dpm2(f: Derivative, y: np.ndarray, s: float, t: float) -> np.ndarray:
    middle = math.sqrt(s * t)
    return y + (t - s) * f(y + (middle - s) * f(y, s), middle)


def kutta(f: Derivative, y: np.ndarray, s: float, t: float) -> np.ndarray:
    h = t - s
    first = f(y, s)
    second = f(y + h / 2 * first, s + h / 2)
    third = f(y - h * first + 2 * h * second, t)
    return y + h / 6 * (first + 4 * second + third)


def classical(f: Derivative, y: np.ndarray, s: float, t: float) -> np.ndarray:
    h = t - s
    first = f(y, s)
    second = f(y + h / 2 * first, s + h / 2)
    third = f(y + h / 2 * second, s + h / 2)
    return y + h / 6 * (first + 2 * second + 2 * third + f(y + h * third, t))


@pytest.mark.parametrize("schedule, times", [
    (VPLinear(), [1.0, 0.6, 0.2, 1e-3]),
    (VPCosine(), [0.99, 0.6, 0.2, 1e-3]),
    (DiscreteVP.from_betas(BETAS), [1.0, 0.6, 0.2, 1e-3]),
    (VarianceExploding(), [80.0, 9.0, 1.0, 0.01]),
    (FlowMatching(), [0.98, 0.6, 0.2, 0.01]),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("solver, options, stages, method", [
    ("euler", {}, 1, lambda f, y, s, t: y + (t - s) * f(y, s)),
    ("heun", {}, 2, heun),
    ("heun", {"r": 0.5}, 2, midpoint),
    ("dpm2", {}, 2, dpm2),
    ("deis", {"variant": "rhork", "order": 2}, 2, heun),
    ("deis", {"variant": "rhork", "order": 3}, 3, kutta),
    ("deis", {"variant": "rhork", "order": 4}, 4, classical),
])  # fmt: skip
def test_steps_are_runge_kutta_steps_in_rho(
    schedule: NoiseSchedule,
    times: list[float],
    solver: str,
    options: dict[str, Any],
    stages: int,
    method: Callable[..., np.ndarray],
) -> None:
    plan = make_plan(solver, schedule, times=times, **options)
    assert plan.nfe == 3 * stages
    x_T = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_T = x_T * schedule.sigma(times[0])

    def eps(y: np.ndarray, rho: float) -> np.ndarray:
        # Independent of any schedule: at alpha = 1, sigma = rho.
        return PROBLEM.predict(torch.from_numpy(y), 1.0, rho)[0].numpy()

    y = x_T.numpy() / schedule.alpha(times[0])
    rhos = [schedule.sigma(t) / schedule.alpha(t) for t in times]
    for s, t in zip(rhos, rhos[1:], strict=False):
        y = method(eps, y, s, t)
    ours = sample(exact_denoiser(PROBLEM, schedule), x_T, plan).numpy()
    np.testing.assert_allclose(ours, y * schedule.alpha(times[-1]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("r", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("times", [[1.0, 0.6, 0.2, 0.01], [0.98, 0.97, 0.3]])
def test_heun_in_time_takes_runge_kutta_steps_of_the_velocity(times: list[float], r: float) -> None:
    """With all its stages from pure noise on."""
    schedule = FlowMatching()
    plan = make_plan("heun", schedule, times=times, variable="time", r=r)
    assert plan.nfe == 2 * (len(times) - 1)

    def velocity(x: Tensor, t: float) -> Tensor:
        eps, x0 = PROBLEM.predict(x, 1 - t, t)
        return eps - x0

    x = start = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for s, t in zip(times, times[1:], strict=False):
        first = velocity(x, s)
        second = velocity(x + r * (t - s) * first, s + r * (t - s))
        x = x + (t - s) * ((1 - 1 / (2 * r)) * first + 1 / (2 * r) * second)
    ours = sample(exact_denoiser(PROBLEM, schedule, "flow_prediction"), start, plan)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-11)


def test_heun_in_time_is_for_flow_matching() -> None:
    with pytest.raises(ValueError, match="variable='time' is for FlowMatching, not for VPLinear"):
        make_plan("heun", VPLinear(), nfe=5, variable="time")
    with pytest.raises(ValueError, match="variable='rho': choose one of 'sigma', 'time'"):
        make_plan("heun", FlowMatching(), nfe=5, variable="rho")


@pytest.mark.parametrize("tableau, order", [
    (EULER, 1), (HEUN, 2), (KUTTA3, 3), (HEUN3, 3), (RK4, 4),
])  # fmt: skip
def test_tableaus_satisfy_the_order_conditions(tableau: Tableau, order: int) -> None:
    stages = len(tableau.b)
    b, c = np.array(tableau.b), np.array(tableau.c)
    a = np.array([[*row, *[0.0] * (stages - len(row))] for row in tableau.a])
    conditions = {  # elementary weights of the rooted trees (Hairer, Norsett, Wanner, II.2)
        1: [(b.sum(), 1)],
        2: [(b @ c, 1 / 2)],
        3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)],
        4: [(b @ c**3, 1 / 4), ((b * c) @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12),
            (b @ a @ a @ c, 1 / 24)],
    }  # fmt: skip
    holds = {p: all(abs(v - w) < 1e-14 for v, w in conditions[p]) for p in conditions}
    assert [holds[p] for p in conditions] == [p <= order for p in conditions]


def test_a_tableau_is_checked() -> None:
    with pytest.raises(ValueError, match="sum to c"):
        Tableau(((), (0.4,)), (0.5, 0.5), (0.0, 1.0))
    with pytest.raises(ValueError, match="b needs to sum to 1"):
        Tableau(((), (1.0,)), (0.5, 0.4), (0.0, 1.0))


@pytest.mark.parametrize("solver, options", [
    ("euler", {}), ("heun", {}), ("dpm2", {}),
    ("deis", {"variant": "rhork", "order": 3}), ("deis", {"variant": "rhork", "order": 4}),
])  # fmt: skip
@pytest.mark.parametrize("t_end", [0.0, 0.01])
def test_every_nfe_is_spent(solver: str, options: dict[str, Any], t_end: float) -> None:
    for nfe in range(1, 14):
        for schedule in (FlowMatching(), VarianceExploding()):
            plan = make_plan(solver, schedule, nfe=nfe, t_end=t_end, spacing="time", **options)
            assert plan.nfe == nfe
            assert plan.rows[-1].node.t == t_end


def test_edm_counts_the_step_to_zero_once() -> None:
    for n in (2, 5, 18):
        sigmas = [*np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n) ** 7, 0.0]
        plan = make_plan("heun", VarianceExploding(), times=sigmas)
        assert plan.nfe == 2 * n - 1
        assert plan.rows[-1].coefficients() == [1.0]


def test_an_nfe_that_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="nfe=7: the grid of 3 intervals takes 5 to 6"):
        make_plan("heun", VarianceExploding(), times=[9.0, 3.0, 1.0, 0.1], nfe=7)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "deis", "lms", "ipndm", "adams"])
def test_a_repeated_node_is_a_step_of_length_zero(solver: str) -> None:
    sigmas = [20.0, 6.0, 6.0, 1.5, 0.3, 0.0]
    nodes = tuple(Node(s, 1.0, s) for s in sigmas)
    grid = Grid(VarianceExploding(), 20.0, 0.0, explicit=nodes)
    options: dict[str, Any] = {"s_churn": 1.0} if solver in ("euler", "heun", "dpm2") else {}
    plan = plan_on_grid(solver, grid, **options)
    point = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    result = sample(lambda x, t: point, 20 * torch.ones_like(point), plan)
    torch.testing.assert_close(result, point, rtol=0, atol=1e-11)


class TestChurn:
    sigmas = [20.0, 6.0, 1.5, 0.3, 0.0]

    @pytest.mark.parametrize(
        "schedule", [VarianceExploding(), VPLinear(), FlowMatching()], ids=repr
    )
    @pytest.mark.parametrize("solver", ["euler", "heun", "dpm2"])
    def test_noise_rises_by_gamma_and_falls_back(
        self, schedule: NoiseSchedule, solver: str
    ) -> None:
        lams = [-math.log(s) if s > 0 else math.inf for s in self.sigmas]
        plan = make_plan(solver, schedule, lams=lams, s_churn=1.0, s_min=0.5, s_max=10.0)
        raised = [k for k, row in enumerate(plan.rows) if row.noise]
        assert len(raised) == 2  # 6 and 1.5 are inside
        for k, sigma in zip(raised, (6.0, 1.5), strict=True):
            node, before = plan.rows[k].node, plan.rows[k - 1].node
            rho, (term,) = node.sigma / node.alpha, plan.rows[k].noise
            assert before.sigma / before.alpha == pytest.approx(sigma, rel=1e-9)
            assert rho == pytest.approx(1.25 * sigma, rel=1e-9)
            assert term.scale / node.alpha == pytest.approx(0.75 * sigma, rel=1e-9)
            assert plan.rows[k].evaluated and not plan.rows[k - 1].evaluated

    def test_without_churn_nothing_is_added(self) -> None:
        plan = make_plan("heun", VarianceExploding(), times=self.sigmas)
        same = make_plan("heun", VarianceExploding(), times=self.sigmas, s_churn=9, s_min=30)
        assert not plan.stochastic and plan.rows == same.rows

    def test_gamma_is_capped_and_intervals_do_not_overlap(self) -> None:
        plan = make_plan("euler", VarianceExploding(), times=self.sigmas, s_churn=1e6)
        terms = [term for row in plan.rows for term in row.noise]
        assert len(terms) == 4
        assert terms[0].scale == pytest.approx(20 * math.sqrt((1 + MAX_CHURN) ** 2 - 1))
        for earlier, later in zip(terms, terms[1:], strict=False):
            assert earlier.lam_to <= later.lam_from < later.lam_to
        fine = np.geomspace(10, 9, 6).tolist()
        terms = [
            term
            for row in make_plan("euler", VarianceExploding(), times=fine, s_churn=10).rows
            for term in row.noise
        ]
        assert len(terms) == 5
        for earlier, later in zip(terms, terms[1:], strict=False):
            assert earlier.lam_to <= later.lam_from < later.lam_to

    def test_the_schedule_is_not_left(self) -> None:
        plan = make_plan("heun", VPLinear(), nfe=8, s_churn=8.0)
        assert plan.stochastic
        assert max(row.node.t for row in plan.rows) <= VPLinear().t_max

    def test_marginals_of_a_point_are_kept(self) -> None:
        # With all data at one point, x_t is the point plus noise of scale sigma_t at every row.
        plan = make_plan("heun", VarianceExploding(), times=[20.0, 6.0, 1.5, 0.3], s_churn=2.0)
        point = torch.zeros(20000, 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(3)
        x_T = 20 * torch.randn(20000, 1, dtype=torch.float64, generator=generator)
        result = sample(lambda x, t: point, x_T, plan, noise=generator)
        assert float(result.std()) == pytest.approx(0.3, rel=0.03)

    @pytest.mark.parametrize("option, value", [
        ("s_churn", -1.0), ("s_noise", math.nan), ("s_min", -0.1), ("s_max", -1.0), ("r", 0.0),
    ])  # fmt: skip
    def test_wrong_options_are_named(self, option: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"{option}="):
            make_plan("heun", VarianceExploding(), nfe=5, **{option: value})
