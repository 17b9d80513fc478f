"""``logsnr report``: rows against numpy, what is compared, gaps and damage, and the files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_cases import CONTENDERS, NFE, SEEDS, problem, write
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.harness.protocol import key_of
from logsnr.benchmarks.harness.records import append, record_file
from logsnr.benchmarks.reports.charts import Axis, Level, Line, Point, line_chart
from logsnr.benchmarks.reports.figures import against_nfe, front_rows
from logsnr.benchmarks.reports.gathered import disagreements, gather
from logsnr.benchmarks.reports.page import page
from logsnr.benchmarks.reports.quantities import quantity, short, with_spread
from logsnr.benchmarks.reports.rows import is_ours, tabulate
from logsnr.benchmarks.reports.samples import DARKEST, samples
from logsnr.benchmarks.reports.tables import wins
from logsnr.benchmarks.reports.written import write_report

RMSE = quantity("rmse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All contenders, three seeds."""
    path = tmp_path_factory.mktemp("records")
    write(path)
    return path


@pytest.fixture(scope="module")
def table(folder):
    (setting,) = gather([folder]).settings
    return tabulate(setting)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in record_file(folder).read_text().splitlines()]


def one(**changed) -> dict:
    """A record of a contender."""
    said = {"solver": "unipc", "options": {}, "nfe": 5, "seed": 0, "model": "m"}
    return {**said, "problem": problem(), "status": "ok", "rmse": 0.5, **changed}


def report(folder: Path, *records: dict, out: Path | None = None):
    for record in records:
        append(record_file(folder), record)
    return write_report([folder], out or folder)[0]


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


# Rows


def test_rows_have_the_mean_and_deviation_over_seeds(folder, table):
    assert len(table.rows) == len(CONTENDERS) * len(NFE)
    for row in table.rows:
        solver = (
            row.contender + "Scheduler"
            if row.contender + "Scheduler" in CONTENDERS
            else row.contender
        )
        found = [r for r in lines(folder) if r["solver"] == solver and r["nfe"] == row.nfe]
        assert row.seeds == SEEDS and len(found) == 3
        for key in ("rmse", "fid", "psnr"):
            values = [record[key] for record in found]
            assert row.values[key].mean == pytest.approx(np.mean(values))
            assert row.values[key].deviation == pytest.approx(np.std(values, ddof=1))
        each = [record["seconds"] / record["problem"]["samples"] for record in found]
        assert row.values["seconds"].mean == pytest.approx(np.mean(each))


def test_bookkeeping_is_no_quantity(table):
    keys = {quantity.key for quantity in table.quantities}
    assert keys == {"rmse", "rmse_median", "psnr", "fid", "seconds", "nfe_counted"}
    assert [q.key for q in table.qualities] == ["rmse", "rmse_median", "fid", "psnr"]
    assert table.real("fid").mean == 2.0 and table.reference("fid").count == 3


def test_the_best_is_the_best(table):
    for key in ("rmse", "psnr"):
        for win in wins(table, quantity(key)):
            rows = [row for row in table.rows if row.nfe == win.nfe]
            means = {row.contender: row.values[key].mean for row in rows}
            best = max(means, key=means.get) if key == "psnr" else min(means, key=means.get)
            assert win.best.contender == best
            assert win.other is not None and not table.ours[win.other.contender]
            for row in rows:
                if row is win.best:
                    continue
                both = [row.values[key], win.best.values[key]]
                error = np.hypot(*(s.deviation / np.sqrt(3) for s in both))
                near = abs(both[0].mean - both[1].mean) <= 2 * error
                assert near == (row in win.even)


def test_nobody_beats_the_pareto_front(table):
    front = front_rows(table, RMSE, "seconds")
    for row in table.rows:
        beaten = any(
            other.mean("seconds") <= row.mean("seconds") and other.mean("rmse") < row.mean("rmse")
            for other in table.rows
        )
        assert beaten or row in front
        assert not (beaten and row in front)


@pytest.mark.parametrize(
    ("solver", "ours"),
    [
        ("unipc", True),
        ("dpm-solver++", True),
        ("PlanScheduler", True),
        ("plans/tuned.safetensors", True),
        ("stock", False),
        ("stock-unipc-2", False),
        ("UniPCMultistepScheduler", False),
        ("k_diffusion.sampling.sample_heun", False),
    ],
)
def test_who_is_of_this_project(solver, ours):
    assert is_ours(solver) is ours


def test_contenders_are_told_apart_by_what_differs(tmp_path):
    (table,) = report(
        tmp_path,
        one(options={"order": 2, "spacing": "karras"}),
        one(options={"order": 3, "spacing": "karras"}),
        one(solver="ddim", options={"spacing": "karras"}),
        one(solver="UniPCMultistepScheduler"),
        one(solver="UniPCMultistepScheduler", options={"timestep_spacing": "trailing"}),
        one(solver="UniPCMultistepScheduler", options={"use_karras_sigmas": True}),
    )
    theirs = ("UniPCMultistep", "UniPCMultistep:trailing", "UniPCMultistep:karras")
    assert table.contenders == ("unipc:order=2", "unipc:order=3", "ddim", *theirs)
    assert table.options["ddim"] == {"solver": "ddim", "spacing": "karras"}
    assert "karras" in html_of(tmp_path)


# What is compared


def test_only_equal_protocols_are_compared(tmp_path):
    write(tmp_path / "a", contenders=["unipc"], pictures=False)
    write(tmp_path / "b", contenders=["ipndm"], pictures=False, guidance=2.0, extra={"deep": 1})
    found = gather([tmp_path / "a", tmp_path / "b"])
    assert [setting.letter for setting in found.settings] == ["A", "B"]
    assert dict(disagreements(found.settings)) == {
        "problem.guidance": ["1.0", "2.0"],
        "problem.extra.deep": ["absent", "1"],
    }
    tables = [tabulate(setting) for setting in found.settings]
    assert [table.contenders for table in tables] == [("unipc",), ("ipndm",)]
    html = page(found, tables)
    assert "Settings that are not compared" in html and "extra.deep" in html


def test_folders_of_one_protocol_stand_in_one_table(tmp_path):
    write(tmp_path / "a", contenders=["unipc"], pictures=False)
    write(tmp_path / "b", contenders=["unipc", "ipndm"], pictures=False)
    found = gather([tmp_path / "a", tmp_path / "b"])
    (setting,) = found.settings
    assert tabulate(setting).contenders == ("unipc", "ipndm")
    assert sum("the first is shown" in note for note in found.notes) == len(NFE) * 3 + 3


@pytest.mark.parametrize("named", [True, False])
def test_the_reference_of_a_setting_is_the_one_its_distances_are_taken_to(tmp_path, named):
    """Its evaluations are a part of the contenders' protocol, and not of its own."""
    reference = one(solver="reference", options={"evaluations": [200, 150]}, nfe=None, fid=2.0)
    other = reference | {"options": {"evaluations": [40, 30]}, "fid": 9.0}
    if not named:
        other["problem"] = problem(guidance=3.0)
    against = {"against": key_of(reference)} if named else {}
    ours = one(problem=problem(reference=[200, 150]), **against)
    (table,) = report(tmp_path, other, reference, ours, ours | {"nfe": 9})
    assert table.reference("fid").mean == 2.0


def test_a_reference_of_fewer_samples_is_no_measure_of_a_distribution(tmp_path):
    fewer = problem(samples=200, reference_samples=50)
    reference = one(solver="reference", nfe=None, problem=fewer, fid=30.0, error_bar=1e-3)
    (table,) = report(tmp_path, reference, one(problem=fewer, fid=5.0))
    assert table.reference("fid") is None and table.reference("error_bar").mean == 1e-3
    assert "The converged solution has" not in html_of(tmp_path)


def test_other_releases_are_said(tmp_path):
    report(tmp_path, one(versions={"torch": "2.1"}), one(seed=1, versions={"torch": "2.13"}))
    assert "different releases of torch" in html_of(tmp_path)
    assert "2.1 and 2.13" in (tmp_path / "report.md").read_text()


# Records of other people


def test_gaps_unknown_keys_and_failures(tmp_path):
    (table,) = report(
        tmp_path,
        one(fid=3.0, sharpness=0.25, problem=problem(lens="35 mm")),
        one(nfe=10, rmse=None, problem=problem(lens="35 mm")),
        one(solver="x", nfe=10, status="diverged", note="not finite", rmse=None,
            problem=problem(lens="35 mm")),
        one(solver="y", seed=1, problem=problem(lens="35 mm")),
    )  # fmt: skip
    html = html_of(tmp_path)
    assert "lens" in html and "35 mm" in html and "sharpness" in html
    assert table.row("unipc", 5).values["sharpness"].mean == 0.25
    assert table.row("unipc", 10).values == {} and table.row("x", 5) is None
    assert "Runs without samples" in html and "diverged (not finite)" in html
    assert "(1/2 seeds)" in html
    markdown = (tmp_path / "report.md").read_text()
    assert "| x | – | diverged |" in markdown and "35 mm" in markdown


def test_damaged_lines_are_named_and_the_rest_is_shown(tmp_path):
    write(tmp_path, contenders=["unipc"], pictures=False)
    with record_file(tmp_path).open("a") as file:
        file.write('{"half": \nnothing\n{"solver": "x"}\n')
    tables = report(tmp_path)
    assert tables[0].contenders == ("unipc",)
    html = html_of(tmp_path)
    assert "Left out" in html and html.count("is not a record") == 3


def test_names_are_text_and_no_markup(tmp_path):
    nasty = '<script>alert("1")</script>&'
    report(tmp_path, one(solver=nasty, model=nasty, note=nasty, problem={nasty: nasty}))
    html = html_of(tmp_path)
    assert html.count("<script>") == 1 and "&lt;script&gt;" in html


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "damaged", "references"])
def test_folders_without_records_are_errors(tmp_path, kind):
    folder = tmp_path / "records"
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "damaged":
        record_file(folder).write_text("nothing\n")
    if kind == "references":
        append(record_file(folder), one(solver="reference", nfe=None))
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())
    assert "records" in text
    words = {
        "missing": "need a folder with records",
        "file": "need a folder with records",
        "empty": "has no records",
        "damaged": "is not a record",
        "references": "no contender",
    }
    assert words[kind] in text


# Files


class Page(HTMLParser):
    """Elements that are opened and closed, and addresses."""

    void = {"meta", "link", "input", "img", "br", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_command_writes_everything(folder, tmp_path):
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    names = ["report.html", "report.md", "report.json", "quality.png", "samples.png"]
    for name in names:
        assert name in result.output.replace("\n", "") and (tmp_path / name).stat().st_size > 500
    parser = Page()
    parser.feed(html_of(tmp_path))
    assert parser.open == []
    assert all(address.startswith("data:") for address in parser.addresses)
    assert parser.tags.count("svg") > 8 and parser.tags.count("img") > 2 * len(CONTENDERS)
    assert "http" not in re.sub(r'src="[^"]*"', "", html_of(tmp_path))
    printed = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path), "--json"])
    rows = json.loads(printed.output)
    assert rows == json.loads((tmp_path / "report.json").read_text())
    assert len(rows) == len(CONTENDERS) * len(NFE)


def test_markdown_has_the_numbers_of_the_rows(folder, table, tmp_path):
    write_report([folder], tmp_path)
    text = (tmp_path / "report.md").read_text()
    for row in table.rows:
        value = row.values["rmse"]
        assert with_spread(value.mean, value.deviation) in text


def test_pictures_are_the_states_of_equal_starts(table):
    shown = samples(table)
    assert shown is not None and shown.seed == 0
    assert len(shown.strips) == len(table.rows)
    exact = np.asarray(shown.converged.convert("RGB")).astype(float)
    far = {}
    for strip in shown.strips:
        picture = np.asarray(strip.picture.convert("RGB")).astype(float)
        assert picture.shape == exact.shape and strip.error is not None
        far[strip.contender, strip.nfe] = np.abs(picture - exact).mean()
    assert far["DDIM", 4] > far["DDIM", 20] > 0
    bright = {s.nfe: np.asarray(s.error.convert("L")).mean() for s in shown.strips
              if s.contender == "unipc"}  # fmt: skip
    assert bright[4] > bright[10] > bright[20]
    assert 0 < DARKEST * shown.scale < shown.scale


def test_no_pictures_are_no_error(tmp_path):
    write(tmp_path, contenders=["unipc"], pictures=False)
    _, names = write_report([tmp_path], tmp_path)
    assert "samples.png" not in names and "Samples and error maps" not in html_of(tmp_path)


# Charts


def points(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    paths = [path.get("d") for path in root.iter("path") if path.get("class") == "line"]
    return [[tuple(map(float, p.split())) for p in d[1:].split("L")] for d in paths]


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_puts_points_where_they_belong(log):
    line = Line("a & b", [Point(2, 0.4, 0.1), Point(4, 0.2, 0.5), Point(16, 0.1)], 3, True)
    svg = line_chart("t", [line], x_title="x<", y_title="y", log_x=True, log_y=log,
                     levels=[Level("real", 0.05)], front=line.points)  # fmt: skip
    ((a, b, c),) = points(svg)
    # lower values lie lower, and equal ratios are equal lengths on a logarithmic axis
    assert a[1] < b[1] < c[1]
    assert (c[0] - b[0]) / (b[0] - a[0]) == pytest.approx(2, abs=0.02)
    ratio = (b[1] - a[1]) / (c[1] - b[1])
    assert ratio == pytest.approx(1 if log else 2, abs=0.03)


@pytest.mark.parametrize("values", [[1e-6, 3e-3], [0.2, 0.21], [4, 20], [-3, 5], [7, 7], [0, 0]])
@pytest.mark.parametrize("log", [False, True])
def test_axes_have_ticks_inside(values, log):
    axis = Axis(values, 0.0, 100.0, log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12 or values[0] == values[1]
    assert all(0 <= axis(tick) <= 100 for tick in ticks)
    assert 0 <= axis(min(values)) <= axis(max(values)) <= 100


def test_charts_say_what_they_are_held_against(table):
    figure = against_nfe(table, quantity("fid"), {name: 0 for name in table.contenders})
    assert [level.text for level in figure.levels] == ["converged solution", "real against real"]
    assert "real against real" in figure.svg
    assert "nothing to draw" in line_chart("", [], x_title="", y_title="", log_x=True, log_y=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (123.4, "123"), (2.0, "2"), (0.0, "0"), (1e-7, "1.00e-07"),
     (None, "–"), (float("inf"), "–"), (9.9999, "10"), (99.96, "100"), (0.099996, "0.100"),
     (1234.5, "1234")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert short(value) == text


def test_the_spread_decides_the_digits():
    assert with_spread(0.012345, 0.00123) == "0.0123 ± 0.0012"
    assert with_spread(17.26, 2.31) == "17.3 ± 2.3"
    assert with_spread(5.5, None) == "5.50"
