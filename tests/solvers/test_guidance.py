"""Classifier-free guidance and dynamic thresholding against straightforward numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import SCHEDULES, normal

from logsnr.solvers import (
    ClassifierFree,
    Denoiser,
    DynamicThreshold,
    VPLinear,
    make_plan,
    sample,
    sample_parallel,
)

SCHEDULE = SCHEDULES["flow"]
X = normal(4, 2, 3, 3)
LABELS = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


class Conditional:
    """A network whose output depends on x, t and a label; it counts calls and rows."""

    def __init__(self):
        self.calls, self.rows = 0, 0

    def __call__(self, x, t, label, mode="plain"):
        assert mode == "plain"
        self.calls += 1
        self.rows += len(x)
        return torch.sin(x * (1 + label[:, None, None, None])) + t[:, None, None, None]


def outputs(t: float) -> tuple[np.ndarray, np.ndarray]:
    x, label = X.numpy(), LABELS.numpy()[:, None, None, None]
    return np.sin(x) + t, np.sin(x * (1 + label)) + t


def guided(network, **options) -> Denoiser:
    condition = {"label": LABELS, "mode": "plain"}
    null = {"label": torch.zeros(4, dtype=torch.float64), "mode": "plain"}
    guidance = ClassifierFree(condition=condition, null=null, **options)
    return Denoiser(network, SCHEDULE, "flow_prediction", guidance=guidance)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5])
def test_formula(scale):
    network = Conditional()
    null, cond = outputs(0.4)
    result = guided(network, scale=scale).evaluate(X, 0.4)
    np.testing.assert_allclose(result.numpy(), null + scale * (cond - null), rtol=1e-13, atol=1e-13)
    assert network.calls == 1 and network.rows == (4 if scale == 1 else 8)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescale_pulls_the_deviation_back(rescale):
    null, cond = outputs(0.4)
    plain = null + 5.0 * (cond - null)
    axes = (1, 2, 3)
    ratio = cond.std(axes, ddof=1, keepdims=True) / plain.std(axes, ddof=1, keepdims=True)
    expected = rescale * plain * ratio + (1 - rescale) * plain
    result = guided(Conditional(), scale=5.0, rescale=rescale).evaluate(X, 0.4)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
    if rescale == 1:
        np.testing.assert_allclose(result.numpy().std(axes), cond.std(axes), rtol=1e-12)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.2, True), (0.7, True), (0.71, False)])
def test_interval_is_in_the_schedules_time_and_saves_half_the_rows(t, inside):
    network = Conditional()
    null, cond = outputs(t)
    result = guided(network, scale=3.0, interval=(0.2, 0.7)).evaluate(X, t)
    expected = null + 3.0 * (cond - null) if inside else cond
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-13, atol=1e-13)
    assert network.rows == (8 if inside else 4)


def test_guidance_of_data_predictions_equals_guidance_of_velocities():
    """x0 is affine in the velocity with the same x, so guidance commutes with the conversion."""
    denoise = guided(Conditional(), scale=3.0)
    null, cond = (X.numpy() - 0.4 * output for output in outputs(0.4))
    np.testing.assert_allclose(denoise(X, 0.4).numpy(), null + 3.0 * (cond - null), rtol=1e-12)


class Anything:
    """A network whose output depends on all that it is given; it keeps the rows of its calls."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, x, t, **condition):
        self.rows.append(len(x))
        return (x + t[:, None, None, None]) * (1 + self.level(condition, len(x)))

    def level(self, value, rows: int):
        if isinstance(value, dict):
            return sum(self.level(entry, rows) for entry in value.values())
        if isinstance(value, list | tuple):
            return sum((i + 1) * self.level(entry, rows) for i, entry in enumerate(value))
        if isinstance(value, str):
            return len(value)
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.ndim > 0 and len(value) == rows:
            return value.reshape(rows, -1).sum(1)[:, None, None, None]
        return value.sum()


def embedding(rows: int, tokens: int = 5, seed: int = 0) -> torch.Tensor:
    return normal(rows, tokens, 3, seed=seed)


CONDITIONS = {
    "a number": ({"y": 3}, {"y": 0}, 2),
    "a number beside labels": ({"y": 3, "z": LABELS}, {"y": 0, "z": 0 * LABELS}, 2),
    "a tensor without axes": ({"y": torch.tensor(3.0)}, {"y": torch.tensor(0.0)}, 2),
    "a string": ({"y": "an owl"}, {"y": ""}, 2),
    "an array": ({"y": np.array([1.0, 2.0])}, {"y": np.array([0.0, 0.5])}, 2),
    "a number for a tensor": ({"y": LABELS[:, None]}, {"y": 0}, 2),
    "one prompt for all": ({"y": embedding(1)}, {"y": embedding(1, seed=1)}, 1),
    "one null prompt": ({"y": embedding(4)}, {"y": embedding(1, seed=1)}, 1),
    "other numbers of tokens": ({"y": embedding(4)}, {"y": embedding(4, 7, seed=1)}, 2),
    "unbatched": ({"y": embedding(7)}, {"y": embedding(7, seed=1)}, 2),
    "unbatched, the same": ({"y": embedding(7), "z": LABELS[:, None]},) * 2 + (1,),
    "nested": (
        {"added": {"text": embedding(4), "ids": [embedding(1, 2), 1]}},
        {"added": {"text": embedding(1, seed=1), "ids": [embedding(4, 2, seed=3), 1]}},
        1,
    ),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_both_branches_are_evaluated_whatever_their_conditions_are(kind):
    condition, null, calls = CONDITIONS[kind]
    network = Anything()

    def alone(branch):
        def rows(value):
            if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1:
                return value.expand(4, *value.shape[1:])
            if isinstance(value, dict):
                return {key: rows(entry) for key, entry in value.items()}
            return [rows(entry) for entry in value] if isinstance(value, list) else value

        return Anything()(X, torch.full((4,), 0.4), **rows(branch))

    guidance = ClassifierFree(3.0, condition, null)
    denoise = Denoiser(network, SCHEDULE, "flow_prediction", guidance=guidance)
    expected = alone(null) + 3.0 * (alone(condition) - alone(null))
    torch.testing.assert_close(denoise.evaluate(X, 0.4), expected)
    assert network.rows == ([8] if calls == 1 else [4, 4])


@pytest.mark.parametrize("kind", ["one prompt for all", "one null prompt", "nested", "a number"])
def test_conditions_hold_for_every_group_of_a_parallel_call(kind):
    condition, null, _ = CONDITIONS[kind]
    guidance = ClassifierFree(3.0, condition, null)
    denoise = Denoiser(Anything(), SCHEDULE, "flow_prediction", guidance=guidance)
    groups = torch.stack([X, 2 * X, -X])
    outputs = denoise.evaluate_groups(groups, [0.3, 0.5, 0.8])
    for x, t, output in zip(groups, (0.3, 0.5, 0.8), outputs, strict=True):
        torch.testing.assert_close(output, denoise.evaluate(x, t))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scale": float("nan")}, "scale"),
        ({"scale": 2.0, "rescale": 1.5}, "rescale"),
        ({"scale": 2.0, "rescale": -0.1}, "rescale"),
        ({"scale": 2.0, "interval": (0.7, 0.2)}, "interval"),
        ({"scale": 2.0, "null": {"other": 1}}, "null"),
    ],
)
def test_bad_guidance_is_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        ClassifierFree(**{"condition": {"label": 1}, "null": {"label": 0}, **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("ratio", "maximum"), [(0.995, np.inf), (0.9, 1.5), (1.0, np.inf)])
def test_dynamic_threshold(ratio, maximum, dtype):
    x0 = (torch.tensor([0.1, 1.0, 2.0, 5.0])[:, None, None, None] * X).to(dtype)
    result = DynamicThreshold(ratio, maximum)(x0)
    assert result.dtype == dtype and result.abs().max() <= 1
    for state, clipped in zip(x0.double().numpy(), result.double().numpy(), strict=True):
        s = min(max(1.0, np.quantile(np.abs(state), ratio)), maximum)
        expected = np.clip(state, -s, s) / s
        np.testing.assert_allclose(clipped, expected, atol=8 * torch.finfo(dtype).eps)


def test_data_in_range_passes_the_threshold_unchanged():
    x0 = X.clamp(-1, 1)
    assert torch.equal(DynamicThreshold()(x0), x0)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"ratio": 0.0}, "ratio"), ({"ratio": 1.1}, "ratio"), ({"maximum": 0.5}, "maximum")],
)
def test_bad_thresholds_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        DynamicThreshold(**options)


def test_a_scale_a_sample_is_that_of_a_run_alone():
    """Also where the batch is divided, repeated, or evaluated at several times at once."""
    scales = torch.tensor([1.0, 3.0, 7.5], dtype=torch.float64)
    labels = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)[:, None]

    def network(x, t, y):
        return 0.3 * x * y + y + 1e-3 * t[:, None]

    def denoise(scale, y):
        guided = ClassifierFree(scale, {"y": y}, {"y": torch.zeros_like(y)})
        return Denoiser(network, VPLinear(), guidance=guided)

    x, plan = torch.randn(3, 4, dtype=torch.float64), make_plan("unipc", VPLinear(), nfe=4)
    together = denoise(scales, labels)
    alone = [
        sample(denoise(scale, labels[i : i + 1]), x[i : i + 1], plan)
        for i, scale in enumerate(scales.tolist())
    ]
    torch.testing.assert_close(sample(together, x, plan), torch.cat(alone))
    rows = torch.tensor([2, 0])
    part = sample(together.for_samples(rows, 3), x[rows], plan)
    torch.testing.assert_close(part, torch.cat(alone)[rows])
    at_once, _ = sample_parallel(together, x, plan)
    torch.testing.assert_close(at_once, torch.cat(alone))
    with pytest.raises(ValueError, match="scale has 3 entries: need one a sample, 2"):
        sample(together, x[:2], plan)
    with pytest.raises(ValueError, match=r"scale has shape \(3, 1\)"):
        denoise(scales[:, None], labels)
