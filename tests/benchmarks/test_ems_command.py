"""``logsnr ems``, its plot, and the statistics that ship with the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import normal
from PIL import Image
from test_nfe import saved
from typer.testing import CliRunner

from logsnr.adapters import noise_schedule
from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.cli.ems import print_verdict
from logsnr.benchmarks.embedded import DIGITS, EMS_FILE, EmbeddedModel, load_ems, load_unet
from logsnr.benchmarks.reports.ems_plot import FEW, PLOT, figure
from logsnr.benchmarks.studies.ems import CHECKPOINT, FILE
from logsnr.solvers import EMS, Verdict, make_plan

FEW_PROBES = (
    "--no-check",
    "--nodes=4",
    "--samples=8",
    "--granularity=scalar",
    "--jacobian=difference",
)


def run(*arguments: str):
    return CliRunner().invoke(app, ["ems", *arguments], prog_name="logsnr")


@pytest.fixture(scope="module")
def fours(tmp_path_factory) -> Path:
    """States for the embedded model; no digits, but nothing here depends on that."""
    path = tmp_path_factory.mktemp("data") / "fours.npy"
    np.save(path, normal(8, 1, 28, 28, dtype=torch.float32).clamp(-1, 1).numpy())
    return path


def test_the_command_writes_statistics_that_a_plan_takes_and_goes_on_after_a_kill(
    fours, tmp_path, monkeypatch
):
    calls, last = 0, None  # of the network; the one during which the process is killed

    def watched_unet(_, *where):
        def count(*_):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt

        unet = load_unet(*where)
        unet.register_forward_hook(count)
        return unet

    monkeypatch.setattr(EmbeddedModel, "load_unet", watched_unet)
    arguments = ["--prompt=4", f"--data={fours}", *FEW_PROBES]
    whole = run(*arguments, f"--out={tmp_path / 'whole'}", "--json")
    assert whole.exit_code == 0, whole.output
    undisturbed, calls, last = calls, 0, calls // 2
    said = json.loads(whole.stdout)
    found = EMS.load(tmp_path / "whole" / FILE)
    assert said["about"] == found.about
    assert found.about["prompt"] == "4" and found.about["model"] == "embedded"
    with Image.open(tmp_path / "whole" / PLOT) as picture:
        assert picture.width > 800
    plan = make_plan(
        "dpm-solver-v3", DIGITS.schedule, nfe=5, ems=tmp_path / "whole" / FILE, treatment="spline"
    )
    assert plan.nfe == 5
    torch.testing.assert_close(found.lam[-1].item(), DIGITS.schedule.lam(1e-3))

    arguments.append(f"--out={tmp_path / 'killed'}")
    assert run(*arguments).exit_code != 0
    assert not (tmp_path / "killed" / FILE).exists() and (tmp_path / "killed" / CHECKPOINT).exists()
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert "+-" in again.output and FILE in again.output and PLOT in again.output
    kept = EMS.load(tmp_path / "killed" / FILE)
    for name in ("lam", "l", "s", "b"):
        torch.testing.assert_close(getattr(kept, name), getattr(found, name), rtol=0, atol=0)
    assert undisturbed < calls < 1.3 * undisturbed  # a fingerprint, and what was in flight


def test_statistics_of_any_pipeline(tmp_path):
    folder, arguments = saved("sd", tmp_path / "sd")
    latents = tmp_path / "latents.npy"
    np.save(latents, normal(8, 4, 8, 8, dtype=torch.float32).numpy())
    out = tmp_path / "out"
    result = run(
        f"--pipeline={folder}",
        f"--call-args={arguments}",
        f"--data={latents}",
        f"--out={out}",
        "--nodes=4",
        "--samples=8",
        "--granularity=channel",
        "--no-check",
    )
    assert result.exit_code == 0, result.output
    found = EMS.load(out / FILE)
    assert found.event == (4, 1, 1) and found.about["class"] == "StableDiffusionPipeline"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    found.fits(noise_schedule(config), event=(4, 8, 8))


@pytest.mark.parametrize(
    ("options", "option", "says"),
    [
        (["--samples=0"], "samples", "samples=0: need a whole number of at least 1"),
        (["--nodes=2"], "nodes", "nodes=2: need a whole number of at least 4"),
        (["--granularity=pixel"], "granularity", "choose one of 'coordinate'"),
        (["--jacobian=exact"], "jacobian", "'exact': choose one of"),
        (["--samples=7", "--shrink"], "samples", "shrinking needs 8"),
        (["--prompt=fox"], "prompt", "the embedded model takes a digit"),
        (["--data=nowhere"], "prompt", "need the digit that they show"),
        (["--prompt=4", "--data=nowhere"], "data", "nowhere"),
        (["--height=64"], "call-args", "the embedded pipeline does not take them"),
        (["--call-args=[]"], "call-args", "need a JSON object"),
        (["--pipeline=no/where/else"], "pipeline", "no such folder"),
        ([f"--out={__file__}"], "out", "need a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_value_names_its_option_before_the_network_is_called(
    options, option, says, tmp_path, monkeypatch
):
    def no_call(module, *_):
        raise AssertionError("the network was called")

    def guarded(_, *where):
        unet = load_unet(*where)
        unet.register_forward_pre_hook(no_call)
        return unet

    monkeypatch.setattr(EmbeddedModel, "load_unet", guarded)
    result = run(f"--out={tmp_path / 'x'}", *options)
    message = "".join(result.output.replace("│", "").split())
    assert result.exit_code == 2, result.output
    assert f"--{option}" in message and says.replace(" ", "") in message


# The plot


@pytest.mark.parametrize("event", [(), (3, 1, 1), (1, 4, 4)])
def test_the_plot_shows_lines_or_quantiles(event):
    lam = torch.linspace(-2, 3, 9, dtype=torch.float64)
    values = {name: normal(9, *event, seed=k) for k, name in enumerate("lsb")}
    errors = {name: value.abs() / 10 for name, value in values.items()}
    drawing = figure(EMS(lam, **values, errors=errors))
    count = int(np.prod(event))
    for axes, name in zip(drawing.axes, "lsb", strict=True):
        flat = values[name].reshape(9, -1)
        lines = [line for line in axes.lines if len(line.get_xdata()) == 9]
        expected = flat.T if count <= FEW else torch.quantile(flat, 0.5, dim=1)[None]
        assert len(lines) == len(expected)
        for line, wanted in zip(lines, expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), wanted)
    assert figure(EMS(lam, **values)).axes  # without errors


def test_the_verdict_is_printed_with_what_a_plan_leaves_out(capsys):
    verdict = Verdict((5, 10), {2: (0.125, 0.25)}, {2: (0.5, 0.0625)}, starts=16)
    print_verdict(verdict)
    printed = capsys.readouterr().out
    assert "0.125 / 0.5 " in printed and "0.25 / 0.0625 *" in printed and "16 starts" in printed


# The statistics that ship


def test_the_committed_statistics_fit_the_embedded_model():
    ems = load_ems()
    assert EMS_FILE.stat().st_size < 500_000
    ems.fits(DIGITS.schedule, [DIGITS.schedule.lam(t) for t in (1.0, 1e-3)], (1, 28, 28))
    assert ems.errors.keys() == {"l", "s", "b"} and ems.about["samples"] >= 64
    # Checked: good at few evaluations, not at many (docs/ems.md).
    assert ems.verdict is not None and not ems.verdict.loses(3, 6) and ems.verdict.loses(3, 15)
    # Nearly linear in x where there is only noise, unlike that where the digit is clear.
    assert abs(ems.l[0].mean() - 1) < 0.02 and ems.l[-1].mean() < 0.8
