"""iPNDM in t on flow matching: finite at both ends, with a corrector that costs no evaluation."""

import math

import pytest
import torch
from cases import GAUSSIAN, MIXTURE, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import FlowMatching, VPLinear, make_plan, sample
from logsnr.solvers.plan import VELOCITY

FLOW = FlowMatching()
T = torch.linspace(1, 0, 7, dtype=torch.float64)


def velocity(x, t):
    """Of the mixture's flow, written out from the data prediction."""
    return (x - exact_denoiser(MIXTURE, FLOW, "flow_prediction")(x, t)) / t


def by_hand(x, order):
    """Adams-Bashforth with equal steps of t, order by order from the first step on."""
    weights = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12]}
    seen = []
    for t, end in zip(T, T[1:], strict=False):
        seen = [velocity(x, float(t)) if t < 1 else x - at_pure_noise(x), *seen][:order]
        x = x + (end - t) * sum(w * v for w, v in zip(weights[len(seen)], seen, strict=True))
    return x


def at_pure_noise(x):
    return exact_denoiser(MIXTURE, FLOW, "flow_prediction")(x, 1.0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_adams_bashforth_of_the_velocity(order):
    x = normal(3, 4)
    plan = make_plan("ipndm", FLOW, times=T.tolist(), order=order, variable="time")
    assert {row.target for row in plan.rows[:-1]} == {VELOCITY}
    denoise = exact_denoiser(MIXTURE, FLOW, "flow_prediction")
    torch.testing.assert_close(sample(denoise, x, plan), by_hand(x, order), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relaxation", [1.0, 0.6])
def test_the_corrector_is_adams_moulton(relaxation):
    """The second step from equal steps, row by row: weights 5/12, 8/12, -1/12."""
    times = T.tolist()
    plan = make_plan(
        "ipndm", FLOW, times=times, order=2, variable="time", corrector=True, relaxation=relaxation
    )
    assert plan.nfe == 6
    h = times[1] - times[0]
    first, second = dict(plan.rows[2].outputs), dict(plan.rows[4].outputs)
    half = relaxation / 2
    assert first == pytest.approx({0: h * (1 - half), 1: h * half})
    moulton = {1: 8 / 12, 0: -1 / 12, 3: 5 / 12}
    bashforth = {1: 3 / 2, 0: -1 / 2, 3: 0.0}
    expected = {k: h * (bashforth[k] + relaxation * (moulton[k] - bashforth[k])) for k in moulton}
    assert second == pytest.approx(expected)


@pytest.mark.parametrize(
    "options, order",
    [
        ({"order": 2}, 2),
        ({"order": 3, "variant": "variable"}, 2),  # its first step is of order 1
        ({"order": 2, "variant": "variable", "corrector": True}, 3),
        ({"order": 2, "corrector": True, "relaxation": 0.5, "variant": "variable"}, 2),
    ],
    ids=str,
)
def test_the_order_holds_from_pure_noise_to_the_data(options, order):
    """RMS error of whole runs against the closed form of a Gaussian."""
    denoise = exact_denoiser(GAUSSIAN, FLOW, "flow_prediction")
    x = normal(8, 4)
    errors = []
    for nfe in (40, 80):
        plan = make_plan("ipndm", FLOW, nfe=nfe, spacing="time", variable="time", **options)
        exact = GAUSSIAN.flow(plan.rows[0].node, x)(plan.rows[-1].node)
        errors.append(float((sample(denoise, x, plan) - exact).norm()))
    assert math.log2(errors[0] / errors[1]) > order - 0.35


def test_a_straight_path_is_exact_at_every_order():
    x, point = normal(2, 4), normal(2, 4, seed=5)
    for order in (1, 2, 3, 4):
        plan = make_plan("ipndm", FLOW, nfe=5, order=order, variable="time", corrector=True)
        result = sample(lambda x, t: point, x, plan)
        torch.testing.assert_close(result, point, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "schedule, options, message",
    [
        (VPLinear(), {"variable": "time"}, "variable='time' is for FlowMatching"),
        (FLOW, {"corrector": True}, "corrector=True needs variable='time'"),
        (FLOW, {"variable": "lambda"}, "variable='lambda': choose one of"),
        (FLOW, {"relaxation": 0.0}, "relaxation=0.0: need a number in"),
        (FLOW, {"relaxation": 1.5}, "relaxation=1.5: need a number in"),
    ],
)
def test_bad_options_are_refused(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan("ipndm", schedule, nfe=6, t_end=0.01, **options)
