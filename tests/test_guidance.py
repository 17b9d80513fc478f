"""Classifier-free guidance and dynamic thresholding against straightforward numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import SCHEDULES, normal

from logsnr.solvers import ClassifierFree, Denoiser, DynamicThreshold

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


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.2, True), (0.5, True), (0.71, False)])
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
    for sample, clipped in zip(x0.double().numpy(), result.double().numpy(), strict=True):
        s = min(max(1.0, np.quantile(np.abs(sample), ratio)), maximum)
        expected = np.clip(sample, -s, s) / s
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
