"""Times that a node tells the network: passed on by every driver or refused, kept in files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal
from safetensors.torch import safe_open, save_file
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    ClassifierFree,
    Denoiser,
    FlowMatching,
    Noise,
    Plan,
    make_plan,
    sample,
    sample_parallel,
)

VP = SCHEDULES["vp_linear"]
BASE = make_plan("unipc", VP, nfe=4, spacing="time", t_end=0.1)
X = normal(2, 4, seed=1)


def told(plan: Plan, shift: float = 0.01, second: float | None = None) -> Plan:
    rows = [
        replace(row, node=row.node._replace(told=row.node.t + shift, second=second))
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows))


def recorder(calls: list) -> Denoiser:
    def network(x: Tensor, *times: Tensor, **condition: Tensor) -> Tensor:
        assert all(t.shape == (len(x),) for t in times)
        calls.append(tuple(t[0].item() for t in times))
        return 0.1 * x

    return Denoiser(network, VP, network_time=lambda t: 1000 * t)


def test_the_network_is_told_and_the_solver_keeps_its_nodes():
    calls: list = []
    sample(recorder(calls), X, told(BASE))
    assert [t for (t,) in calls] == pytest.approx([1000 * (t + 0.01) for t in BASE.times])
    calls.clear()
    sample(recorder(calls), X, told(BASE, second=0.3))
    assert calls == [(pytest.approx(1000 * (t + 0.01)), pytest.approx(300)) for t in BASE.times]


def test_a_told_time_is_that_of_another_network():
    """To tell a network t + d is to run network(x, t + d), thresholded too."""
    exact = exact_denoiser(GAUSSIAN, VP).network
    for threshold in (None, lambda x0: x0.clamp(-1, 1)):
        ours = Denoiser(exact, VP, threshold=threshold, network_time=lambda t: t)
        theirs = Denoiser(exact, VP, threshold=threshold, network_time=lambda t: t + 0.01)
        result, expected = sample(ours, X, told(BASE)), sample(theirs, X, BASE)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_guidance_and_plain_functions_are_told_both():
    calls: list = []

    def network(x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        calls.append((len(x), t[-1].item(), r[-1].item()))
        return 0.1 * x

    guided = ClassifierFree(2.0, {"y": torch.zeros(2)}, {"y": torch.ones(2)})
    denoise = Denoiser(network, VP, guidance=guided, network_time=lambda t: t)
    sample(denoise, X, told(BASE, second=0.3))
    assert {call[0] for call in calls} == {4} and {call[2] for call in calls} == {0.3}
    seen = []
    sample(lambda x, *times: seen.append(times) or 0.1 * x, X, told(BASE, second=0.3))
    assert seen == [(pytest.approx(t + 0.01), 0.3) for t in BASE.times]


@pytest.mark.parametrize("kind", ["network", "threshold", "function"])
def test_all_rows_at_once_are_told_what_one_after_another_is(kind):
    exact = exact_denoiser(GAUSSIAN, VP).network
    threshold = (lambda x0: x0.clamp(-1, 1)) if kind == "threshold" else None
    denoise = Denoiser(exact, VP, threshold=threshold, network_time=lambda t: t)
    if kind == "function":
        inner = denoise

        def denoise(x: Tensor, t: float) -> Tensor:
            return inner(x, t)

    plan = told(BASE, 0.03)
    one = sample(denoise, X, plan)
    together, _ = sample_parallel(denoise, X, plan)
    torch.testing.assert_close(together, one, rtol=1e-10, atol=1e-10)
    plain, _ = sample_parallel(denoise, X, BASE)
    assert (plain - together).abs().max() > 1e-4  # which the shift does change


def test_batches_and_pipelines_refuse_second_times():
    with pytest.raises(ValueError, match="plan: second times that a node tells the network"):
        sample_parallel(recorder([]), X, told(BASE, second=0.3))
    plan = told(make_plan("unipc", FlowMatching(), nfe=4), second=0.3)
    with pytest.raises(ValueError, match="plan=.* tells the network a second time"):
        PlanScheduler(plan=plan, prediction_type="flow_prediction", use_flow_sigmas=True)


def test_a_table_shows_them():
    assert "told" not in str(BASE).splitlines()[1]
    assert f"{BASE.times[0] + 0.01:.6g}" in str(told(BASE)).splitlines()[2]


def test_files_keep_them_and_clocks_and_moments(tmp_path):
    rows = list(told(make_plan("ddim", VP, nfe=3, eta=1.0), second=0.2).rows)
    (term,) = rows[1].noise
    rows[1] = replace(rows[1], noise=(Noise(term.scale, 0.1, 0.7, "sigma2", 1),))
    plan = Plan(tuple(rows))
    plan.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan").rows == plan.rows


def test_files_of_the_first_format_still_load(tmp_path):
    """Nodes of three numbers and noise of three: what was written before there was more."""
    made = make_plan("ddim", VP, nfe=3, eta=1.0)
    over_lambda = [
        tuple(Noise(term.scale, term.lam_from, term.lam_to) for term in row.noise)
        for row in made.rows
    ]
    rows = zip(made.rows, over_lambda, strict=True)
    plan = Plan(tuple(replace(row, noise=noise) for row, noise in rows))
    plan.save(tmp_path / "plan")
    with safe_open(tmp_path / "plan", framework="pt") as file:
        body = json.loads(file.metadata()["plan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert body["format"] == "logsnr-plan-1"
    assert {len(row["node"]) for row in body["rows"]} == {3}
    assert {len(term) for row in body["rows"] for term in row["noise"]} == {3}
    save_file(tensors, tmp_path / "old", metadata={"plan": json.dumps(body)})
    assert Plan.load(tmp_path / "old").rows == plan.rows


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Noise(0.1, 0.5, 0.5), "row 1: .*start and end apart"),
        (Noise(0.1, 0.5, float("nan")), "row 1: .*start and end apart"),
        (Noise(0.1, 0.5, 0.7, ""), "row 1: clock=''"),
        (Noise(0.1, 0.5, 0.7, "lambda", 2), "row 1: moment=2"),
    ],
)
def test_malformed_noise_is_refused_by_row(term, message):
    rows = list(make_plan("ddim", VP, nfe=3, eta=1.0).rows)
    rows[1] = replace(rows[1], noise=(term,))
    with pytest.raises(ValueError, match=message):
        Plan(tuple(rows), consistent=False)
