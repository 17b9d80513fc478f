"""Start states: their scale on every schedule, and that a sample depends on its seed alone."""

from __future__ import annotations

import math

import pytest
import torch

from logsnr.solvers import (
    DiscreteVP,
    FlowMatching,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
)

TABLE = DiscreteVP(torch.linspace(0.999, 0.005, 1000, dtype=torch.float64))
PLANS = {
    "vp linear": (make_plan("unipc", VPLinear(), nfe=5), 1.0),
    "vp cosine": (make_plan("ddim", VPCosine(), nfe=5), 1.0),
    "discrete vp": (make_plan("heun", TABLE, nfe=6), 1.0),
    "vp from the middle": (make_plan("unipc", VPLinear(), nfe=5, t_start=0.3), 1.0),
    "edm": (make_plan("heun", VarianceExploding(), nfe=6), math.sqrt(1 + 80.0**2)),
    "ve": (make_plan("ddim", VarianceExploding(0.01, 5.0), nfe=6), math.sqrt(26.0)),
    "flow": (make_plan("unipc", FlowMatching(), nfe=5, shift=3.0), 1.0),
    "flow from t = 0.8": (
        make_plan("unipc", FlowMatching(), nfe=5, t_start=0.8),
        math.sqrt(0.2**2 + 0.8**2),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_deviation_is_that_of_noisy_data_of_unit_variance(name):
    plan, deviation = PLANS[name]
    x = plan.start((4, 100, 100), range(4))
    assert float(x.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(x.mean())) < 0.02 * deviation
    z = torch.stack(
        [torch.randn(100, 100, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    )
    torch.testing.assert_close(x, deviation * z, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PLANS)
def test_a_sample_depends_on_its_seed_alone(name):
    plan, _ = PLANS[name]
    seeds = [7, 0, 123456789, 7, 2**62]
    x = plan.start((5, 3, 2), seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(plan.start((1, 3, 2), [seed])[0], x[i])
    assert torch.equal(x[0], x[3]) and not torch.equal(x[0], x[1])
    before = torch.get_rng_state()
    assert torch.equal(plan.start((5, 3, 2), torch.tensor(seeds)), x)
    assert torch.equal(torch.get_rng_state(), before)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = plan.start((5, 3, 2), seeds, dtype=dtype, device="cpu")
        assert other.dtype == dtype
        torch.testing.assert_close(other.float(), x, rtol=1e-2, atol=1e-2)
    assert torch.equal(plan.start((5, 3, 2), seeds, dtype=torch.float64).float(), x)


def test_without_seeds_the_global_generator_draws():
    plan, _ = PLANS["flow"]
    torch.manual_seed(3)
    first, second = plan.start((2, 4)), plan.start((2, 4))
    torch.manual_seed(3)
    assert torch.equal(plan.start((2, 4)), first) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((2, 4), [1]), r"seeds has 1 entries: need one a sample, and shape=\(2, 4\) has 2"),
        (((2, 4), [1, -1]), "seeds has -1"),
        (((2, 4), [1, 0.5]), "seeds has 0.5"),
        (((2, 4), [1, True]), "seeds has True"),
        (((2, 4), 3), "seeds=3: need a list"),
        (((2, 4), "12"), "seeds has '1'"),
        (((), []), r"shape=\(\)"),
        ((4, [1]), "shape=4"),
        (((2, 0), [1, 2]), r"shape=\(2, 0\)"),
        (((2.0, 4), [1, 2]), r"shape=\(2.0, 4\)"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        PLANS["flow"][0].start(*arguments)
    with pytest.raises(ValueError, match="dtype=torch.int64"):
        PLANS["flow"][0].start((1, 4), [1], dtype=torch.int64)
