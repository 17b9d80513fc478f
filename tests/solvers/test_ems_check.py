"""Statistics are used where they help: ripples are found, and a check decides."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import GAUSSIAN, MIXTURE, normal
from estimation_cases import DATA, SCHEDULE, SMALL, network_of, rowwise

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    EMS,
    ClassifierFree,
    Denoiser,
    FlowMatching,
    VarianceExploding,
    Verdict,
    check_ems,
    estimate_ems,
    estimation,
    make_plan,
    sample,
)
from logsnr.solvers.model_statistics.contest import NFE, ORDERS, number_of_starts
from logsnr.solvers.model_statistics.derivatives import RIPPLE_STEP
from logsnr.solvers.model_statistics.memory import bytes_of
from logsnr.solvers.requests import drive_batches, evaluator

ENDS = {"t_start": 1.0, "t_end": 1e-3}
RANGES = {"vp": (SCHEDULE, 1.0, 1e-3), "edm": (VarianceExploding(), 80.0, 0.01)}
RANGES |= {"flow": (FlowMatching(), 0.999, 0.01)}


def with_ripple(network, height=1e-2):
    """``network`` plus what an embedding by sines of 1000 t leaves in the output of a trained one.

    Small in the output, of either sign in turn; its derivative in lambda is not small at all.
    """

    def rippling(x, t):
        columns = t.reshape(-1, *[1] * (x.ndim - 1)).to(x)
        return network(x, t) + height * torch.sin(1000 * columns + 3 * x) * x.tanh()

    return rippling


def converged(denoise, starts, ends):
    return sample(denoise, starts, make_plan("unipc", denoise.schedule, nfe=400, order=3, **ends))


def errors(denoise, ems, order, nfe, starts, ends, reference, **options):
    """Root mean square distance to ``reference``, without and with ``ems``."""
    schedule = denoise.schedule
    found = []
    for statistics in (None, ems):
        plan = make_plan(
            "dpm-solver-v3",
            schedule,
            nfe=nfe,
            order=order,
            ems=statistics,
            treatment="spline",
            **(options if statistics is not None else {}),
            **ends,
        )
        found.append(float((sample(denoise, starts, plan) - reference).square().mean().sqrt()))
    return found


def spoilt(ems: EMS, verdict: Verdict | None = None) -> EMS:
    """Statistics with slopes that are far too steep."""
    wave = 8 * torch.sin(12 * ems.lam).reshape(-1, *[1] * len(ems.event))
    return replace(ems, s=ems.s + wave, verdict=verdict)


@pytest.fixture(scope="module")
def estimated():
    """name -> (denoise, ems, ends, starts) of exact denoisers on three schedules."""
    made = {}
    for name, (schedule, t_start, t_end) in RANGES.items():
        ends = {"t_start": t_start, "t_end": t_end}
        denoise = exact_denoiser(MIXTURE, schedule)
        data = MIXTURE.draw(256, torch.Generator().manual_seed(0))
        ems = estimate_ems(denoise, data, **ends, nodes=40, samples=256)
        sigma, alpha = schedule.sigma(t_start), schedule.alpha(t_start)
        unseen = alpha * MIXTURE.draw(100, torch.Generator().manual_seed(7))
        made[name] = (denoise, ems, ends, unseen + sigma * normal(100, 4, seed=8))
    return made


# The verdict


@pytest.mark.parametrize("name", RANGES)
def test_the_verdict_is_what_unseen_starts_show(estimated, name):
    """Of good and of bad statistics: wherever unseen starts tell them clearly apart."""
    denoise, ems, ends, starts = estimated[name]
    reference = converged(denoise, starts, ends)
    bad = check_ems(denoise, spoilt(ems), starts[:16])
    assert (bad.verdict.starts, ems.verdict.starts) == (16, 64)
    seen = set()
    for statistics in (ems, bad):
        for order in ORDERS:
            for nfe in (5, 8, 12):
                without, own = errors(
                    denoise, statistics, order, nfe, starts, ends, reference, fallback=False
                )
                if max(own / without, without / own) > 1.5:
                    loses = statistics.verdict.loses(order, nfe)
                    assert loses is (own > without), (order, nfe, own, without)
                    seen.add(loses)
    assert seen == {True, False}


def test_a_gaussian_is_won_at_every_order_and_number():
    """There the statistics make every step exact, whatever the grid."""
    mean, scale = GAUSSIAN.mean, GAUSSIAN.scale
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    lam = EMS.degenerate(SCHEDULE, **ENDS).lam
    l = torch.sigmoid(-2 * (lam[:, None] + torch.log(scale)))
    exact = EMS(lam, l, torch.zeros_like(l), 2 * l * (1 - l) * mean)
    verdict = check_ems(denoise, exact, normal(16, 4, seed=1)).verdict
    for order in ORDERS:
        for nfe in range(5, 21):
            assert verdict.ratio(order, nfe) < 0.05 and not verdict.loses(order, nfe)
        # What is left is the error of the converged solution and of the splines.
        assert max(verdict.own[order]) < 1e-3


def test_degenerate_statistics_neither_win_nor_lose():
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    verdict = check_ems(denoise, EMS.degenerate(SCHEDULE, **ENDS), normal(16, 4, seed=1)).verdict
    for order in ORDERS:
        np.testing.assert_allclose(verdict.own[order], verdict.degenerate[order], rtol=1e-6)


def test_between_and_beyond_the_numbers_that_were_tried():
    verdict = Verdict((5, 10), {2: (4.0, 1.0)}, {2: (1.0, 1.0)}, starts=1)
    ratios = [verdict.ratio(2, nfe) for nfe in (3, 5, 7, 10, 100)]
    between = 4 ** (1 - math.log(7 / 5) / math.log(2))
    np.testing.assert_allclose(ratios, [4, 4, between, 1, 1])
    assert verdict.loses(2, 7) and not verdict.loses(2, 50)
    assert not verdict.loses(3, 5)  # was not tried


def test_statistics_that_overflow_lose_and_are_never_shown_to_the_network():
    denoise = exact_denoiser(MIXTURE, SCHEDULE)

    def network(x, t):
        assert x.isfinite().all() and x.abs().max() < 1e5
        return denoise.evaluate(x, t)

    ems = EMS.degenerate(SCHEDULE, **ENDS)
    for s in (-1e3, -30.0, 30.0, 1e3):
        wild = replace(ems, s=torch.full_like(ems.s, s))
        guarded = Denoiser(network, SCHEDULE, network_time=lambda t: t)
        verdict = check_ems(guarded, wild, normal(16, 4, seed=1)).verdict
        assert all(verdict.loses(order, nfe) for order in (2, 3) for nfe in NFE), s


# The plan


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_plan_falls_back_where_they_lose_and_nowhere_else(estimated, name, order):
    denoise, ems, ends, starts = estimated[name]
    own, bad = ems.verdict.own, {k: [9.0 * v for v in ems.verdict.own[k]] for k in ORDERS}
    won = Verdict(NFE, own, {k: tuple(bad[k]) for k in ORDERS}, starts=16)
    lost = Verdict(NFE, {k: tuple(bad[k]) for k in ORDERS}, own, starts=16)

    def result(statistics, **options):
        options |= {"order": order, "treatment": "spline", **ends}
        plan = make_plan("dpm-solver-v3", denoise.schedule, nfe=7, ems=statistics, **options)
        return sample(denoise, starts[:4], plan)

    insisted = result(replace(ems, verdict=None))
    assert torch.equal(result(replace(ems, verdict=won)), insisted)
    losing = replace(ems, verdict=lost)
    with pytest.warns(UserWarning, match=rf"order {order} at 7 NFE: .* 9 times .*fallback=False"):
        assert torch.equal(result(losing), result(None))
    assert torch.equal(result(losing, fallback=False), insisted)
    assert not torch.equal(insisted, result(None))


def test_what_does_not_fit_is_refused_before_any_fall_back(estimated):
    ems = estimated["vp"][1]
    lost = Verdict((5, 20), {3: (2.0, 2.0)}, {3: (1.0, 1.0)}, starts=16)
    with pytest.raises(ValueError, match="ems covers lambda"):
        make_plan(
            "dpm-solver-v3", SCHEDULE, nfe=8, ems=replace(ems, verdict=lost), t_start=1, t_end=1e-5
        )
    with pytest.raises(ValueError, match="fallback=1: need True or False"):
        make_plan("dpm-solver-v3", SCHEDULE, nfe=8, ems=ems, fallback=1, **ENDS)


# Files


def test_a_file_keeps_the_verdict_and_an_old_one_has_none(estimated, tmp_path):
    ems = estimated["vp"][1]
    ems.save(tmp_path, dtype=torch.float16)
    assert EMS.load(tmp_path).verdict == ems.verdict
    replace(ems, verdict=None).save(tmp_path / "old.safetensors")
    assert EMS.load(tmp_path / "old.safetensors").verdict is None
    assert ems.shrunk().verdict == ems.verdict


# The check through every driver


def test_the_generator_gives_the_verdict_of_estimate_ems():
    arguments = {"nodes": 5, "samples": 16, "group": 8, **ENDS}
    data = normal(16, 2, seed=3)
    whole = estimate_ems(
        network_of(), data, **arguments, jacobian="difference", derivative="difference"
    )
    process = estimation(SCHEDULE, data, **arguments)
    assert drive_batches(process, evaluator(network_of())).verdict == whole.verdict
    assert estimate_ems(network_of(), data, **arguments, check=False).verdict is None
    with pytest.raises(ValueError, match="check='no': need True or False"):
        estimate_ems(network_of(), data, **arguments, check="no")


class Cut(Exception):
    pass


@pytest.mark.parametrize("data", ["tensor", "stream", "own"])
def test_a_check_cut_short_goes_on_from_the_run_in_flight(tmp_path, data):
    small = SMALL | {"check": True, "samples": 16, "checkpoint": tmp_path}
    of = {"tensor": lambda: DATA, "stream": lambda: iter(DATA), "own": lambda: None}[data]
    own = {"shape": (2, 3, 3), "dtype": torch.float64} if data == "own" else {}
    calls = [0]
    last = [math.inf]

    def counting(x, t):
        calls[0] += 1
        if calls[0] > last[0]:
            raise Cut
        return rowwise(x, t)

    whole = estimate_ems(network_of(counting), of(), **small | {"checkpoint": None}, **own)
    total, calls[0], last[0] = calls[0], 0, calls[0] - 100
    for _ in range(2):
        with pytest.raises(Cut):
            estimate_ems(network_of(counting), of(), **small, **own)
        calls[0], last[0] = 0, 40
    last[0] = math.inf
    again = estimate_ems(network_of(counting), of(), **small, **own)
    assert again.verdict == whole.verdict and torch.equal(again.l, whole.l)
    # 100 were left, of which 40 were made between the cuts, but for at most one run of 20 each.
    assert calls[0] <= 100 - 40 + 2 * 20 + 2 < total
    calls[0] = 0
    assert estimate_ems(network_of(counting), of(), **small, **own).verdict == whole.verdict
    assert calls[0] <= 2


def test_statistics_that_more_samples_changed_are_checked_again(tmp_path):
    small = SMALL | {"check": True}
    estimate_ems(network_of(), DATA, **small | {"samples": 16}, checkpoint=tmp_path)
    more = estimate_ems(network_of(), DATA, **small, checkpoint=tmp_path)
    assert more.verdict == estimate_ems(network_of(), DATA, **small).verdict


def test_starts_have_conditions_of_their_own_and_guidance():
    shift = normal(16, seed=9)

    def network(x, t, shift):
        return rowwise(x - shift[:, None, None, None], t)

    null = {"shift": torch.zeros(1).double()}
    for options in (
        {"condition": {"shift": shift}},
        {"guidance": ClassifierFree(2.0, {"shift": shift}, null)},
    ):
        runs = [
            estimate_ems(
                network_of(network, **options),
                DATA,
                **SMALL | {"check": True, "samples": 16},
                batch_size=size,
            ).verdict
            for size in (3, 64)
        ]
        assert runs[0] == runs[1]


def test_fewer_coordinates_take_more_starts():
    assert [number_of_starts(event) for event in ((2,), (8, 16), (1, 28, 28), (4, 64, 64))] == [
        64,
        32,
        16,
        16,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denoise": rowwise}, "denoise="),
        ({"ems": "file"}, "ems='file': need an EMS"),
        ({"x_T": normal(4, 3)}, "event shape"),
        ({"ems": EMS.degenerate(FlowMatching(), t_start=0.9, t_end=0.1)}, "ems was made for"),
    ],
)
def test_check_ems_names_what_does_not_fit(arguments, message):
    lam = EMS.degenerate(SCHEDULE, **ENDS).lam
    values = torch.ones(len(lam), 2).double()
    fitting = {"denoise": network_of(), "ems": EMS(lam, values, values, values)}
    with pytest.raises(ValueError, match=message):
        check_ems(**{**fitting, "x_T": normal(4, 2), **arguments})


# Ripples


@pytest.mark.parametrize("height", [1e-2, 0.1])
def test_a_ripple_is_found_whatever_time_the_network_is_told(height):
    """The statistics are then those of the network without it, as far as differences can be."""
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    smooth = Denoiser(lambda x, t: denoise.evaluate(x, t), SCHEDULE, network_time=lambda t: t)
    rippling = Denoiser(with_ripple(smooth.network, height), SCHEDULE, network_time=lambda t: t)
    data = MIXTURE.draw(64, torch.Generator().manual_seed(0))
    given = {"nodes": 40, "samples": 64, "check": False, **ENDS}
    plain, found = (estimate_ems(d, data, **given) for d in (smooth, rippling))
    assert plain.about["steps"][1] < 0.01 and plain.about["derivative"] == "jvp"
    assert found.about["steps"][1] == RIPPLE_STEP and found.about["derivative"] == "difference"
    assert "ripples" in found.about["derivatives"]["step"]
    process = estimation(SCHEDULE, data, **given)
    assert drive_batches(process, evaluator(rippling)).about["steps"][1] == RIPPLE_STEP
    # Who names a step, or forward mode, gets it.
    asked = estimate_ems(rippling, data, **given, lam_step=0.02)
    assert asked.about["steps"][1] == 0.02
    pointwise = estimate_ems(rippling, data, **given, derivative="jvp")
    assert pointwise.about["derivative"] == "jvp"
    off = [float((e.s - plain.s).abs().mean()) for e in (found, pointwise)]
    assert off[0] < 0.3 * off[1]


def test_a_resumed_estimation_keeps_the_step_that_was_found(tmp_path):
    rippling = network_of(with_ripple(rowwise))
    first = estimate_ems(rippling, DATA, **SMALL | {"samples": 16}, checkpoint=tmp_path)
    more = estimate_ems(rippling, DATA, **SMALL, checkpoint=tmp_path)
    assert first.about["steps"][1] == more.about["steps"][1] == RIPPLE_STEP
    with pytest.raises(ValueError, match="was made with steps="):
        estimate_ems(rippling, DATA, **SMALL, checkpoint=tmp_path, lam_step=0.01)


# Rows a call


def test_a_small_network_is_called_with_many_rows_and_few_times():
    sizes = []

    def counting(x, t):
        sizes.append(len(x))
        return rowwise(x, t)

    given = {"nodes": 60, "samples": 64, "jacobian": "difference", "derivative": "difference"}
    estimate_ems(network_of(counting), DATA[:, 0, 0], **given, **ENDS, check=False)
    assert len(sizes) < 0.05 * 64 * 61 and max(sizes) > 1000
    sizes.clear()
    estimate_ems(network_of(counting), DATA[:, 0, 0], **given, **ENDS, check=False, batch_size=24)
    assert max(sizes) <= 24


def test_the_bytes_of_a_call_follow_the_network():
    x = torch.zeros(8, 4, 16, 16)
    narrow, wide = (torch.nn.Conv2d(4, n, 3, padding=1) for n in (256, 2560))
    with torch.no_grad():
        few, many = bytes_of(narrow, x), bytes_of(wide, x)
    assert few >= 256 * 16 * 16 * 4 and 9 <= many / few <= 10.5
    # What is not torch's is not seen: a share for it.
    assert bytes_of(lambda x: x, x) >= 16 * 4 * 16 * 16 * 4
    assert not x.any()


def test_forward_mode_through_layers_is_theirs():
    """Rules of our own for layers that are linear in their input: against torch's, bit for bit."""
    from logsnr.solvers.model_statistics.probes import _jvp

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(2, 8, 3, padding=1, stride=2)
            self.norm = torch.nn.GroupNorm(2, 8)
            self.last = torch.nn.Linear(8 * 4, 3, bias=False)
            self.gate = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            hidden = torch.nn.functional.silu(self.norm(self.first(x))).flatten(1)
            # a weight that depends on the input, too
            return torch.nn.functional.linear(self.last(hidden), x[0, 0, :3, :3], bias=self.gate)

    torch.manual_seed(0)
    network = Network().double()
    x, w = normal(5, 2, 4, 4), normal(5, 2, 4, 4, seed=1)
    found = _jvp(network, (x,), (w,))
    expected = torch.func.jvp(network, (x,), (w,))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _jvp(network, (x,), (w,))
