"""The choice of a plan by measurement: what it costs, when the default stays, and that it helps."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GAUSSIAN, MIXTURE, normal, tensor

from logsnr.benchmarks.problems.analytic import Mixture, exact_denoiser, point_mass
from logsnr.solvers import (
    EMS,
    Denoiser,
    FlowMatching,
    Plan,
    VPLinear,
    auto_plan,
    make_plan,
    sample,
)
from logsnr.solvers.tuning.errors import plan_errors, summary

WIDE = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    6 * normal(2, 4, seed=5),
    torch.tensor([1.5, 2.5], dtype=torch.float64),
)


def counted(denoise):
    calls = [0]

    def network(x, t):
        assert not torch.is_grad_enabled()
        calls[0] += len(x)
        return denoise(x, t)

    return network, calls


@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching()], ids=["vp", "flow"])
def test_the_choice_is_nearer_and_its_cost_is_told(schedule):
    denoise = exact_denoiser(WIDE, schedule, "sample")
    network, calls = counted(denoise)
    done: list[tuple[int, int]] = []
    starts = normal(24, 4)
    keywords = {"schedule": schedule, "t_end": 1e-3}
    plan = auto_plan(network, starts, 5, progress=lambda *at: done.append(at), **keywords)
    note = plan.options["auto"]
    assert plan.nfe == 5 and note["comparison"]["better"]
    assert note["evaluations"] == calls[0]
    assert done[-1][0] == done[-1][1] and [a for a, _ in done] == sorted(a for a, _ in done)
    errors = [entry["error"] for entry in note["ranking"]]
    assert errors == sorted(errors) and len(errors) >= 3
    assert all("solver" in entry and "options" in entry for entry in note["ranking"])
    default = make_plan(note["default"]["solver"], nfe=5, **keywords, **note["default"]["options"])
    others = normal(64, 4, seed=7)
    long = make_plan("unipc-3", nfe=300, location=-1.0, scale=2.5, **keywords)
    exact = sample(denoise, others, long)
    found, before = (summary(plan_errors(p, denoise, others, exact)) for p in (plan, default))
    assert found.log_mean < 0.8 * before.log_mean
    again = auto_plan(denoise, starts, 5, **keywords)
    assert again.rows == plan.rows and again.options == plan.options


def test_a_saved_choice_is_the_choice(tmp_path):
    plan = auto_plan(exact_denoiser(MIXTURE, VPLinear()), normal(12, 4), 3, fit=None)
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").options == plan.options


def test_the_default_wins_ties():
    """On a point mass every plan is exact, so that none is better than the default."""
    schedule = FlowMatching()
    denoise = exact_denoiser(point_mass(tensor(0.7, -1.3, 0.2, 2.0)), schedule, "sample")
    plan = auto_plan(denoise, normal(15, 4), 4, fit="proxy")
    note = plan.options["auto"]
    default = make_plan(note["default"]["solver"], schedule, nfe=4, **note["default"]["options"])
    assert not note["comparison"]["better"]
    assert plan.rows == default.rows


def test_a_default_that_nothing_beats_stays():
    """It looks ten times as often: its nodes are the same, and its rows those of a longer run."""
    schedule = VPLinear()
    denoise = exact_denoiser(GAUSSIAN, schedule, "sample")
    starts = normal(12, 4)
    exact = [GAUSSIAN.flow(make_plan("ddim", schedule, nfe=1).rows[0].node, starts)]
    end = exact[0](make_plan("ddim", schedule, nfe=1).rows[-1].node)
    best = auto_plan(denoise, starts, 6, targets=end, fit=None)
    again = auto_plan(denoise, starts, 6, targets=end, default=best, fit=None)
    assert again.rows == best.rows and not again.options["auto"]["comparison"]["better"]


def test_candidates_of_the_user_and_statistics():
    schedule = VPLinear()
    denoise = exact_denoiser(MIXTURE, schedule, "sample")
    lam = torch.linspace(
        float(schedule.lam(1.0)), float(schedule.lam(1e-3)), 41, dtype=torch.float64
    )
    ems = EMS(lam, 0.1 * torch.sin(lam), 0 * lam, 0 * lam)
    tried = []

    def network(x, t):
        tried.append(t)
        return denoise(x, t)

    own = [("unipc", {"order": 2, "times": [1.0, 0.43, 0.21, 0.001]})]
    plan = auto_plan(
        network, normal(12, 4), 3, schedule=schedule, candidates=own, ems=ems, fit=None
    )
    assert {0.43, 0.21} <= set(tried)
    without = auto_plan(network, normal(12, 4), 3, schedule=schedule, fit=None)
    more = plan.options["auto"]["candidates"] - without.options["auto"]["candidates"]
    assert more >= 2
    assert math.isfinite(plan.options["auto"]["comparison"]["ratio"])


def test_a_level_goes_on_to_tune_the_winner():
    denoise = exact_denoiser(WIDE, VPLinear(), "sample")
    starts = normal(15, 4)
    plan = auto_plan(
        denoise, starts, 4, level="coefficients", fit=None, tuning={"iterations": 4, "rows": "free"}
    )
    note = plan.options["auto"]
    assert note["tuned"]["level"] == "coefficients" and plan.nfe == 4
    assert ("tuned" in plan.options) == note["tuned"]["better"]
    assert plan.consistent != note["tuned"]["better"] or plan.options["tuned"]["accepted"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"nfe": 0}, "nfe=0"),
        ({"starts": normal(5, 4)}, "starts has 5 entries"),
        ({"schedule": None}, "schedule=None"),
        ({"measure": "mean"}, "measure='mean'"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"fit": "gradient"}, "fit='gradient'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"default": make_plan("ddim", VPLinear(), nfe=4)}, "default has 4 evaluations"),
        ({"default": "unipc"}, "default='unipc'"),
        ({"default": make_plan("ddim", VPLinear(), nfe=6, eta=1.0)}, "default adds noise"),
        ({"targets": normal(3, 4)}, "targets has shape"),
        ({"spacing": "karras"}, "spacing='karras'"),
        ({"candidates": [("unipx", {})]}, "unipx"),
        ({"candidates": [("ddim", {"eta": 1.0})]}, "candidates has 'ddim'"),
        ({"t_start": 2.0}, "t_start=2.0"),
        ({"level": "all"}, "level='all'"),
        ({"level": "grid"}, "has to be a Denoiser"),
        ({"tuning": {"rate": 0.1}}, "tuning={'rate': 0.1} was given without a level"),
        ({"tuning": [1]}, r"tuning=\[1\]"),
    ],
)
def test_bad_options_are_refused_before_the_network_is_called(keywords, message):
    def network(x, t):
        raise AssertionError("called")

    given = {"starts": normal(12, 4), "nfe": 6, "schedule": VPLinear(), **keywords}
    with pytest.raises(ValueError, match=message):
        auto_plan(network, given.pop("starts"), **given)


def test_options_of_the_fit_are_checked_first_and_may_repeat_those_of_the_choice():
    def network(x, t):
        raise AssertionError("called")

    blind = Denoiser(network, VPLinear())
    for tuning, message in [({"rows": "x"}, "rows='x'"), ({"row": 1}, "tuning={'row': 1}")]:
        with pytest.raises(ValueError, match=message):
            auto_plan(blind, normal(12, 4), 3, level="full", tuning=tuning)
    denoise = exact_denoiser(WIDE, VPLinear(), "sample")
    tuning = {"objective": "mse", "iterations": 0}
    plan = auto_plan(denoise, normal(12, 4), 2, level="full", fit=None, tuning=tuning)
    assert plan.nfe == 2


def test_a_default_whose_rows_no_solver_makes():
    """A fitted or a cached plan may be what has to be beaten, also where it leads."""
    denoise = exact_denoiser(WIDE, VPLinear(), "sample")
    starts = normal(12, 4)
    long = make_plan("unipc", VPLinear(), nfe=40)
    exact = long.labelled("tuned", {})
    targets = sample(denoise, starts, exact)
    for default in (exact, long.cached([1] * 39 + [0])):
        chosen = auto_plan(denoise, starts, default.nfe, default=default, targets=targets)
        assert chosen.rows == default.rows
