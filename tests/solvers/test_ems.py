"""The statistics of DPM-Solver-v3: what they refuse, files, granularity, shrinkage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import SCHEDULES, normal
from safetensors.torch import save_file

from logsnr.solvers import (
    EMS,
    DiscreteVP,
    FlowMatching,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
)

SCHEDULE = VPLinear()
GRID = EMS.degenerate(SCHEDULE, intervals=12).lam


def statistics(*event: int, errors: bool = True, seed: int = 0) -> EMS:
    l, s, b = (0.3 * normal(13, *event, seed=seed + k) for k in range(3))
    scales = {name: normal(13, *event, seed=seed + 3).abs() for name in "lsb"} if errors else {}
    return EMS(GRID, 1 + l, s, b, scales, {"schedule": repr(SCHEDULE), "samples": 7})


def equal(one: EMS, two: EMS) -> bool:
    pairs = [(getattr(one, name), getattr(two, name)) for name in ("lam", "l", "s", "b")]
    pairs += [(one.errors[name], two.errors[name]) for name in one.errors]
    return one.errors.keys() == two.errors.keys() and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": GRID[:1]}, r"lam has shape \(1,\)"),
        ({"lam": GRID.flip(0)}, "need a uniform rising grid"),
        ({"lam": GRID**3}, "need a uniform rising grid"),
        ({"lam": GRID * math.inf}, "need at least 2 finite"),
        ({"lam": GRID.tolist()}, "lam=.*need a tensor"),
        ({"l": torch.ones(12)}, r"l has shape \(12,\): need \(13, \*event\)"),
        ({"s": torch.ones(13, 2)}, r"s has shape \(13, 2\)"),
        ({"b": torch.full((13,), math.nan)}, "b has values that are not finite"),
        ({"errors": {"x": torch.ones(13)}}, "errors has 'x'"),
        ({"errors": {"l": torch.ones(12)}}, r"errors\['l'\] has shape \(12,\)"),
        ({"errors": {"l": -torch.ones(13)}}, "no negative value"),
    ],
)
def test_malformed_statistics_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(EMS.degenerate(SCHEDULE, intervals=12), **change)


# files


@pytest.mark.parametrize("event", [(), (3,), (2, 4, 4)])
def test_a_file_gives_back_the_same_statistics(event, tmp_path):
    ems = statistics(*event)
    ems.save(tmp_path / "model.safetensors")
    ems.save(tmp_path)  # a folder
    for path in (tmp_path / "model.safetensors", tmp_path, str(tmp_path)):
        loaded = EMS.load(path)
        assert equal(ems, loaded) and loaded.about == ems.about


def test_a_file_of_half_precision_keeps_three_digits(tmp_path):
    ems = statistics(3)
    ems.save(tmp_path, dtype=torch.float16)
    loaded = EMS.load(tmp_path)
    assert torch.equal(loaded.lam, ems.lam) and loaded.about == ems.about
    for name in "lsb":
        torch.testing.assert_close(getattr(loaded, name), getattr(ems, name), rtol=5e-4, atol=1e-7)
        torch.testing.assert_close(loaded.errors[name], ems.errors[name], rtol=5e-4, atol=1e-7)
    with pytest.raises(ValueError, match=r"dtype=torch.float16: b has values beyond its range"):
        replace(ems, b=1e6 * ems.b).save(tmp_path, dtype=torch.float16)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "junk").write_bytes(b"not statistics")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    for name, message in (("junk", "holds no"), ("weights", "holds no"), ("none", "not exist")):
        with pytest.raises(ValueError, match=f"path=.*{name}.*{message}"):
            EMS.load(tmp_path / name)
    with pytest.raises(ValueError, match="about=.*need JSON values"):
        replace(statistics(), about={"when": object()}).save(tmp_path / "x")


def test_the_official_layout_is_read(tmp_path):
    ems = statistics(3, 4, 4, errors=False)
    np.savez(tmp_path / "l.npz", l=ems.l.numpy())
    np.savez(tmp_path / "sb.npz", s=ems.s.numpy(), b=ems.b.numpy())
    np.savez(tmp_path / "all.npz", l=ems.l.numpy(), s=ems.s.numpy(), b=ems.b.numpy())
    for path in (tmp_path, tmp_path / "all.npz"):
        read = EMS.from_npz(path, SCHEDULE)
        assert equal(ems, read) and read.about["schedule"] == repr(SCHEDULE)
    narrow = EMS.from_npz(tmp_path, SCHEDULE, t_start=0.9, t_end=0.01)
    ends = torch.tensor([SCHEDULE.lam(0.9), SCHEDULE.lam(0.01)], dtype=torch.float64)
    torch.testing.assert_close(narrow.lam[[0, -1]], ends)


def test_the_official_layout_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.savez(tmp_path / "trap.npz", l=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        EMS.from_npz(tmp_path / "trap.npz", SCHEDULE)
    with pytest.raises(ValueError, match=r"sb\.npz does not exist"):
        np.savez(tmp_path / "l.npz", l=np.ones(13))
        EMS.from_npz(tmp_path, SCHEDULE)
    with pytest.raises(ValueError, match="has no array 's'"):
        EMS.from_npz(tmp_path / "l.npz", SCHEDULE)


def test_a_grid_needs_finite_ends():
    with pytest.raises(ValueError, match="t_end=0.0 have lambda.*need finite"):
        EMS.degenerate(SCHEDULE, t_end=0.0)
    with pytest.raises(ValueError, match="t_start=2.0"):
        EMS.degenerate(SCHEDULE, t_start=2.0)


# fit


def test_statistics_that_do_not_fit_are_refused():
    ems = statistics(3, 4, 4)
    ems.fits(SCHEDULE, [GRID[0].item(), 0.0, GRID[-1].item(), math.inf, -math.inf], (3, 4, 4))
    with pytest.raises(ValueError, match="made for VPLinear.*not for VPCosine"):
        ems.fits(VPCosine())
    with pytest.raises(ValueError, match="covers lambda -5.02498 to 4.55771.*grid has 6:.*t_end="):
        ems.fits(SCHEDULE, [6.0])
    for event in ((3, 4, 8), (3, 4), (1, 4, 4)):
        with pytest.raises(ValueError, match=r"shape \(3, 4, 4\), but x has event shape"):
            ems.fits(SCHEDULE, event=event)
    statistics(3, 1, 1).fits(SCHEDULE, event=(3, 8, 16))
    statistics().fits(SCHEDULE, event=(7,))


def test_make_plan_checks_schedule_and_range():
    ems = EMS.degenerate(SCHEDULE, t_end=0.01)
    with pytest.raises(ValueError, match="ems was made for"):
        make_plan("dpm-solver-v3", SCHEDULES["vp_cosine"], nfe=5, ems=ems)
    with pytest.raises(ValueError, match="estimate the statistics on the wider range"):
        make_plan("dpm-solver-v3", SCHEDULE, nfe=5, ems=ems)
    with pytest.raises(ValueError, match="ems=3: need an EMS, the path"):
        make_plan("dpm-solver-v3", SCHEDULE, nfe=5, ems=3)


def table(peak: float) -> DiscreteVP:
    """100 training steps between the same ends, which the peak bends."""
    levels = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)
    return DiscreteVP(levels + peak * torch.sin(torch.linspace(0, math.pi, 100)).double())


class Renamed(VPLinear):
    """The same path under another name."""


def test_schedules_are_told_apart_by_their_path_and_not_by_their_name(tmp_path):
    same = [
        (VPLinear(0.1, 20.0), VPLinear(0.1, 20)),
        (VPLinear(0.1, 20.0), VPLinear(np.float64(0.1), 20.0)),
        (VPLinear(0.1, 20.0), Renamed(0.1, 20.0)),
        (VarianceExploding(0.002, 80.0), VarianceExploding(0.01, 50.0)),
        (table(0.1), DiscreteVP(table(0.1).alphas_cumprod.float())),
    ]
    other = [
        (table(0.1), table(0.11)),
        (VPLinear(0.1, 20.0), VPLinear(0.1, 20.01)),
        (VPLinear(0.1, 20.0), VPCosine()),
        (VarianceExploding(0.002, 80.0), FlowMatching()),
    ]
    assert repr(table(0.1)) == repr(table(0.11))
    for cases, refused in ((same, False), (other, True)):
        for made_for, used_on in cases:
            ends = {"t_start": made_for.time(-2.0), "t_end": made_for.time(2.0)}
            EMS.degenerate(made_for, **ends).save(tmp_path)
            ems = EMS.load(tmp_path)
            if refused:
                with pytest.raises(ValueError, match="ems was made for"):
                    ems.fits(used_on)
            else:
                ems.fits(used_on, [-1.9, 1.9])


def test_a_name_alone_is_compared_with_its_numbers():
    ems = replace(statistics(), about={"schedule": "VPLinear(beta_min=0.10, beta_max=2e1)"})
    ems.fits(SCHEDULE)
    with pytest.raises(ValueError, match="ems was made for"):
        ems.fits(VPLinear(0.1, 19.0))
    replace(statistics(), about={}).fits(VPCosine())


# shrinkage


def noisy(deviation: float, error: float, *event: int, seed: int = 0) -> EMS:
    """Statistics whose truth is 1 + deviation, deviation, deviation, seen with ``error``."""
    seen = [
        q + deviation + error * normal(13, *event, seed=seed + k) for k, q in enumerate((1, 0, 0))
    ]
    return EMS(GRID, *seen, {name: torch.full_like(seen[0], error) for name in "lsb"})


def distance(ems: EMS, deviation: float) -> float:
    truth = zip((ems.l, ems.s, ems.b), (1, 0, 0), strict=True)
    return math.sqrt(sum(float((v - q - deviation).square().mean()) for v, q in truth) / 3)


@pytest.mark.parametrize("deviation", [0.0, 0.03, 0.1, 0.3, 3.0])
@pytest.mark.parametrize("event", [(), (4,), (4, 8, 8)])
def test_shrinking_is_never_much_worse_than_the_better_of_both(deviation, event):
    """Of the estimates (root mean square error 0.1) and the degenerate values (``deviation``)."""
    rounds = [noisy(deviation, 0.1, *event, seed=17 * k).shrunk() for k in range(20)]
    error = math.sqrt(sum(distance(ems, deviation) ** 2 for ems in rounds) / 20)
    tolerance = {(): 1.35, (4,): 1.15, (4, 8, 8): 1.02}[event]
    small = 0.05 if math.prod(event) < 10 else 0.01
    assert error < tolerance * min(0.1, deviation) + small


def test_estimates_that_are_certain_stay_and_those_that_say_nothing_go():
    sure = statistics(4, errors=False)
    zero = {name: torch.zeros_like(sure.l) for name in "lsb"}
    assert equal(replace(sure, errors=zero).shrunk(), replace(sure, errors=zero))
    lost = replace(
        sure, errors={name: torch.full_like(sure.l, math.inf) for name in "lsb"}
    ).shrunk()
    assert equal(
        replace(lost, errors={}), replace(sure, l=torch.ones_like(sure.l), s=zero["s"], b=zero["b"])
    )


def test_one_coordinate_without_window_is_the_positive_part_estimator():
    ems = statistics()
    expected = 1 + (1 - ems.errors["l"] ** 2 / (ems.l - 1) ** 2).clamp(min=0) * (ems.l - 1)
    torch.testing.assert_close(ems.shrunk(window=0).l, expected)


def test_shrinking_needs_standard_errors():
    with pytest.raises(ValueError, match="errors has no 'l'"):
        statistics(errors=False).shrunk()
    with pytest.raises(ValueError, match="window=-1"):
        statistics().shrunk(window=-1)
