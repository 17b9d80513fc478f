"""The harness: the same records bit for bit, however the work was cut, shared and killed."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from logsnr.benchmarks.embedded import DIGITS
from logsnr.benchmarks.harness.comparison import Comparison, kept_states
from logsnr.benchmarks.harness.contenders import Contender, parse_contender
from logsnr.benchmarks.harness.records import load, record_files
from logsnr.benchmarks.harness.runner import Runner
from logsnr.benchmarks.harness.study import Study, jobs
from logsnr.benchmarks.harness.subjects.analytic import analytic, six_gaussians
from logsnr.solvers import make_plan, reference_solution, sample

STUDY = Study(
    tuple(map(parse_contender, ("unipc:order=3:karras", "ddim:eta=1.0"))),
    nfe=(5, 8),
    seeds=(0, 3),
    reference_nfe=(24, 18),
    samples=7,
    shard=3,
    keep=2,
)
TIMES = ("seconds", "versions", "written")


@pytest.fixture(scope="module")
def subject():
    return analytic(six_gaussians(), DIGITS.schedule)


def measured(study, subject, folder, watch=None, ranks=None):
    comparison = Comparison(study, subject, folder, tolerant=False)
    return [record for _, record in Runner(comparison, folder, ranks).run(jobs(study), watch)]


def timeless(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


@pytest.fixture(scope="module")
def whole(subject, tmp_path_factory):
    """(folder, records) of the study, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, measured(STUDY, subject, folder)


def test_a_record_holds_the_protocol_and_what_was_measured(whole, subject):
    _, records = whole
    assert len(records) == 2 * (1 + 2 * 2)
    for record in records:
        assert record["model"] == "mixture" and record["status"] == "ok"
        assert record["problem"]["weights"] == subject.weights
        assert record["versions"]["torch"] and len(record["grid"]) in (5, 8, 24)
    assert [r["nfe_counted"] for r in records] == [r["nfe"] or 24 + 18 for r in records]
    assert all(("rmse" in r) is (r["solver"] == "unipc") for r in records)
    assert all(r["stochastic"] is (r["solver"] == "ddim") for r in records)


def test_distances_are_those_of_the_samples_run_by_hand(whole, subject):
    folder, records = whole
    for seed in STUDY.seeds:
        denoise, z = subject.denoiser(range(7)), subject.starts(seed, range(7))
        exact, bar = reference_solution(denoise, z, subject.schedule)
        truth, *runs = (r for r in records if r["seed"] == seed and r["solver"] != "ddim")
        torch.testing.assert_close(kept_states(folder, truth), exact, atol=0.03, rtol=0)
        assert 0 < truth["error_bar"] < 0.03
        for record in runs:
            plan = make_plan(
                "unipc", subject.schedule, nfe=record["nfe"], order=3, spacing="karras"
            )
            x = sample(denoise, z, plan)
            torch.testing.assert_close(kept_states(folder, record), x[:2], atol=1e-12, rtol=0)
            gap = (x - kept_states(folder, truth)).square().mean(1)
            assert record["rmse"] == pytest.approx(gap.mean().sqrt().item(), rel=1e-9)
            assert record["rmse_worst"] == pytest.approx(gap.max().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("stop", [0, 50, 200])
def test_a_killed_study_ends_with_the_same_records(whole, subject, tmp_path, stop):
    """Killed once while a network is called, then gone on with: no finished shard is redone."""
    calls = 0

    def watch(job, amount):
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(STUDY, subject, tmp_path, watch)
    assert timeless(measured(STUDY, subject, tmp_path, watch)) == timeless(whole[1])
    total = 3 * len(STUDY.seeds) * (24 + 18 + 2 * (5 + 8))
    assert total <= calls <= total + 24
    assert timeless(load(tmp_path).values()) == timeless(whole[1])


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, rank, barrier):
        self.rank, self.size, self._barrier = rank, barrier.parties, barrier

    def barrier(self, when):
        self._barrier.wait()

    def heed(self, when):
        pass


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_share_the_shards_and_end_with_the_same_records(whole, subject, tmp_path, size):
    barrier, found, calls = threading.Barrier(size, timeout=60), {}, [0] * size

    def work(rank):
        def watch(job, amount):
            calls[rank] += 1

        found[rank] = measured(STUDY, subject, tmp_path, watch, Threads(rank, barrier))

    threads = [threading.Thread(target=partial(work, rank)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == size
    for records in found.values():
        assert timeless(records) == timeless(whole[1])
    assert sum(calls) == 3 * len(STUDY.seeds) * (24 + 18 + 2 * (5 + 8)) and min(calls) > 0
    assert 1 < len(record_files(tmp_path)) <= size


def test_samples_do_not_depend_on_the_shard(whole, subject, tmp_path):
    other = measured(replace(STUDY, shard=7), subject, tmp_path)
    for one, two in zip(whole[1], other, strict=True):
        assert ("rmse" in one) is ("rmse" in two)
        if "rmse" in one:
            assert one["rmse"] == pytest.approx(two["rmse"], rel=1e-9)
        a, b = kept_states(whole[0], one), kept_states(tmp_path, two)
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_where_all_states_are_kept_another_reference_costs_only_itself(subject, tmp_path):
    study = replace(STUDY, keep=7, seeds=(0,))
    first = measured(study, subject, tmp_path)
    called = []
    finer = replace(study, reference_nfe=(40, 30))
    second = measured(finer, subject, tmp_path, lambda job, amount: called.append(job.contender))
    assert called == [None] * 3 * (40 + 30)
    assert second[1]["rmse"] != first[1]["rmse"]
    assert second[1]["rmse"] == pytest.approx(first[1]["rmse"], rel=0.1)


def test_lost_and_damaged_files(whole, subject, tmp_path):
    study = replace(STUDY, seeds=(0,))
    first = measured(study, subject, tmp_path)
    lost = tmp_path / first[2]["files"][1]
    lost.unlink()
    called = []
    again = measured(study, subject, tmp_path, lambda job, amount: called.append(job.nfe))
    assert called == [8] * 8 and timeless(again) == timeless(first)
    lost.write_bytes(lost.read_bytes()[:-9])
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(ValueError, match=f"{lost.name} is damaged"):
        measured(study, subject, tmp_path)


def euler(model, x, sigmas, extra_args=None, disable=None):
    """k-diffusion's interface: Euler's method."""
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * (x - model(x, sigma * x.new_ones(len(x)))) / sigma
    return x


def heun(model, x, sigmas, extra_args=None, disable=None):
    """The same with 2 n - 1 evaluations."""
    for k, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        one = x.new_ones(len(x))
        slope = (x - model(x, sigma * one)) / sigma
        new = x + (following - sigma) * slope
        if k < len(sigmas) - 2:
            second = (new - model(new, following * one)) / following
            new = x + (following - sigma) * (slope + second) / 2
        x = new
    return x


def test_every_kind_of_contender_runs_on_a_network(subject, tmp_path):
    path = tmp_path / "plan.safetensors"
    make_plan("unipc", DIGITS.schedule, nfe=9, order=3, spacing="karras").save(path)
    names = [
        f"{__name__}.euler",
        f"{__name__}.heun",
        str(path),
        "ddim:karras",
        "unipc:order=3:karras",
    ]
    study = Study(tuple(map(parse_contender, names)), (9,), (0,), (60, 50), samples=2)
    _, first, second, saved, ddim, unipc = measured(study, subject, tmp_path)
    assert [r["nfe_counted"] for r in (first, second, saved)] == [9, 9, 9]
    assert second["steps"] == 5 and first["steps"] == 9
    # Euler's method in sigma is DDIM, to the last interval's end.
    assert first["rmse"] == pytest.approx(ddim["rmse"], rel=0.2)
    assert saved["rmse"] == unipc["rmse"] < first["rmse"]
    assert json.loads(json.dumps(saved))["options"]["plan"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere.sampler", "nowhere.sampler' cannot be imported"),
        ("json.dumps", "need a function"),
        ("absent.safetensors", "no such file"),
    ],
)
def test_contenders_that_are_not_there(text, says):
    with pytest.raises(ValueError, match=says):
        parse_contender(text)


def test_what_a_network_cannot_take_is_said_beforehand(subject):
    for text in ("stock", "UniPCMultistep", "unipc:orders=3", "unipc:spacing=x"):
        with pytest.raises(ValueError, match="nfe=1: not possible for"):
            subject.check(parse_contender(text), 1)
    assert Contender("unipc", {}, "mine").text == "mine"
