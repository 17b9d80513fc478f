"""What a parallel run is predicted to cost: formulas, and counts against runs never used to fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import MIXTURE, normal

from logsnr.benchmarks.embedded import NULL_LABEL, load_scheduler, load_unet
from logsnr.benchmarks.problems.analytic import Mixture, exact_denoiser
from logsnr.solvers import Denoiser, DiscreteVP, VPLinear, make_plan
from logsnr.solvers.parallel import ParallelStats, sample_parallel
from logsnr.solvers.parallel.cost import (
    DIMENSION,
    MODES,
    SCALE,
    SPREAD,
    Cost,
    cost,
    measure_throughput,
    predict,
    report,
    stand_in,
    without_tensors,
)

SCHEDULE = VPLinear()
PLAN = make_plan("ddim", SCHEDULE, nfe=20)
STATS = ParallelStats(
    sweeps=3,
    evaluations=21,
    residuals=(1.0, 1.0, 0.0),
    windows=((0, 10), (8, 16), (17, 20)),
    rows_held=11,
)


def digits() -> tuple[Denoiser, torch.Tensor]:
    unet, schedule = load_unet(), DiscreteVP(load_scheduler().alphas_cumprod)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return unet(x, t, class_labels=torch.full((len(x),), NULL_LABEL)).sample

    return Denoiser(network, schedule), normal(1, 1, 28, 28).float()


def mixture() -> tuple[Denoiser, torch.Tensor]:
    return exact_denoiser(MIXTURE, SCHEDULE), normal(4, MIXTURE.dimension)


@pytest.mark.parametrize(
    ("network", "solver", "nfe", "window", "tolerance", "options"),
    [
        (mixture, "ddim", 40, None, 0.03, {}),
        (mixture, "unipc", 30, 12, 0.1, {"acceleration": None}),
        (mixture, "dpm-solver++", 200, 25, 1e-2, {}),
        (mixture, "deis", 60, 15, 1e-3, {"update": "literal", "published": True}),
        (digits, "unipc", 24, 12, 0.1, {}),
        (digits, "ddim", 30, 10, 0.03, {"update": "literal"}),
        (digits, "dpm-solver++", 20, 8, 1e-2, {}),
    ],
)
def test_counts_lie_in_the_likely_range_for_plans_that_were_not_fitted(
    network: Callable[[], tuple[Denoiser, torch.Tensor]],
    solver: str,
    nfe: int,
    window: int | None,
    tolerance: float,
    options: dict[str, object],
) -> None:
    denoise, x_T = network()
    plan = make_plan(solver, denoise.schedule, nfe=nfe)
    predicted = predict(plan, window, tolerance, **options)
    _, stats = sample_parallel(denoise, x_T, plan, window, tolerance, **options)
    for actual, count in (
        (stats.sweeps, predicted.sweeps),
        (stats.evaluations, predicted.evaluations),
    ):
        assert SPREAD[0] * count <= actual <= SPREAD[1] * count
    low, high = predicted.likely_sweeps
    assert low <= SPREAD[0] * predicted.sweeps and high >= SPREAD[1] * predicted.sweeps


def test_times_and_the_bound_follow_the_formulas() -> None:
    throughput = {1: 1.0, 2: 1.2, 4: 2.0}
    # Windows of 10, 8 and 3 groups on 4 devices are calls of 3, 2 and 1 groups.
    result = cost(PLAN, STATS, devices=4, throughput=throughput, overhead=0.1)
    assert result.sequential_time == 20
    assert result.parallel_time == pytest.approx((1.2 + 2.0) / 2 + 1.2 + 1.0 + 3 * 0.1)
    assert result.speedup == pytest.approx(20 / result.parallel_time)
    assert result.bound == pytest.approx(20 / 3)  # the critical path: 21/4 * 0.5 is less
    # On one device the work decides: 21 groups at the best rate, 0.5 a group.
    assert cost(PLAN, STATS, throughput=throughput).bound == pytest.approx(20 / (21 * 0.5))
    # Beyond the largest size measured, in proportion: 10, 8 and 3 groups.
    assert cost(PLAN, STATS, throughput=throughput).parallel_time == pytest.approx(5 + 4 + 1.6)
    # Without a measurement a device gains nothing from batches: n W / evaluations at most.
    assert cost(PLAN, STATS).speedup == cost(PLAN, STATS).bound == pytest.approx(20 / 21)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("window", [1, 7, None])
def test_no_prediction_beats_its_bound(devices: int, window: int | None) -> None:
    for throughput in (None, {1: 1.0, 8: 1.5, 64: 9.0}, {2: 3.0}):
        result = predict(PLAN, window, 0.1, devices=devices, throughput=throughput)
        assert result.speedup <= result.bound * (1 + 1e-12)
    if window == 1:
        assert (result.sweeps, result.evaluations) == (20, 20)


def test_the_stand_in_is_the_exact_network_of_its_mixture() -> None:
    plan = make_plan("ddim", SCHEDULE, times=[1.0, 0.5, 0.1, 0.0])
    x_T, evaluate = stand_in(plan, batch=3)
    means = torch.randn(
        MODES, DIMENSION, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    share, scale = (torch.full((MODES,), v, dtype=torch.float64) for v in (1 / MODES, SCALE))
    exact = Mixture(share, means, scale)
    nodes = [row.node for row in plan.rows[:-1]]
    x = torch.stack([x_T * node.sigma + node.alpha * means[:3] for node in nodes])
    expected = [
        exact.predict(state, node.alpha, node.sigma)[1]
        for state, node in zip(x, nodes, strict=True)
    ]
    torch.testing.assert_close(
        evaluate(x, [node.t for node in nodes]), torch.stack(expected), rtol=0, atol=1e-12
    )


def test_tensor_coefficients_of_any_shape_are_predicted() -> None:
    plan = PLAN.with_coefficients(PLAN.coefficients().requires_grad_())
    assert not plan.numeric and without_tensors(plan).numeric
    assert predict(plan, 10, 0.1) == predict(PLAN, 10, 0.1)


def test_throughput_is_measured_for_every_size() -> None:
    calls: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    denoise = Denoiser(network, SCHEDULE)
    seconds = measure_throughput(denoise, normal(2, 3), 0.5, sizes=(1, 4), calls=2)
    assert list(seconds) == [1, 4] and min(seconds.values()) > 0
    assert calls == [2, 2, 2, 8, 8, 8]


def test_a_run_warns_only_where_the_sequential_one_is_faster() -> None:
    denoise, x_T = mixture()
    with pytest.warns(UserWarning, match=r"sample\(\) would be faster.*on 1 device"):
        sample_parallel(denoise, x_T, PLAN, 10, 0.1, devices=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_parallel(denoise, x_T, PLAN, 10, 0.1)
        sample_parallel(denoise, x_T, PLAN, 10, 0.1, devices=8)
        sample_parallel(denoise, x_T, PLAN, 10, 0.1, devices=1, throughput={1: 1.0, 10: 1.0})


def test_the_report_has_the_prediction_beside_the_run() -> None:
    predicted = Cost(5, 30, 10.0, 4.0, 2.5, 3.0)
    counts = report(predicted, STATS)
    assert counts.splitlines()[1].split() == ["sweeps", "5", "2-8", "3"]
    assert counts.splitlines()[2].split() == ["evaluations", "30", "12-45", "21"]
    timed = report(predicted, STATS, seconds=5.0).splitlines()
    assert timed[3].split() == ["seconds", "4", "5"]
    assert timed[4].split() == ["speed-up", "2.50", "<=", "3.00", "2.00"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"devices": True},
        {"overhead": -1.0},
        {"overhead": math.nan},
        {"throughput": {0: 1.0}},
        {"throughput": {1: 0.0}},
        {"window": 0},
        {"tolerance": -1.0},
        {"update": "exact"},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        predict(PLAN, **wrong)
    with pytest.raises(ValueError, match="sizes="):
        measure_throughput(lambda x, t: x, normal(1, 2), 0.5, sizes=())
