"""Adaptive steps against the closed-form flow of Gaussian data."""

from __future__ import annotations

import gc
import math
from functools import partial

import pytest
import torch

from logsnr.benchmarks.problems.analytic import Gaussian, Network
from logsnr.solvers import (
    PID,
    Denoiser,
    FlowMatching,
    NFELimitError,
    Node,
    VarianceExploding,
    VPLinear,
    sample_adaptive,
)

SCHEDULES = [VPLinear(), VarianceExploding(0.01, 20.0)]
DATA = Gaussian([0.5, -1.0, 2.0], [0.3, 1.0, 0.05])


def node(schedule, t):
    return Node(t, schedule.alpha(t), schedule.sigma(t))


def problem(schedule, prediction="epsilon"):
    """A recording network, its denoiser, start states and the exact flow through them."""
    network = Network(DATA, schedule, prediction)
    denoise = Denoiser(network, schedule, prediction, network_time=lambda t: t)
    rng = torch.Generator().manual_seed(3)
    start = node(schedule, schedule.t_start)
    x = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    x = start.alpha * DATA.mean + start.sigma * x
    return network, denoise, x, DATA.flow(start, x)


def error(x, exact):
    return float((x - exact).square().mean().sqrt())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_error_follows_the_tolerance_and_every_call_is_counted(schedule, space, order):
    network, denoise, x, flow = problem(schedule)
    exact = flow(node(schedule, schedule.t_end))
    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        network.times.clear()
        result, stats = sample_adaptive(
            denoise, x, schedule, order=order, space=space, atol=tolerance, rtol=tolerance,
            max_nfe=20_000,
        )  # fmt: skip
        assert stats.nfe == len(network.times)
        assert stats.nfe == order * (len(stats.times) - 1 + stats.rejected)
        assert stats.times[0] == schedule.t_start
        assert stats.times[-1] == pytest.approx(schedule.t_end, abs=1e-5)
        assert all(t > s for t, s in zip(stats.times, stats.times[1:], strict=False))
        errors.append(error(result, exact))
        costs.append(stats.nfe)
    assert errors[2] < errors[1] < errors[0] and errors[2] < 1e-4
    assert costs[0] < costs[1] < costs[2]


def test_accepted_steps_pass_the_published_test_and_the_next_size_follows_from_it():
    schedule = VPLinear()
    _, denoise, x, _ = problem(schedule)
    theta, tolerance = 0.9, 1e-3
    _, stats = sample_adaptive(denoise, x, schedule, order=2, atol=tolerance, rtol=tolerance)
    # Independently: one accepted step of DPM-Solver-12, written out from the paper.
    previous = state = x
    lams = [schedule.lam(t) for t in stats.times]
    for i, (lam, next_lam) in enumerate(zip(lams[:-2], lams[1:-1], strict=True)):
        h = next_lam - lam
        s, m, t = (node(schedule, schedule.time(v)) for v in (lam, lam + h / 2, next_lam))
        eps = DATA.predict(state, s.alpha, s.sigma)[0]
        low = t.alpha / s.alpha * state - t.sigma * math.expm1(h) * eps
        middle = m.alpha / s.alpha * state - m.sigma * math.expm1(h / 2) * eps
        eps_m = DATA.predict(middle, m.alpha, m.sigma)[0]
        high = t.alpha / s.alpha * state - t.sigma * math.expm1(h) * eps_m
        delta = torch.maximum(low.abs(), previous.abs()).mul(tolerance).clamp(min=tolerance)
        ratio = float(((high - low) / delta).square().mean(1).sqrt().max())
        assert ratio <= 1
        if not stats.rejected:
            allowed = min(theta * h * ratio**-0.5, lams[-1] - next_lam)
            assert lams[i + 2] - next_lam == pytest.approx(allowed, rel=1e-6)
        state, previous = high, low
    assert len(lams) > 5


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("space", ["data", "noise"])
def test_the_result_does_not_depend_on_what_the_network_predicts(prediction, space):
    schedule = VPLinear()
    _, reference, x, _ = problem(schedule)
    _, denoise, _, _ = problem(schedule, prediction)
    expected, _ = sample_adaptive(reference, x, schedule, space=space)
    result, _ = sample_adaptive(denoise, x, schedule, space=space)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("space", ["data", "noise"])
def test_dense_output_follows_the_exact_path(schedule, space):
    network, denoise, x, flow = problem(schedule)
    _, stats = sample_adaptive(
        denoise, x, schedule, space=space, atol=1e-6, rtol=1e-6, dense=True, max_nfe=20_000
    )
    assert stats.nfe == len(network.times) and network.times[-1] == stats.times[-1]
    assert stats.dense is not None
    low, high = schedule.lam(schedule.t_start), schedule.lam(schedule.t_end)
    for share in (0.0, 0.013, 0.21, 0.5, 0.77, 0.999):
        t = schedule.time(low + share * (high - low))
        here = node(schedule, t)
        scale = math.hypot(here.alpha, here.sigma)
        assert error(stats.dense(t), flow(here)) < 2e-5 * scale
    with pytest.raises(ValueError, match="t="):
        stats.dense(2 * schedule.t_start)


@pytest.mark.parametrize("t_start, t_end", [(0.999, 0.001), (0.7, 0.3), (1.0, 1e-3)])
def test_dense_output_is_there_at_both_ends_as_they_were_given(t_start, t_end):
    schedule, ends = VPLinear(), {"t_start": t_start, "t_end": t_end}
    _, denoise, x, _ = problem(schedule)
    sample, stats = sample_adaptive(denoise, x, schedule, dense=True, **ends)
    torch.testing.assert_close(stats.dense(t_start), x)
    torch.testing.assert_close(stats.dense(t_end), sample, rtol=1e-3, atol=1e-3)


def test_the_cap_returns_what_was_reached():
    schedule = VPLinear()
    network, denoise, x, flow = problem(schedule)
    with pytest.raises(NFELimitError, match="max_nfe=40") as caught:
        sample_adaptive(denoise, x, schedule, order=2, atol=1e-5, rtol=1e-5, max_nfe=40)
    reached = caught.value
    assert reached.nfe == len(network.times) <= 40
    assert schedule.t_end < reached.t < schedule.t_start
    assert error(reached.x, flow(node(schedule, reached.t))) < 1e-3


@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_starts_near_and_at_pure_noise(order, space, dtype):
    schedule = FlowMatching()
    network = Network(DATA, schedule, "flow_prediction")
    denoise = Denoiser(network, schedule, "flow_prediction", network_time=lambda t: t)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for distance in (1e-2, 1e-4, 1e-6, 1e-9, 1e-14, 0.0):
        network.times.clear()
        start = node(schedule, 1 - distance)
        x = start.alpha * DATA.mean + start.sigma * noise
        result, stats = sample_adaptive(
            denoise, x.to(dtype), schedule, order=order, space=space, atol=1e-3, rtol=1e-3,
            t_start=start.t, t_end=1e-3, dense=True,
        )  # fmt: skip
        flow = DATA.flow(start, x)
        assert error(result, flow(node(schedule, 1e-3))) < 3e-3
        assert stats.nfe == len(network.times) < 250
        assert stats.times[0] == start.t and stats.dense is not None
        for t in (1 - distance, 1 - distance / 2, 0.9999, 0.9, 0.5, 0.05):
            if t <= start.t:
                assert error(stats.dense(t), flow(node(schedule, t))) < 1e-2, t


def states_alive(shape) -> int:
    """How many tensors of this shape there are."""
    return sum(type(o) is torch.Tensor and o.shape == shape for o in gc.get_objects())


def test_states_are_kept_for_dense_output_only():
    schedule = VPLinear()
    _, denoise, x, _ = problem(schedule)
    x = x[:, None].expand(4, 7, 3).contiguous()  # a shape that nothing else has
    alive: dict[bool, list[int]] = {True: [], False: []}

    def data_prediction(dense, x, t):
        if len(alive[dense]) < 2 or t < 0.01:
            alive[dense].append(states_alive(x.shape))
        return denoise(x.flatten(0, 1), t).view_as(x)

    for dense in (True, False):
        sample_adaptive(
            partial(data_prediction, dense), x, schedule, space="data", dense=dense,
            atol=1e-3, rtol=1e-3,
        )  # fmt: skip
    assert max(alive[False]) < alive[False][0] + 10
    assert max(alive[True]) > alive[True][0] + 20


@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.3, 0.5, 0.1), (0.0, 0.7, 0.2)])
def test_the_pid_controller_is_that_of_k_diffusion(coefficients):
    schedule, tolerance, safety = VarianceExploding(0.01, 20.0), 2e-3, 0.85
    _, denoise, x, _ = problem(schedule)
    p, i, d = coefficients
    result, stats = sample_adaptive(
        denoise, x, schedule, order=2, atol=tolerance, rtol=tolerance, h_init=0.2,
        pid=PID(p, i, d, safety),
    )  # fmt: skip
    # Independently: its loop in lambda = -log(sigma), written out.
    lam, last, h = -math.log(20.0), -math.log(0.01), 0.2
    previous, times, inverses = x, [20.0], []
    rejected = 0
    while lam < last - 1e-5:
        end = min(last, lam + h)
        s, m, t = (math.exp(-v) for v in (lam, (lam + end) / 2, end))
        eps = DATA.predict(x, 1.0, s)[0]
        low = x + (t - s) * eps
        eps_m = DATA.predict(x + (m - s) * eps, 1.0, m)[0]
        high = x + (t - s) * eps + (t - s) * (eps_m - eps)
        delta = (tolerance * low.abs().max(previous.abs())).clamp(min=tolerance)
        inverse = 1 / (float(((low - high) / delta).norm()) / x.numel() ** 0.5 + 1e-8)
        inverses = [inverse, *(inverses[1:] or [inverse, inverse])]
        factor = inverses[0] ** ((p + i + d) / 2) * inverses[1] ** (-(p + 2 * d) / 2)
        factor = 1 + math.atan(factor * inverses[2] ** (d / 2) - 1)
        if factor >= safety:
            x, previous, lam = high, low, end
            times.append(t)
            inverses = [inverse, inverse, inverses[1]]
        else:
            rejected += 1
        h *= factor
    assert stats.rejected == rejected
    assert stats.times == pytest.approx(times, rel=1e-9)
    torch.testing.assert_close(result, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pcoeff", math.nan), ("icoeff", math.inf), ("dcoeff", -math.inf), ("accept_safety", 0.0)],
)
def test_bad_coefficients_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        PID(**{name: value})


def test_the_dtype_of_the_start_is_kept():
    schedule = VPLinear()
    network, _, x, _ = problem(schedule)

    def data_prediction(x, t):
        return DATA.predict(x.double(), schedule.alpha(t), schedule.sigma(t))[1].to(x.dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        result, stats = sample_adaptive(data_prediction, x.to(dtype), schedule, space="data")
        assert result.dtype == dtype and torch.isfinite(result).all() and stats.nfe > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", 4),
        ("space", "velocity"),
        ("solver_type", "heun"),
        ("atol", 0.0),
        ("rtol", math.nan),
        ("h_init", -1.0),
        ("theta", 1.0),
        ("t_err", 0.0),
        ("pid", 0.3),
        ("max_nfe", 1),
        ("t_end", 2.0),
    ],
)
def test_bad_arguments_are_named_before_the_network_is_called(name, value):
    schedule = VPLinear()
    network, denoise, x, _ = problem(schedule)
    with pytest.raises(ValueError, match=f"{name}="):
        sample_adaptive(denoise, x, schedule, **{name: value})
    assert not network.times


def test_infinite_lambda_is_refused():
    schedule = FlowMatching()
    with pytest.raises(ValueError, match="lambda must be finite"):
        sample_adaptive(lambda x, t: x, torch.randn(2, 3), schedule)
