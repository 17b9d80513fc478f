"""ER-SDE: its integrals by another quadrature, its marginals, its limits, its input."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import GAUSSIAN, RANGES, normal, start_states
from scipy.integrate import quad

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import VPLinear, make_plan, sample
from logsnr.solvers.identities import marginal_deviations
from logsnr.solvers.methods.noise_functions import SHARES

PHI = {
    "ode": lambda rho: rho,
    "sde": lambda rho: rho**2,
    "sde-1": lambda rho: rho * (math.exp(-1 / rho) + 10),
    "sde-2": lambda rho: rho**1.5,
    "sde-3": lambda rho: rho**2.5,
    "sde-4": lambda rho: rho**0.9 * math.log10(1 + 100 * rho**1.5),
    "sde-5": lambda rho: rho * (math.exp(rho**0.3) + 10),
}
"""As the paper and the authors' code write them."""


@pytest.mark.parametrize("name", PHI)
def test_a_step_is_the_integral_of_the_polynomial_through_the_predictions(name):
    """The third step of order 3: D = D_s + .. in rho, under d(phi_t / phi), by scipy."""
    plan = make_plan("er-sde", VPLinear(), lams=[-2.0, -1.2, -0.5, 0.6, 1.0], noise_function=name)
    row, phi = plan.rows[3], PHI[name]
    rho = [r.node.sigma / r.node.alpha for r in plan.rows[:4]]
    ((_, a),) = row.states
    r = phi(rho[3]) / phi(rho[2])
    assert a == pytest.approx(row.node.alpha / plan.rows[2].node.alpha * r, rel=1e-12)
    for j, b in row.outputs:
        others = [k for k in range(3) if k != j]

        def basis(x, j=j, others=others):
            return math.prod((x - rho[k]) / (rho[j] - rho[k]) for k in others)

        def slope(x, j=j, others=others):
            return sum(x - rho[k] for k in others) / math.prod(rho[j] - rho[k] for k in others)

        # By parts, so that phi need not be differentiated.
        inner = quad(lambda x, f=slope: f(x) * phi(rho[3]) / phi(x), rho[2], rho[3], epsabs=1e-13)
        expected = row.node.alpha * (basis(rho[3]) - r * basis(rho[2]) - inner[0])
        assert b == pytest.approx(expected, rel=1e-10, abs=1e-12)
    (noise,) = row.noise if name != "ode" else (None,)
    if noise is not None:
        variance = rho[3] ** 2 - (r * rho[2]) ** 2
        assert noise.scale == pytest.approx(row.node.alpha * math.sqrt(variance), rel=1e-12)


@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("name", ["sde", "sde-1", "sde-3", "sde-5", "own"])
def test_marginals_are_exact_at_every_node(name, range_name):
    range_ = RANGES[range_name]
    phi = (lambda rho: rho * torch.log1p(rho)) if name == "own" else name
    for order in (1, 2, 3):
        plan = make_plan(
            "er-sde", range_.schedule, nfe=9, **range_.ends, order=order, noise_function=phi
        )
        wanted = [row.node.sigma for row in plan.rows]
        assert marginal_deviations(plan.rows) == pytest.approx(wanted, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_quadratures_converge_to_the_exact_one(order):
    """The left sums miss by their number of terms: half as much with twice as many."""
    plans = {
        kind: make_plan("er-sde", VPLinear(), nfe=8, t_end=0.01, order=order, quadrature=kind)
        for kind in ("exact", "published", "comfyui")
    }
    flat = {kind: plan.coefficients() for kind, plan in plans.items()}
    far = [float((flat[kind] - flat["exact"]).norm()) for kind in ("published", "comfyui")]
    if order == 1:
        assert far == [0, 0]
    else:
        assert far[0] / far[1] == pytest.approx(2, rel=0.02)


def test_the_ode_is_an_adams_method_in_sigma_over_alpha():
    """phi = rho: of first order DDIM, and converging with the order to the flow of the data."""
    schedule, x = VPLinear(), start_states(VPLinear(), 0.5)
    denoise = exact_denoiser(GAUSSIAN, schedule)
    ends = {"t_start": 0.5, "t_end": 0.05, "spacing": "logsnr"}
    first = make_plan("er-sde", schedule, nfe=6, order=1, noise_function="ode", **ends)
    ddim = make_plan("ddim", schedule, nfe=6, **ends)
    assert not first.stochastic
    torch.testing.assert_close(first.coefficients(), ddim.coefficients(), rtol=1e-13, atol=0)
    exact = GAUSSIAN.flow(first.rows[0].node, x)(first.rows[-1].node)
    errors = [
        [
            float((sample(denoise, x, make_plan(
                "er-sde", schedule, nfe=nfe, order=3, noise_function="ode", weights=weights, **ends
            )) - exact).norm())
            for nfe in (40, 80)
        ]
        for weights in ("taylor", "published")
    ]  # fmt: skip
    taylor, published = errors
    assert taylor[1] < 0.5 * published[1]
    assert all(coarse > 3.5 * fine for coarse, fine in errors)


def test_phi_rho_squared_is_the_reverse_sde():
    """As the ancestral step: with eta = 1 DDIM's first-order step is that of the SDE."""
    grid = {"nfe": 7, "t_end": 0.02}
    one = make_plan("er-sde", VPLinear(), **grid, order=1, noise_function="sde")
    other = make_plan("ddim", VPLinear(), **grid, eta=1.0)
    for row, wanted in zip(one.rows, other.rows, strict=True):
        assert row.coefficients() == pytest.approx(wanted.coefficients(), rel=1e-12, abs=1e-14)
        assert [n.scale for n in row.noise] == pytest.approx([n.scale for n in wanted.noise])


def test_functions_numbers_and_names_mean_the_same():
    def plan(value):
        return make_plan("er-sde", VPLinear(), nfe=6, noise_function=value).coefficients()

    for number, name in enumerate(SHARES, start=1):
        assert torch.equal(plan(number), plan(name))
    for own in (
        lambda rho: rho * (math.exp(rho**0.3) + 10),
        lambda rho: rho * ((rho**0.3).exp() + 10),
        lambda rho: rho * (torch.exp(rho**0.3) + 10),
    ):
        torch.testing.assert_close(plan(own), plan("sde-5"), rtol=1e-12, atol=1e-14)


def test_a_step_to_the_data_and_one_from_pure_noise():
    for name in ("flow_singular", "vp_zero_terminal_to_data"):
        range_ = RANGES[name]
        plan = make_plan("er-sde", range_.schedule, nfe=5, **range_.ends, noise_function="sde")
        first, last = plan.rows[1], plan.rows[-1]
        assert first.noise[0].scale == pytest.approx(first.node.sigma)  # nothing of x_T is kept
        assert not last.noise and not last.states
        assert last.outputs == ((len(plan.rows) - 2, 1.0),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 4}, "order=4"),
        ({"noise_function": 8}, "noise_function=8"),
        ({"noise_function": True}, "noise_function=True"),
        ({"noise_function": "sde5x"}, r"noise_function='sde5x'.*sde-5"),
        ({"noise_function": lambda rho: 1 / rho}, "noise_function.*may only fall"),
        ({"noise_function": lambda rho: -rho}, "noise_function.*positive and finite"),
        ({"noise_function": lambda rho: rho * math.inf}, "noise_function.*positive and finite"),
        ({"weights": "own"}, "weights='own'"),
        ({"quadrature": "simpson"}, "quadrature='simpson'"),
        ({"nfe": 2}, "nfe=2"),
        ({"invert": True}, "er-sde.*deterministic"),
        ({"eta": 1.0}, "eta=1.0"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        make_plan("er-sde", VPLinear(), **{"nfe": 6, **options})


def test_noise_is_by_interval_and_steps_do_not_share_it():
    plan = make_plan("er-sde", VPLinear(), nfe=6)
    terms = [term for row in plan.rows for term in row.noise]
    assert len(terms) == 6 and {term.clock for term in terms} == {"snr"}
    assert all(one.end == other.start for one, other in pairwise(terms))
    x, denoise = normal(2, 4), exact_denoiser(GAUSSIAN, VPLinear())
    assert torch.equal(sample(denoise, x, plan, noise=3), sample(denoise, x, plan, noise=3))
