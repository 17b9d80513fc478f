"""The command line as a whole: how commands fail, what is kept, what is listed."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module

import pytest
from places import DATA
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import COMMANDS, app
from logsnr.benchmarks.cli import command_line
from logsnr.benchmarks.cli.order import current_folder
from logsnr.benchmarks.harness import sampling
from logsnr.benchmarks.harness.records import load
from logsnr.benchmarks.harness.subjects import pipeline as pipelines
from logsnr.benchmarks.studies import demo, parallel_runs
from logsnr.benchmarks.studies.demo import Settings, compare
from logsnr.solvers import SOLVERS, VPLinear, make_plan

TIMES = ("seconds", "written")
CHEAP = {
    "demo": ["--samples=2", "--nfe=3", "--solvers=ddim"],
    "nfe": ["--nfe=2", "--seeds=0", "--reference-nfe=5,4", "--solvers=unipc", "--prompt=3"],
    "parallel": ["--problem=mixture", "--solvers=ddim", "--steps=4", "--modes=ours"],
    "ems": ["--nodes=4", "--samples=2", "--granularity=scalar", "--jacobian=difference"],
    "overhead": ["--shape=1x2x4x4", "--runs=1"],
    "order": ["--solver=ddim"],
}


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), prog_name="logsnr")


def said(result) -> str:
    """What a command printed, whatever box it stands in."""
    return " ".join(result.output.replace("│", "").split())


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(demo, "FINE", (6, 3))


# Options


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    asked = {
        "bash": {"COMP_WORDS": "logsnr de", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "logsnr de"},
        "fish": {"_TYPER_COMPLETE_ARGS": "logsnr de", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {"_LOGSNR_COMPLETE": f"complete_{shell}", **asked}
    result = CliRunner().invoke(app, [], prog_name="logsnr", env=environment)
    assert "demo" in result.output and "order" not in result.output


# Failures


@pytest.mark.parametrize("command", [name for name in COMMANDS if name in CHEAP])
@pytest.mark.parametrize("where", ["/proc/x", "under a file"])
def test_an_output_that_cannot_be_written_is_refused_at_once(command, where, tmp_path, monkeypatch):
    def no_work(*_, **__):
        raise AssertionError("work was begun")

    for module, name in (
        (demo, "load_subject"),
        (pipelines, "run_pipeline_once"),
        (parallel_runs, "load_start"),
        (import_module("logsnr.benchmarks.studies.ems"), "estimate"),
        (import_module("logsnr.benchmarks.studies.overhead"), "measure"),
        (import_module("logsnr.benchmarks.studies.orders"), "measure"),
    ):
        monkeypatch.setattr(module, name, no_work)
    out = where
    if where == "under a file":
        (tmp_path / "file").touch()
        out = str(tmp_path / "file" / "x")
    result = run(command, *CHEAP[command], f"--out={out}")
    assert result.exit_code == 2, result.output
    assert "--out" in said(result) and "cannot be written" in said(result)
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("command", ["demo", "nfe", "parallel"])
@pytest.mark.parametrize(
    "line",
    ["{", "7", '{"solver": 3}', "\udcff", '{"solver": 1, "options": 2, "nfe": 3, "seed": 4}'],
)
def test_a_damaged_record_is_one_line(command, line, tmp_path):
    (tmp_path / "records.jsonl").write_text(f"{line}\n", errors="surrogateescape")
    result = run(command, *CHEAP[command], f"--out={tmp_path}")
    assert result.exit_code == 1
    (error,) = result.stderr.splitlines()
    assert error.startswith("Error: ") and "records.jsonl, line 1 is not a record" in error


@pytest.mark.parametrize("command", ["demo", "nfe", "parallel"])
def test_a_damaged_tensor_is_one_line_that_names_the_file(command, tmp_path):
    assert run(command, *CHEAP[command], f"--out={tmp_path}").exit_code == 0
    kept = [name for r in load(tmp_path / "records.jsonl").values() for name in r["files"]]
    (tmp_path / kept[0]).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    result = run(command, *CHEAP[command], f"--out={tmp_path}")
    assert result.exit_code == 1 and kept[0] in said(result) and "is damaged" in said(result)
    (tmp_path / kept[0]).unlink()
    assert run(command, *CHEAP[command], f"--out={tmp_path}").exit_code == 0


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    """The folder of a finished estimation."""
    folder = tmp_path_factory.mktemp("estimated")
    assert run("ems", *CHEAP["ems"], f"--out={folder}").exit_code == 0
    return folder


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"{}\n"])
@pytest.mark.parametrize("name", ["journal", "settings.json", "group.f64", "total.f64"])
def test_a_damaged_checkpoint_is_named(name, content, tmp_path, estimated):
    shutil.copytree(estimated, tmp_path, dirs_exist_ok=True)
    file = min(tmp_path.rglob(name), key=lambda path: len(path.parts))  # the check has its own
    file.write_bytes(content)
    result = run("ems", *CHEAP["ems"], f"--out={tmp_path}")
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit)
    assert "checkpoint" in said(result)
    assert str(file).replace("/", "") in said(result).replace(" ", "").replace("/", "") or (
        "not of this version" in said(result)
    )


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.png", "a.jpg", "a.tiff"])
@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\x89PNG\r\n\x1a\n\0\0", b"\x93NUMPY\1"])
def test_data_that_cannot_be_read_are_named(name, content, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / name).write_bytes(content)
    given = data / name if name.endswith(("npy", "safetensors")) else data
    result = run("ems", "--prompt=4", *CHEAP["ems"], f"--data={given}", f"--out={tmp_path / 'o'}")
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert "--data" in said(result) and "cannot be read" in said(result)


@pytest.mark.parametrize("name", ["model.json", "problems.npz", "deis.json", "deis.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage\n", b"[1]"])
def test_a_damaged_reference_case_is_named(name, content, tmp_path):
    for kept in ("model.json", "problems.npz", "deis.json", "deis.npz"):
        (tmp_path / kept).write_bytes((DATA / kept).read_bytes())
    (tmp_path / name).write_bytes(content)
    result = run("conformance", str(tmp_path))
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert name in said(result).replace(" ", "")


@pytest.mark.parametrize("command", ["demo", "nfe", "parallel", "ems", "overhead", "order"])
def test_an_interruption_says_what_is_kept(command, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    for module, name in (
        (sampling, "sample"),
        (pipelines, "run_pipeline_once"),
        (parallel_runs, "sample"),
        (import_module("logsnr.benchmarks.studies.ems"), "estimate_ems"),
        (import_module("logsnr.benchmarks.studies.overhead"), "measure"),
        (import_module("logsnr.benchmarks.studies.orders"), "measure"),
    ):
        monkeypatch.setattr(module, name, stop)
    folder = command in ("demo", "nfe", "parallel", "ems")
    out = tmp_path / "results" if folder else tmp_path / "file"
    result = run(command, *CHEAP[command], f"--out={out}")
    assert result.exit_code == 130
    kept = f"kept in {out}; the same command goes on" if folder else "nothing is kept"
    assert kept in said(result)


def test_a_killed_demo_keeps_the_parts_of_its_reference(tmp_path, monkeypatch):
    """Two portions of starts, each solved twice; the kill comes in each of the four."""
    monkeypatch.setattr(demo, "BATCH", 2)
    settings = Settings(samples=3, nfe=(3,), solvers=("ddim",))
    whole = list(compare(settings, tmp_path / "whole"))
    evaluations = 2 * sum(demo.FINE)
    calls = 0
    for _ in range(4):
        here = 0

        def watch(job, amount):
            nonlocal calls, here
            calls, here = calls + 1, here + 1
            if here == 7 and calls < evaluations:  # in the second part of a start
                raise KeyboardInterrupt

        try:
            rest = list(compare(settings, tmp_path / "killed", watch))
        except KeyboardInterrupt:
            continue
    assert [r["nfe_counted"] for r in rest] == [r["nfe_counted"] for r in whole]
    for one, other in zip(rest, whole, strict=True):
        timeless = ({k: v for k, v in r.items() if k not in TIMES} for r in (one, other))
        assert next(timeless) == next(timeless)
    assert calls < 2 * evaluations
    assert not (tmp_path / "killed" / "reference").exists()


# nfe


def test_a_contender_that_the_pipeline_cannot_drive_ends_nfe_before_the_reference(
    tmp_path, monkeypatch
):
    """DDPMPipeline hands a generator to ``step``, which stock UniPC refuses."""
    seen = []
    original = pipelines.run_pipeline_once

    def noted(subject, scheduler, steps, *rest):
        seen.append((type(scheduler).__name__, steps))
        return original(subject, scheduler, steps, *rest)

    monkeypatch.setattr(pipelines, "run_pipeline_once", noted)
    arguments = ["nfe", "--prompt=3", "--nfe=2,3", "--seeds=0,1", "--reference-nfe=6,5"]
    result = run(*arguments, "--solvers=unipc,UniPCMultistep", f"--out={tmp_path}")
    assert result.exit_code == 1
    assert "UniPCMultistep (TypeError" in said(result) and "leave it out" in said(result)
    assert seen == [("PlanScheduler", 2), ("UniPCMultistepScheduler", 2)]
    seen.clear()
    assert run(*arguments, "--solvers=unipc", f"--out={tmp_path}").exit_code == 0
    assert ("PlanScheduler", 2) in seen and len(seen) == 2 * (2 + 2) - 1  # the trial was kept


def test_nfe_fails_if_a_later_run_failed(tmp_path, monkeypatch):
    original = pipelines.run_pipeline_once

    def broken(subject, scheduler, steps, *rest):
        if steps == 3:
            raise RuntimeError("out of memory")
        return original(subject, scheduler, steps, *rest)

    monkeypatch.setattr(pipelines, "run_pipeline_once", broken)
    arguments = ["--prompt=3", "--nfe=2,3", "--seeds=0", "--reference-nfe=6,5", "--solvers=unipc"]
    result = run("nfe", *arguments, f"--out={tmp_path}")
    assert result.exit_code == 1 and "failed at 3 NFE: RuntimeError: out of memory" in said(result)


# order


OWN = """
from logsnr.solvers import SOLVERS

def mine(grid, nfe=None, *, order=2):
    return SOLVERS["unipc"].build(grid, nfe, order=order, lower_order_final=False)
"""


def test_order_finds_a_function_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_solver_here.py").write_text(OWN)
    before = list(sys.path)
    result = run("order", "--solver=my_solver_here:mine", "--set=order=1", "--json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert entry["solver"] == "my_solver_here:mine" and entry["options"] == {"order": 1}
    assert sys.path == before
    missing = run("order", "--solver=my_solver_here:yours")
    assert missing.exit_code == 2 and "yours" in said(missing)
    with current_folder():
        assert sys.path[0] == ""


def test_order_takes_options_for_one_solver():
    arguments = ["--solver=unipc", "--solver=ddim", "--set=unipc:order=1", "--json"]
    result = run("order", *arguments)
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert first["options"]["order"] == 1 and "order" not in second["options"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--solver=ddim", "--solver=unipcc"], "did you mean 'unipc'"),
        (["--solver=ddim", "--solver=unipc", "--set=unipc:order=99"], "order=99"),
        (["--solver=ddim", "--set=unipc:order=2"], "set='unipc': choose a solver of ddim"),
        (["--solver=ddim", "--set=order=2"], "order=2 is not an option of 'ddim'"),
        (["--solver=ddim", "--grid=karras"], "grid='karras'"),
        (["--solver=nosuchmodule:mine"], "nosuchmodule"),
    ],
)
def test_order_checks_everything_before_it_measures(arguments, says, monkeypatch):
    def no_work(*_, **__):
        raise AssertionError("a solver was measured")

    monkeypatch.setattr(import_module("logsnr.benchmarks.studies.orders"), "measure", no_work)
    result = run("order", *arguments)
    assert result.exit_code == 2, result.output
    assert says in said(result)


# solvers


def test_the_list_of_solvers_is_the_registry():
    listed = json.loads(run("solvers", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(SOLVERS)
    schedule = VPLinear()
    for entry in listed:
        name = entry["name"]
        assert entry["when"] and entry["title"]
        for alias in entry["aliases"]:
            assert make_plan(alias, schedule, nfe=24).solver == name
        if "order" in SOLVERS[name].defaults:
            for order in entry["orders"]:
                assert make_plan(name, schedule, nfe=24, order=order).nfe == 24
            with pytest.raises(ValueError, match="order="):
                make_plan(name, schedule, nfe=24, order=entry["orders"][-1] + 1)
    table = said(run("solvers"))
    assert all(name in table for name in SOLVERS)


# Progress


def test_progress_without_a_terminal_is_lines_with_the_total_and_the_time_left(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(command_line.time, "monotonic", lambda: now)
    with command_line.progress(100, "evaluations") as update:
        for done in range(1, 101):
            now += 1.0
            update(done, f"part {done}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "10 of 100 evaluations, 0:00:10, 0:01:40 left: part 10"
    assert lines[-1] == "100 of 100 evaluations, 0:01:40, 0:00:00 left: part 100"
    assert len(lines) == 10


def test_what_was_kept_costs_no_time(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(command_line.time, "monotonic", lambda: now)
    with command_line.progress(100, "runs") as update:
        update(90, "kept")
        now = 20.0
        update(95, "made")
    assert "0:00:20 left" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "nfe", "parallel", "ems", "order", "overhead"])
def test_a_command_says_the_total_on_standard_error(command, tmp_path):
    out = [] if command in ("order", "overhead") else [f"--out={tmp_path}"]
    result = run(command, *CHEAP[command], *out, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    last = result.stderr.splitlines()[-1]
    done, of, total, *_ = last.split()
    assert (of, done) == ("of", total) and "\x1b" not in result.stderr


def test_the_methods_of_the_demo_have_any_case(tmp_path):
    out = f"--out={tmp_path}"
    result = run("demo", "--samples=2", "--nfe=3", "--solvers=DDIM,DPM++_2M", out, "--json")
    assert result.exit_code == 0, result.output
    assert [r["solver"] for r in json.loads(result.stdout)[1:]] == ["ddim", "dpm++2m"]
    wrong = run("demo", "--solvers=unipc3s", out)
    assert wrong.exit_code == 2 and "did you mean" in said(wrong)
