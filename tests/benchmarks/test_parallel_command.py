"""``logsnr parallel``: what it records is what happened, and a killed run loses nothing."""

from __future__ import annotations

import inspect
import json
import math
import shutil

import pytest
import torch
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.harness import records as results
from logsnr.benchmarks.harness.protocol import key_of
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.reports.parallel_page import PLOTS, REPORT
from logsnr.benchmarks.studies import parallel_runs
from logsnr.benchmarks.studies.parallel import MODES, Job, Settings, plan_of
from logsnr.benchmarks.studies.parallel_findings import (
    Findings,
    equal_error_rows,
    needed,
    run_tables,
    verdict,
)
from logsnr.benchmarks.studies.parallel_runs import SIZES, load_start, run_all
from logsnr.solvers import sample, sample_parallel
from logsnr.solvers.parallel.cost import predict

SMALL = Settings(
    problem="mixture",
    solvers=("unipc:order=3", "ddim:eta=1.0"),
    steps=(10,),
    tolerances=(0.1, 1e-2, 0.0),
    windows=(4, 10, 100, None),
    modes=tuple(MODES),
    dtype="float64",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, findings) of `SMALL`."""
    folder = tmp_path_factory.mktemp("small")
    return folder, Findings(SMALL, tuple(run_all(SMALL, folder)))


def test_the_modes_are_the_published_scheme_and_the_defaults():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(sample_parallel).parameters.items()
    }
    assert {name: defaults[name] for name in MODES["ours"]} == MODES["ours"]
    assert defaults["published"] is False
    assert MODES["published"] == {"update": "literal", "published": True}


def test_windows_of_all_rows_are_run_once():
    runs = [job for job in SMALL.jobs if job.solver == "ddim:eta=1.0"]
    assert runs[0] == Job("ddim:eta=1.0", 10)
    assert {job.window for job in runs[1:]} == {4, None}
    assert len(runs) == 1 + 2 * 3 * len(MODES)


def test_records_hold_what_the_sampler_did(small):
    subject = load_start(SMALL)
    for job, record in small[1].runs[::3]:
        plan = plan_of(job.solver, job.nfe)
        options = {"window": job.window, "tolerance": job.tolerance, **MODES[job.mode]}
        exact = sample(subject.denoise, subject.x_T, plan, noise=subject.noise)
        x, stats = sample_parallel(
            subject.denoise, subject.x_T, plan, noise=subject.noise, **options
        )
        off = (x - exact).norm(dim=1) / exact.norm(dim=1)
        assert record["error"] == pytest.approx(float(off.max()), rel=1e-6, abs=1e-14)
        assert record["errors"][-1] == record["error"]
        assert (record["sweeps"], record["evaluations"]) == (stats.sweeps, stats.evaluations)
        assert record["windows"] == [list(window) for window in stats.windows]
        assert record["residuals"] == pytest.approx(stats.residuals)
        throughput = small[1].throughput
        cost = predict(plan, job.window, job.tolerance, throughput=throughput, **MODES[job.mode])
        assert record["predicted"]["speedup"] == pytest.approx(cost.speedup)
        if job.tolerance == 0:
            assert record["error"] < 1e-12 and record["sweeps"] <= job.nfe
    assert {job.solver for job, _ in small[1].runs} == set(SMALL.solvers)


def test_a_killed_run_goes_on_where_it_stopped(small, tmp_path, monkeypatch):
    folder, findings = small
    lines = (folder / RECORDS).read_text().splitlines(keepends=True)
    shutil.copytree(folder / "shards", tmp_path / "shards")
    for lost in findings.records[-2:]:
        shutil.rmtree(tmp_path / "shards" / key_of(lost[1]))
    (tmp_path / RECORDS).write_text("".join(lines[:-2]) + lines[-2][:50])
    measured = []

    def counted(job, *rest):
        measured.append(job)
        return original(job, *rest)

    original = parallel_runs.parallel
    monkeypatch.setattr(parallel_runs, "parallel", counted)
    again = list(run_all(SMALL, tmp_path))
    assert measured == SMALL.jobs[-2:]
    assert again[:-2] == list(findings.records[:-2])
    for (_, new), (_, old) in zip(again[-2:], findings.records[-2:], strict=True):
        assert new["windows"] == old["windows"] and new["error"] == old["error"]
    assert len(results.load(tmp_path / RECORDS)) == len(lines)


def test_the_sample_of_the_sequential_run_is_made_again_if_it_is_lost(tmp_path):
    settings = Settings(problem="mixture", solvers=("ddim",), steps=(5,), modes=("ours",))
    first = list(run_all(settings, tmp_path))
    (tmp_path / first[1][1]["files"][0]).unlink()
    second = list(run_all(settings, tmp_path))
    assert (tmp_path / second[1][1]["files"][0]).exists()
    assert second[2:] == first[2:]


def curve(*points):
    return [{"error": error, "sweeps": s, "evaluations": 10 * s} for error, s in points]


def test_interpolation_is_exact_where_sweeps_are_linear_in_the_log_error():
    runs = curve(*((10.0**-k, 4 + 1.5 * k) for k in range(4)))
    for error in (0.5, 1e-1, 3e-3, 1e-3):
        sweeps = 4 - 1.5 * math.log10(error)
        assert needed(runs, error) == pytest.approx((sweeps, 10 * sweeps))


def test_nothing_is_said_beyond_the_tolerances_that_were_run():
    runs = curve((1e-1, 4), (1e-3, 6))
    assert needed(runs, 0.2) is None and needed(runs, 9e-4) is None
    assert needed(runs[:1], 1e-1) is None and needed([], 1e-1) is None


def test_an_error_that_rises_again_is_reached_at_the_later_crossing():
    runs = curve((1e-1, 4), (1e-3, 5), (1e-2, 6), (1e-4, 7))
    assert needed(runs, 10**-2.5) == pytest.approx((6.25, 62.5))


def test_the_comparison_at_equal_error_uses_all_tolerances_of_a_plan(small):
    head, *rows = equal_error_rows(small[1])
    assert head[:3] == ["plan", "error", "published"] and rows
    for row in rows:
        first, last = (tuple(map(float, row[i].split("/"))) for i in (2, 1 + len(MODES)))
        ratios = tuple(map(float, row[-1].split("/")))
        assert ratios == pytest.approx((last[0] / first[0], last[1] / first[1]), abs=0.06)


def with_times(sequential: float, parallel: float) -> Findings:
    """Findings of one plan whose runs took so long."""
    settings = Settings(steps=(10,), solvers=("ddim",), modes=("ours",), tolerances=(0.1,))
    alone, run = settings.jobs
    measured = {"status": "ok", "seconds": parallel, "sweeps": 5, "evaluations": 20, "error": 0.01}
    measured["predicted"] = {"sweeps": 6, "evaluations": 22, "speedup": 0.5}
    seconds = [0.01 * size for size in SIZES]
    throughput = {"options": {"sizes": list(SIZES)}, "seconds": seconds}
    records = [(None, throughput), (alone, {"seconds": sequential}), (run, measured)]
    return Findings(settings, tuple(records))


def test_it_says_that_sequential_would_be_faster_where_it_is():
    slow, fast = with_times(1.0, 2.0), with_times(1.0, 0.5)
    assert "Sequential would be faster here, in all 1 runs" in verdict(slow)[1]
    assert "2.00 times as long" in verdict(slow)[1]
    assert "Parallel was faster in all 1 runs; the best speed-up is 2.00" in verdict(fast)[1]
    assert "32.0 times as long as on one: batching is worth a factor of 1.0" in verdict(slow)[0]
    ((title, (_, row)),) = run_tables(slow)
    assert title == "ddim, N = 10, whole window; sequential 1 s"
    assert row == ["0.1", "ours", "5 (6)", "20 (22)", "1.0e-02", "2", "0.50 (0.50)"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["parallel", *map(str, arguments)])


def test_the_embedded_model_is_the_default_and_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_runs, "SIZES", (1, 2))
    few = ("--solvers", "ddim", "--steps", 8, "--tolerances", "0.3,0.01", "--batch", 1)
    few = (*few, "--windows", "4,all", "--out", tmp_path)
    done = invoke(*few)
    assert done.exit_code == 0, done.output
    assert "ddim, N = 8, window 4" in done.output and "factor of" in done.output
    for name in (REPORT, *PLOTS):
        assert (tmp_path / name).stat().st_size > 500
    again = invoke(*few, "--json")
    records = json.loads(again.stdout)
    assert [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()] == records
    *_, published, ours = (r["error"] for r in records if r["options"].get("tolerance") == 0.01)
    assert max(published, ours) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--solvers", "ddim:eta=1.0,stock"), "--solvers"),
        (("--steps", "10,ten"), "--steps"),
        (("--steps", "0"), "--steps"),
        (("--tolerances", "-1"), "--tolerances"),
        (("--windows", "0"), "--windows"),
        (("--modes", "newton"), "published, literal"),
        (("--problem", "spiral"), "embedded or mixture"),
        (("--device", "abacus"), "--device"),
        (("--batch", "0"), "--batch"),
    ],
)
def test_a_bad_option_is_named_before_anything_runs(arguments, message, tmp_path):
    done = invoke(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example():
    text = " ".join(invoke("--help").output.replace("│", " ").split())
    assert "Example: logsnr parallel" in text


def test_states_have_the_dtype_asked_for(tmp_path):
    settings = Settings(
        problem="mixture", solvers=("ddim",), steps=(6,), modes=("ours",), dtype="bfloat16"
    )
    assert load_start(settings).x_T.dtype == torch.bfloat16
    *_, (_, record) = run_all(settings, tmp_path)
    assert record["status"] == "ok" and record["error"] < 0.05
