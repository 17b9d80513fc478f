"""CFG++: the published step on every schedule, and the plain guidance that is the same."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import RANGES, SCHEDULES, normal
from torch import Tensor

from logsnr.solvers import (
    ClassifierFree,
    ClassifierFreePP,
    Denoiser,
    NoiseSchedule,
    cfg_pp_scales,
    make_plan,
    sample,
    sample_adaptive,
    sample_parallel,
)

X = normal(3, 4, seed=1)
Z = [normal(3, 4, seed=10 + i) for i in range(12)]
SHIFTS = {"shift": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}
NONE = {"shift": torch.zeros(3, dtype=torch.float64)}
W = 0.6


def network(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
    """A data prediction."""
    return torch.tanh(x.flip(1) * (1 + shift[:, None])) + 0.3 * shift[:, None]


def denoiser(schedule: NoiseSchedule, guidance: ClassifierFree) -> Denoiser:
    return Denoiser(network, schedule, "sample", guidance=guidance)


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    """The guided data prediction, and that of the null branch."""
    t = torch.zeros(3, dtype=torch.float64)
    null, cond = network(x, t, **NONE), network(x, t, **SHIFTS)
    return null + W * (cond - null), null


@pytest.mark.parametrize("where", ["vp_linear", "edm", "flow_singular", "vp_cosine_singular"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("ddim", {}), ("euler", {}), ("euler-ancestral", {"eta": 0.7}), ("cps", {"eta": 0.5})],
)
def test_steps_of_one_evaluation_are_the_published_one(name, options, where):
    range_ = RANGES[where]
    plan = make_plan(name, range_.schedule, nfe=7, spacing="time", **range_.ends, **options)
    x, z = range_.schedule.sigma(range_.t_start) * X, iter(Z)
    start = x
    for before, row in pairwise(plan.rows):
        (s, t), n = (before.node, row.node), sum(term.scale for term in row.noise)
        guided, null = both(x)
        eps = (x - s.alpha * null) / s.sigma
        x = t.alpha * guided + math.sqrt(max(0.0, t.sigma**2 - n**2)) * eps
        x = x + n * next(z) if row.noise else x
    guided = denoiser(range_.schedule, ClassifierFreePP(W, SHIFTS, NONE))
    torch.testing.assert_close(
        sample(guided, start, plan, noise=Z), x, rtol=1e-9, atol=1e-9 * float(start.abs().max())
    )


@pytest.mark.parametrize("name", ["dpm2-ancestral", "dpm++2s-ancestral"])
def test_an_inner_evaluation_has_the_scale_of_its_own_step(name):
    """y = x / alpha: to the middle, and from there on with the middle's two predictions."""
    schedule = SCHEDULES["flow"]
    plan = make_plan(name, schedule, times=[0.8, 0.3], eta=0.5)
    start, middle, end = plan.rows
    (n,) = (term.scale for term in end.noise)
    down = math.sqrt(end.node.sigma**2 - n**2)
    guided, null = both(X)
    a = middle.node.sigma / start.node.sigma
    inner = a * (X - start.node.alpha * null) + middle.node.alpha * guided
    guided, null = both(inner)
    if name == "dpm++2s-ancestral":
        a = down / start.node.sigma
        x = a * X + (end.node.alpha - a * start.node.alpha) * null
    else:
        eps = (inner - middle.node.alpha * null) / middle.node.sigma
        a = end.node.alpha / start.node.alpha
        x = a * X + (down - a * start.node.sigma) * eps
    x = x + end.node.alpha * (guided - null) + n * Z[0]
    result = sample(denoiser(schedule, ClassifierFreePP(W, SHIFTS, NONE)), X, plan, noise=Z)
    torch.testing.assert_close(result, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm-solver++", "deis", "res"])
@pytest.mark.parametrize("where", ["vp_linear", "flow"])
def test_on_a_grid_uniform_in_lambda_it_is_one_scale(name, where):
    """w / (1 - e^-h), whatever the solver and the prediction that its rows combine."""
    lams = torch.linspace(-2, 2, 9, dtype=torch.float64)
    schedule = SCHEDULES[where]
    plan = make_plan(name, schedule, lams=lams)
    scale = W / -math.expm1(-0.5)
    if name != "deis":  # whose rows in the noise prediction have other shares of old evaluations
        assert cfg_pp_scales(plan, W) == pytest.approx([scale] * 8, rel=1e-9)
        plain = sample(denoiser(schedule, ClassifierFree(scale, SHIFTS, NONE)), X, plan)
        ours = sample(denoiser(schedule, ClassifierFreePP(W, SHIFTS, NONE)), X, plan)
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert all(s > W for s in cfg_pp_scales(plan, W))


def test_the_last_step_to_data_returns_the_guided_prediction():
    plan = make_plan("dpm-solver++", SCHEDULES["flow"], nfe=6)
    scales = cfg_pp_scales(plan, W)
    assert scales[-1] == pytest.approx(W) and scales[0] == pytest.approx(W)  # h is infinite


def test_where_there_are_no_steps_it_is_refused_before_the_network_is_called():
    def never(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        raise AssertionError("called")

    schedule, guidance = SCHEDULES["vp_linear"], ClassifierFreePP(W, SHIFTS, NONE)
    plan = make_plan("ddim", schedule, nfe=4)
    guided = Denoiser(never, schedule, "sample", guidance=guidance)
    for attempt in (
        lambda: guided(X, 0.5),
        lambda: sample_parallel(guided, X, plan),
        lambda: sample_adaptive(guided, X, schedule, t_end=0.1),
    ):
        with pytest.raises(ValueError, match="guidance=ClassifierFreePP.*steps of a plan"):
            attempt()
    with pytest.raises(ValueError, match="threshold was given beside ClassifierFreePP"):
        Denoiser(never, schedule, "sample", guidance=guidance, threshold=lambda x0: x0)
    with pytest.raises(ValueError, match="scale=nan"):
        ClassifierFreePP(math.nan, SHIFTS, NONE)
