"""The five prediction types: their definitions, round trips and singular ends."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SCHEDULES, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.solvers import DATA, NOISE, PREDICTIONS, Denoiser, Node, Target
from logsnr.solvers.prediction import to_data, to_noise, to_target

NODES = {
    f"{name}-{t:g}": Node(t, schedule.alpha(t), schedule.sigma(t))
    for name, schedule in SCHEDULES.items()
    for t in (schedule.t_start, 0.5 * (schedule.t_start + schedule.t_end), 0.05)
}
FINITE = {key: node for key, node in NODES.items() if node.alpha > 0}
PURE_NOISE = Node(1.0, 0.0, 1.0)
PURE_DATA = Node(0.0, 1.0, 0.0)
X0, EPS = normal(5, 4, seed=1), normal(5, 4, seed=2)


def prediction_of(kind: str, node: Node, x0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """What a perfect network of this kind returns, from the definitions in the papers."""
    alpha, sigma = node.alpha, node.sigma
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "score":
        return -eps / sigma
    if kind == "flow_prediction":
        return eps - x0
    # v = d x / d angle on the circle x / r = cos(angle) x0 + sin(angle) eps
    angle = math.atan2(sigma, alpha)
    return math.cos(angle) * eps - math.sin(angle) * x0


@pytest.mark.parametrize("node", FINITE.values(), ids=FINITE)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_data_and_noise_come_back_from_every_prediction(kind, node):
    x = node.alpha * X0 + node.sigma * EPS
    output = prediction_of(kind, node, X0, EPS)
    for convert, truth in ((to_data, X0), (to_noise, EPS)):
        out, state = convert(kind, node)
        # What is divided by a small alpha or sigma carries that much more rounding.
        rounding = 1e-15 * (abs(out) * output.abs().max() + abs(state) * x.abs().max() + 1)
        assert (out * output + state * x - truth).abs().max() <= 4 * rounding


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_pure_noise_is_harmless_for_predictions_that_know_the_data(kind):
    output = prediction_of(kind, PURE_NOISE, X0, EPS)
    out, state = to_data(kind, PURE_NOISE)
    torch.testing.assert_close(out * output + state * EPS, X0, rtol=0, atol=4e-15)


@pytest.mark.parametrize("kind", ["epsilon", "score"])
def test_pure_noise_refuses_predictions_that_do_not(kind):
    with pytest.raises(ValueError, match=f"prediction='{kind}'.*zero terminal SNR"):
        to_data(kind, PURE_NOISE)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_pure_data_is_harmless_for_predictions_that_know_the_noise(kind):
    output = prediction_of(kind, PURE_DATA, X0, EPS)
    out, state = to_noise(kind, PURE_DATA)
    torch.testing.assert_close(out * output + state * X0, EPS, rtol=0, atol=4e-15)


def test_pure_data_refuses_a_noise_prediction_from_the_data_prediction():
    with pytest.raises(ValueError, match="prediction='sample'"):
        to_noise("sample", PURE_DATA)


@pytest.mark.parametrize("convert", [to_data, to_noise])
def test_unknown_prediction_is_refused_with_the_choices(convert):
    with pytest.raises(ValueError, match="prediction='eps'.*v_prediction"):
        convert("eps", Node(0.5, 0.6, 0.8))


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(PREDICTIONS),
    angle=st.floats(0.05, 1.5),
    radius=st.floats(0.5, 50),
    u=st.floats(-3, 3),
    w=st.floats(-3, 3),
    q=st.floats(-3, 3),
)
def test_targets_combine_noise_data_and_state(kind, angle, radius, u, w, q):
    node = Node(0.5, radius * math.cos(angle), radius * math.sin(angle))
    x = node.alpha * X0 + node.sigma * EPS
    out, state = to_target(kind, node, Target(u, w, q))
    g = out * prediction_of(kind, node, X0, EPS) + state * x
    torch.testing.assert_close(g, u * EPS + w * X0 + q * x, rtol=1e-9, atol=1e-9)
    assert to_target(kind, node, DATA) == to_data(kind, node)
    assert to_target(kind, node, NOISE) == to_noise(kind, node)


# the denoiser


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_denoiser_is_the_data_prediction_for_scalar_and_batched_times(name, kind):
    schedule = SCHEDULES[name]
    middle = 0.5 * (schedule.t_start + schedule.t_end)
    times = torch.linspace(middle, 0.05, 5, dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times)[:, None], schedule.sigma(times)[:, None]
    x = alphas * X0 + sigmas * EPS
    nodes = [Node(*entry) for entry in zip(times, alphas.flatten(), sigmas.flatten(), strict=True)]
    rows = [
        prediction_of(kind, Node(*map(float, node[:3])), x0, eps)
        for node, x0, eps in zip(nodes, X0, EPS, strict=True)
    ]
    seen = []

    def network(states, t):
        seen.append(t)
        return torch.stack(rows) if len(states) == 5 else torch.stack(rows[:1])

    denoise = Denoiser(network, schedule, kind)
    tolerance = 1e-13 * float((1 / alphas).max())
    torch.testing.assert_close(denoise(x, times), X0, rtol=0, atol=tolerance)
    torch.testing.assert_close(denoise(x[:1], float(times[0])), X0[:1], rtol=0, atol=tolerance)
    torch.testing.assert_close(denoise(x[:1], times[:1]), X0[:1], rtol=0, atol=tolerance)
    expected = schedule.network_time(times)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)
    assert seen[1].shape == (1,) and float(seen[1]) == float(expected[0])


def test_network_gets_its_own_time_and_condition_and_may_wrap_its_output():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    seen = {}

    def network(x, t, **condition):
        seen.update(condition, t=t)
        return Output(x)

    schedule = SCHEDULES["flow"]
    denoise = Denoiser(
        network,
        schedule,
        "sample",
        condition={"label": 3},
        network_time=lambda t: 1000 * t,
    )
    assert torch.equal(denoise(X0, 0.25), X0)
    assert seen["label"] == 3 and seen["t"].tolist() == [250.0] * 5
    assert torch.equal(Denoiser(lambda x, t: (2 * x, None), schedule, "sample")(X0, 0.5), 2 * X0)


def test_network_dtype_is_cast_there_and_back_and_times_stay_precise():
    seen = {}

    def network(x, t):
        seen.update(x=x.dtype, t=t.dtype)
        return x

    schedule = SCHEDULES["vp_discrete"]
    out = Denoiser(network, schedule, "sample", dtype=torch.bfloat16)(X0.float(), 0.5)
    assert out.dtype == torch.float32 and seen == {"x": torch.bfloat16, "t": torch.float32}
    Denoiser(network, schedule, "sample")(X0.half(), 0.5)
    assert seen == {"x": torch.float16, "t": torch.float32}


def test_threshold_acts_on_the_data_prediction():
    schedule = SCHEDULES["vp_linear"]
    node = Node(0.5, schedule.alpha(0.5), schedule.sigma(0.5))
    x = node.alpha * X0 + node.sigma * EPS
    denoise = Denoiser(lambda x, t: EPS, schedule, "epsilon", threshold=lambda x0: x0.clamp(-1, 1))
    assert denoise.native == "epsilon" and denoise.prediction == "sample"
    expected = X0.clamp(-1, 1)
    torch.testing.assert_close(denoise(x, 0.5), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(denoise.evaluate(x, 0.5), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_a_map_is_applied_in_the_finer_precision(dtypes):
    output, x = (normal(3, 4, seed=i).to(dtype) for i, dtype in enumerate(dtypes))
    found = to_data("v_prediction", Node(0.5, 0.8, 0.6))(output, x)
    assert found.dtype == torch.float32
    expected = to_data("v_prediction", Node(0.5, 0.8, 0.6))(output.double(), x.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
