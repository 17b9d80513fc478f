"""The comparison of solvers on the embedded model, and the command line around it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import COMMANDS, app
from logsnr.benchmarks.embedded import DIGITS, EmbeddedModel
from logsnr.benchmarks.harness import records as results
from logsnr.benchmarks.harness.comparison import kept_states
from logsnr.benchmarks.harness.contenders import Contender, parse_contender
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.harness.study import REFERENCE
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.benchmarks.metrics import distances as metrics
from logsnr.benchmarks.reports.demo_page import ERROR_PLOT, PICTURES, REPORT, markdown, write_report
from logsnr.benchmarks.reports.demo_pictures import error_plot, few, picture_grid
from logsnr.benchmarks.studies import demo
from logsnr.benchmarks.studies.demo import Settings, compare
from logsnr.benchmarks.studies.demo_methods import LINEUPS
from logsnr.solvers import reference_solution

NFE = (5, 10, 20)
METHODS = LINEUPS["digits"].methods
HIGHLIGHTS, SHOWN = LINEUPS["digits"].highlights, LINEUPS["digits"].shown


@pytest.fixture
def cheap_reference(monkeypatch):
    """Few evaluations instead of hundreds, where a test is not about errors."""
    monkeypatch.setattr(demo, "FINE", (6, 3))


def without_time(record):
    return {key: value for key, value in record.items() if key not in ("seconds", "written")}


# diffusers' schedulers


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("DDIMScheduler", "ddim", {}),
        ("DPMSolverMultistepScheduler", "dpm-solver++", {"order": 2}),
        ("UniPCMultistepScheduler", "unipc", {"order": 2}),
    ],
)
def test_both_sides_share_network_start_and_end(name, solver, options, guidance):
    """On the same nodes a stock scheduler and our plan of its method give the same samples.

    diffusers' tables are float32, and at the start x0 has their rounding times sigma/alpha = 15.
    """
    subject = embedded_subject(DIGITS, guidance)
    ours, theirs = (
        subject.run(contender, 10, 0, range(3), lambda: None).x
        for contender in (
            Contender(solver, {"spacing": "trailing", **options}),
            Contender(name, {"timestep_spacing": "trailing"}),
        )
    )
    assert (ours - theirs).abs().max() < 1e-3
    assert (ours - subject.starts(0, range(3))).abs().max() > 1


def test_an_unknown_stock_scheduler_is_refused():
    with pytest.raises(ValueError, match="'PNDMMScheduler': choose some of"):
        parse_contender("PNDMMScheduler")


# The comparison


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All methods on three starts: (folder, settings, records)."""
    folder = tmp_path_factory.mktemp("everything")
    settings = Settings(model="digits", samples=3, nfe=NFE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "FINE", (300, 200))  # enough for errors above 2e-3
        return folder, settings, list(compare(settings, folder))


def test_the_converged_solution_is_that_of_an_independent_integrator():
    """torchdiffeq's dopri5, within the sum of both error bars."""
    subject = embedded_subject(DIGITS)
    fine, coarse = (subject.converged(nfe, 0, range(2), lambda: None).x for nfe in demo.FINE)
    denoise, x_T = subject.denoiser(range(2)), subject.starts(0, range(2))
    other, other_bar = reference_solution(denoise, x_T, subject.schedule, rtol=1e-5)
    bar = metrics.rmse(fine, coarse)
    assert bar < 2e-3
    assert metrics.rmse(fine, other) < bar + other_bar < 0.05


def test_every_run_is_recorded_with_its_counted_cost(everything):
    folder, settings, (reference, *records) = everything
    assert [(r["solver"], r["nfe"]) for r in records] == settings.runs
    assert len(settings.runs) == len(METHODS) * len(NFE) - 1  # there is no card for 20
    for entry in records:
        assert entry["status"] == "ok" and entry["nfe_counted"] == entry["nfe"]
        assert entry["seconds"] > 0 and entry["rmse"] > 0 and entry["fid"] > 0
        psnr = 20 * torch.log10(torch.tensor(2 / entry["rmse"])).item()
        assert entry["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert reference["solver"] == REFERENCE and reference["nfe_counted"] == 500
    assert 0 < reference["error_bar"] < min(r["rmse"] for r in records)
    assert list(results.load(folder / RECORDS).values()) == [reference, *records]


@pytest.mark.parametrize("name", METHODS)
def test_the_error_falls_with_nfe(everything, name):
    errors = [r["rmse"] for r in everything[2] if r["solver"] == name]
    assert len(errors) == len(everything[1].numbers(name)) >= 2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


def test_ours_is_no_worse_than_stock_at_10_evaluations(everything):
    at_10 = [r for r in everything[2] if r["nfe"] == 10]
    ours = min(r["rmse"] for r in at_10 if not METHODS[r["solver"]].stock)
    stock = min(r["rmse"] for r in at_10 if METHODS[r["solver"]].stock)
    assert ours <= stock


def test_the_report_shows_every_number(everything):
    folder, settings, records = everything
    page = write_report(folder, settings, records).read_text()
    for entry in records[1:]:
        assert f"{entry['rmse']:.4f}" in page and f"{entry['fid']:.2f}" in page
        assert f"| {METHODS[entry['solver']].title} |" in page
    for name in (ERROR_PLOT, PICTURES):
        assert f"]({name})" in page
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_faces_are_compared_in_colour(tmp_path):
    """What is shown when nothing is said: on faces, ours is nearer to the converged solution."""
    faces = LINEUPS["faces"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "FINE", (60, 40))
        settings = Settings(samples=8, nfe=(5, 10), solvers=faces.shown)
        records = list(compare(settings, tmp_path))
    at = {(r["solver"], r["nfe"]): r["rmse_median"] for r in records[1:]}
    assert at["pasted", 10] < at["stock-unipc-2", 10] < at["stock-euler", 10]
    write_report(tmp_path, settings, records)
    images = [a.get_images()[0].get_array() for a in picture_grid(tmp_path, settings, records).axes]
    assert images[0].shape == (16, 5 * 16, 3)
    assert {*faces.highlights, *faces.shown} <= set(faces.methods)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, cheap_reference):
    settings = Settings(
        model="digits", samples=4, nfe=(5,), solvers=("ddim", "unipc-2", "stock-ddim")
    )
    whole = list(compare(settings, tmp_path / "whole"))
    killed = compare(settings, tmp_path / "killed")
    first = [next(killed) for _ in range(3)]
    killed.close()
    path = tmp_path / "killed" / RECORDS
    path.write_text(path.read_text() + json.dumps(whole[3])[:40])
    (tmp_path / "killed" / first[1]["files"][0]).unlink()  # samples that were lost are made again
    called: list[str] = []

    def watch(job, amount):
        called.append(job.contender.text if job.contender else REFERENCE)

    rest = list(compare(settings, tmp_path / "killed", watch))
    assert called == ["ddim"] * 5 + ["stock-ddim"] * 5
    assert list(map(without_time, rest)) == list(map(without_time, whole))
    assert list(compare(settings, tmp_path / "killed", watch)) == rest
    assert len(called) == 10


@pytest.mark.parametrize(
    "change", [{"samples": 3}, {"nfe": (4,)}, {"seed": 1}, {"guidance": 2.0}], ids=str
)
def test_other_settings_are_measured_anew(tmp_path, cheap_reference, change):
    settings = Settings(model="digits", samples=2, nfe=(3,), solvers=("ddim",))
    first = list(compare(settings, tmp_path))
    called: list[str] = []

    def watch(job, amount):
        called.append(job.contender.text if job.contender else REFERENCE)

    second = list(compare(replace(settings, **change), tmp_path, watch))
    assert called.count("ddim") == second[1]["nfe_counted"] == second[1]["nfe"]
    assert second[1]["rmse"] != first[1]["rmse"]


@pytest.mark.parametrize("name", ["unipc-2", "stock-unipc-2"])
def test_a_diverged_run_is_recorded_and_reported(tmp_path, monkeypatch, cheap_reference, name):
    """The network is not a number at its 7th call, during the second run."""
    settings = Settings(model="digits", samples=2, nfe=(4, 5), solvers=("ddim", name))
    records = list(compare(replace(settings, solvers=("ddim",)), tmp_path))
    load_unet = EmbeddedModel.load_unet
    calls = 0

    def break_down(module, arguments, output):
        nonlocal calls
        calls += 1
        return output if calls < 7 else type(output)(sample=output.sample * float("nan"))

    def broken_unet(*arguments):
        unet = load_unet(*arguments)
        unet.register_forward_hook(break_down)
        return unet

    monkeypatch.setattr(EmbeddedModel, "load_unet", broken_unet)
    records = list(compare(settings, tmp_path))
    assert [r["status"] for r in records] == ["ok"] * 4 + ["diverged"]
    assert "not finite" in records[-1]["note"] and "rmse" not in records[-1]
    page = write_report(tmp_path, settings, records)
    assert page.read_text().count("diverged") == markdown(settings, records).count("diverged") == 6
    assert list(compare(settings, tmp_path)) == records


# The pictures


def test_few_methods_are_shown_and_all_that_were_asked_for_if_they_are_few():
    assert few(("ddim", "heun"), 3, HIGHLIGHTS) == ["ddim", "heun"]
    assert few(tuple(METHODS), len(HIGHLIGHTS), HIGHLIGHTS) == list(HIGHLIGHTS)
    assert few(tuple(METHODS), len(SHOWN), SHOWN) == list(SHOWN)
    assert few(("ddim", "heun", "unipc-3", "dpm++2m"), 3, HIGHLIGHTS)[0] == "unipc-3"
    assert len(HIGHLIGHTS) == 6 and {*HIGHLIGHTS, *SHOWN} <= set(METHODS)


def test_the_plot_has_six_lines_and_the_pictures_a_map_of_errors_for_each_cell(everything):
    folder, settings, records = everything
    assert len(error_plot(settings, records).axes[0].lines) == 6
    figure = picture_grid(folder, settings, records)
    at = {(r["solver"], r["nfe"]): r for r in records}
    truth = kept_states(folder, records[0])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 2 * (1 + 2 * len(SHOWN))
    for i, name in enumerate(SHOWN):
        for j, nfe in enumerate(settings.nfe[:2]):
            samples = kept_states(folder, at[name, nfe])
            picture, error = shown[2 + 4 * i + 2 * j : 4 + 4 * i + 2 * j]
            strip = torch.cat(list(samples[:, 0]), dim=1)
            np.testing.assert_array_equal(picture, strip)
            exact = torch.cat(list(truth[: len(samples), 0]), dim=1)
            np.testing.assert_allclose(error, (strip - exact).abs())


# The command line


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), prog_name="logsnr")


def test_the_command_writes_and_prints_its_results(tmp_path, cheap_reference):
    arguments = ["demo", "--model=digits", "--samples=4", "--nfe=10,5"]
    arguments += ["--solvers=unipc-2,stock-unipc-2-karras"]
    arguments += ["--seed=3", f"--out={tmp_path}"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "Best at 10 NFE: our UniPC-2, RMSE" in " ".join(result.output.split())
    for name in (REPORT, ERROR_PLOT, PICTURES, RECORDS):
        assert (tmp_path / name).exists() and name in result.output
    again = run(*arguments, "--json")
    records = json.loads(again.stdout)
    assert records == list(results.load(tmp_path / RECORDS).values())
    assert [r["nfe"] for r in records] == [None, 5, 10, 5, 10]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("model", "face", "choose one of faces, digits; did you mean 'faces'?"),
        ("samples", "1", "need at least 2"),
        ("samples", "many", "unable to parse"),
        ("nfe", "5,x", "need whole numbers"),
        ("nfe", "0", "need numbers in 1..1000"),
        ("nfe", "5,5", "need each entry once"),
        ("nfe", "2,5", "needs at least 3"),
        ("solvers", "ddim,euler", "'euler': choose some of ddim"),
        ("solvers", "ddim,ddim", "need each entry once"),
        ("seed", "-1", "need a whole number"),
        ("guidance", "nan", "need a finite number"),
        ("out", __file__, "need a folder"),
    ],
)
def test_a_bad_value_names_its_option(monkeypatch, option, value, says):
    def no_network(*_):
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(EmbeddedModel, "load_unet", no_network)
    result = run("demo", f"--{option}={value}")
    message = " ".join(result.output.replace("│", "").split())
    assert result.exit_code == 2
    assert f"--{option}" in message and says in message


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"logsnr {name}" in result.output


def test_the_overview_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from logsnr.benchmarks.__main__ import main\n"
        "sys.argv = ['logsnr', '--help']\n"
        "try: main()\n"
        "finally: print({'torch', 'diffusers', 'matplotlib'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert output.stdout.splitlines()[-1] == "set()"
    assert all(name in output.stdout for name in COMMANDS)
