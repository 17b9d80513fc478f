"""``logsnr nfe --fit``: the location of the grid, fitted through the pipeline's own loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_nfe import run, saved

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.harness import records as results
from logsnr.benchmarks.harness.contenders import parse_contender
from logsnr.benchmarks.harness.files import load_tensor
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.harness.study import Study
from logsnr.benchmarks.harness.subjects import pipeline as pipelines
from logsnr.benchmarks.harness.subjects.opening import open_pipeline
from logsnr.benchmarks.harness.subjects.pipeline import PipelineSubject, run_pipeline_once
from logsnr.benchmarks.studies.nfe import measure_all
from logsnr.benchmarks.studies.nfe_findings import Findings
from logsnr.benchmarks.studies.nfe_fit import fit_study, fitted, rule_of
from logsnr.solvers import DiscreteVP, default_location
from logsnr.solvers.location_fit import LOCATIONS, lowest

SHORT = ["--nfe=3", "--seeds=5", "--reference-nfe=10,9", "--solvers=unipc", "--fit"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, str]:
    return saved("sd", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(model) -> PipelineSubject:
    folder, arguments = model
    return open_pipeline(str(folder), call_args=json.loads(arguments))


@pytest.fixture(scope="module")
def fitted_once(model, tmp_path_factory) -> tuple[list[str], Path, dict[str, Any]]:
    """The command's arguments, its folder, and what it printed."""
    folder, arguments = model
    out = tmp_path_factory.mktemp("out")
    command = [f"--pipeline={folder}", f"--call-args={arguments}", *SHORT]
    result = run(*command, f"--out={out}", "--json")
    assert result.exit_code == 0, result.output
    return command, out, json.loads(result.stdout)


def test_the_command_fits_and_compares(fitted_once, subject, monkeypatch):
    command, out, found = fitted_once
    fit, location = found["fit"], found["fit"]["location"]
    rule = default_location(DiscreteVP(subject.pipe.scheduler.alphas_cumprod))
    assert fit["rule"] == pytest.approx(rule) and fit["tried"] == list(LOCATIONS)
    assert fit["evaluations"] == 6 * (6 + 8)
    vertex = lowest(fit["tried"], [math.log(error) for error in fit["errors"]])
    assert location == pytest.approx(vertex, abs=0.005)
    names = ["unipc", "PlanScheduler", f"PlanScheduler:location={location}"]
    assert [cell["contender"] for cell in found["cells"]] == names
    # The line is one that can be pasted.
    pasted = eval(fit["line"], {"PlanScheduler": PlanScheduler, "pipe": subject.pipe})
    assert pasted.config.location == location

    def no_network(*_):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(pipelines, "run_pipeline_once", no_network)
    again = run(*command, f"--out={out}")
    words = " ".join(again.output.split())
    assert again.exit_code == 0, again.output
    assert fit["line"] in words and f"the rule's is {rule:.2f}" in words
    assert fit["line"] in (out / "report.md").read_text()


def test_a_killed_fit_goes_on(fitted_once, tmp_path):
    command, out, first = fitted_once
    copytree(out, tmp_path, dirs_exist_ok=True)
    lines = (out / RECORDS).read_text().splitlines(keepends=True)
    (tmp_path / RECORDS).write_text("".join(lines[:-4]) + lines[-4][:40])
    again = run(*command, f"--out={tmp_path}", "--json")
    assert json.loads(again.stdout)["fit"] == first["fit"]
    assert len(results.load(tmp_path / RECORDS)) == len(results.load(out / RECORDS))


def test_the_errors_are_those_of_the_pipelines_runs(fitted_once, subject):
    _, out, found = fitted_once
    (exact,) = (
        load_tensor(out / record["files"][0])
        for record in results.load(out / RECORDS).values()
        if record["solver"] == "reference"
    )
    logs = []
    for n in (6, 8):
        scheduler = PlanScheduler.from_config(subject.pipe.scheduler.config, location=LOCATIONS[1])
        gap = run_pipeline_once(subject, scheduler, n, seed=5).x - exact
        logs.append(math.log(float(gap.double().square().mean().sqrt())))
    assert found["fit"]["errors"][1] == pytest.approx(math.exp(sum(logs) / 2), rel=1e-6)


@pytest.mark.parametrize("lost", [LOCATIONS[:4], LOCATIONS])
def test_runs_that_diverge_do_not_decide(tmp_path, subject, monkeypatch, lost):
    once = run_pipeline_once(
        subject, parse_contender("ddim").scheduler(subject.pipe.scheduler), 1, 0
    )

    def made_up(subject, scheduler, steps, *rest):
        location = scheduler.config.get("location")
        gap = math.nan if location in lost else 1 if location is None else 2 + location
        return replace(once, x=gap * torch.tensor([[1.0, 2.0]]), nfe_counted=steps)

    monkeypatch.setattr(pipelines, "run_pipeline_once", made_up)
    trial = fit_study(Study((parse_contender("unipc"),), (3,), (0,), (12, 10)), subject)
    records = tuple(measure_all(trial, subject, tmp_path))
    findings = Findings(trial, subject.about, records, tmp_path)
    if lost == LOCATIONS:
        with pytest.raises(ValueError, match="no run at any of the locations"):
            fitted(findings, subject)
    else:  # the error rises with the location
        assert fitted(findings, subject).location == LOCATIONS[4]


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    "config",
    [
        BETAS,
        {**BETAS, "sample_size": 16, "solver": "unipc"},
        FlowMatchEulerDiscreteScheduler(shift=1.0).config,
        FlowMatchEulerDiscreteScheduler(shift=3.0).config,
        PlanScheduler(location=0.25).config,
        PlanScheduler(sample_size=16).config,
    ],
)
def test_the_rules_location_is_that_of_the_scheduler(config):
    """The nodes of the default grid are those of the same location, given."""
    rule = rule_of(config)
    first, second = (PlanScheduler.from_config(config, **said) for said in ({}, {"location": rule}))
    first.set_timesteps(7)
    second.set_timesteps(7)
    torch.testing.assert_close(first.sigmas, second.sigmas)


def test_a_dynamic_shift_is_known_at_the_call_only():
    assert rule_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reference-nfe=8,7"], "fit: with 6 and 8 evaluations, reference_nfe=8,7"),
        (["--solvers=unipc:location=x"], "location='x': need a number"),
    ],
)
def test_what_cannot_be_fitted_is_said_before_the_network_is_called(
    monkeypatch, tmp_path, options, says
):
    def no_network(*_):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(pipelines, "run_pipeline_once", no_network)
    result = run("--nfe=2", "--seeds=0", "--fit", *options, f"--out={tmp_path}")
    assert result.exit_code == 2
    message = " ".join(result.output.replace("│", "").split())
    assert says.replace(" ", "") in message.replace(" ", "")


def test_a_pipeline_with_a_grid_of_its_own_is_told_so(subject, monkeypatch):
    own = PlanScheduler.from_config(subject.pipe.scheduler.config, timestep_spacing="karras")
    monkeypatch.setattr(subject.pipe, "scheduler", own)
    with pytest.raises(ValueError, match="fit: .*location=-1.2 belongs to spacing"):
        fit_study(Study((parse_contender("unipc"),)), subject)
