"""``logsnr tune``: cards for networks and pipelines, kept, resumed, and run by the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from scheduler_cases import assert_close
from test_nfe import saved
from typer.testing import CliRunner

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.harness.files import load_tensor
from logsnr.benchmarks.harness.subjects.fitting import scales
from logsnr.benchmarks.harness.subjects.opening import open_pipeline
from logsnr.benchmarks.reports.tuning_plot import PLOT
from logsnr.benchmarks.studies import tuning
from logsnr.benchmarks.studies.tuning import WORK
from logsnr.benchmarks.studies.tuning_subjects import fitting_of
from logsnr.solvers import Cards, sample

SMALL = ("--starts=8", "--reference-nfe=10", "--batch-size=8", "--level=location")


def run(*arguments: str, out: Path):
    said = ["tune", *SMALL, *arguments, "--out", str(out)]
    return CliRunner().invoke(app, said, prog_name="logsnr")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("card-*.*")}


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_pipeline_is_fitted_and_runs_its_card(name, tmp_path):
    folder, call_args = saved(name, tmp_path / "pipeline")
    result = run("--pipeline", str(folder), "--nfe=3", "--call-args", call_args, "--json",
                 out=tmp_path / "cards")  # fmt: skip
    assert result.exit_code == 0, result.output
    (about,) = json.loads(result.stdout)
    assert about["nfe"] == 3 and about["before"]["count"] >= 1
    card = Cards.load(tmp_path / "cards")[3]
    with Image.open(tmp_path / "cards" / PLOT) as plot:
        assert min(plot.size) > 200
    subject = open_pipeline(str(folder), call_args=json.loads(call_args))
    pipe = subject.pipe
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler.config, plan=tmp_path / "cards")
    seeded = torch.Generator().manual_seed(0)
    call = {**subject.arguments, "output_type": "latent"}
    pipe(num_inference_steps=3, generator=seeded, **call)
    # The network is told what it was fitted with, fractions of training steps too.
    told = pipe.scheduler.timesteps.double()
    times = torch.tensor(card.plan.times, dtype=torch.float64)
    assert_close(told, 1000 * times if name == "flux" else 1000 * times - 1, 1e-6)
    assert tuple(card.model.event) == pipe.scheduler._runs.current.shape[1:]


def test_a_killed_run_goes_on_and_makes_the_same_cards(tmp_path, monkeypatch):
    """Killed among the converged solutions, and in the second fit."""
    monkeypatch.setattr(tuning, "SHARD", 3)
    arguments = ("--model=problem=six-gaussians", "--nfe=3,4")
    undisturbed = run(*arguments, out=tmp_path / "whole")
    assert undisturbed.exit_code == 0, undisturbed.output

    def killed(name: str, calls: int) -> None:
        whole, left = getattr(tuning, name), calls

        def cut(*given, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return whole(*given, **options)

        with monkeypatch.context() as patched:
            patched.setattr(tuning, name, cut)
            result = run(*arguments, out=tmp_path / "cut")
        assert result.exit_code == 130 and "goes on from there" in result.output

    killed("sample", 2)
    work = tmp_path / "cut" / WORK
    assert sorted(path.name for path in work.glob("*.safetensors")) == [
        "0-3.safetensors",
        "3-6.safetensors",
    ]
    killed("fit", 1)
    assert set(content(tmp_path / "cut")) == {"card-3.json", "card-3.safetensors"}
    # What is damaged is made again, and nothing else.
    (tmp_path / "cut" / "card-3.safetensors").write_bytes(b"half")
    (work / "3-6.safetensors").write_bytes(b"half")
    before = (work / "0-3.safetensors").stat().st_mtime_ns
    assert run(*arguments, out=tmp_path / "cut").exit_code == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert (work / "0-3.safetensors").stat().st_mtime_ns == before
    for path in (tmp_path / "whole" / WORK).glob("*.safetensors"):
        assert torch.equal(load_tensor(path), load_tensor(work / path.name))


def test_a_folder_of_another_model_is_refused_and_further_numbers_join(tmp_path):
    out = tmp_path / "cards"
    assert run("--model=problem=six-gaussians", "--nfe=3", out=out).exit_code == 0
    kept = content(out)
    other = run("--model=problem=six-gaussians:schedule=flow", "--nfe=3", out=out)
    assert other.exit_code == 1 and "something else" in other.output
    assert content(out) == kept
    assert run("--model=problem=six-gaussians", "--nfe=4", out=out).exit_code == 0
    assert list(Cards.load(out)) == [3, 4]
    # Levels that nodes alone make are lists for other programs, too.
    listed = [float(v) for v in (out / "sigmas-4.txt").read_text().split(",")]
    assert listed == pytest.approx(Cards.load(out)[4].sigmas(), rel=1e-8)


def test_a_range_of_guidance_gives_each_sample_a_scale_of_its_own():
    """A sample's solution is that of its scale alone, whatever the others' are."""
    with fitting_of((1.0, 7.0), model="digits") as fitted:
        indices = range(3)
        found = scales((1.0, 7.0), indices).tolist()
        assert fitted.model.guidance == (1, 7) and len(set(found)) == 3
        assert all(1 <= scale <= 7 for scale in found)
        x, plan = fitted.starts(5, indices), fitted.solution(10)
        together = sample(fitted.denoiser(indices), x, plan)
        for k, scale in enumerate(found):
            with fitting_of((scale, scale), model="digits") as one:
                alone = sample(one.denoiser([k]), one.starts(5, [k]), plan)
                assert_close(alone, together[k : k + 1], 1e-4)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--model=nonesuch",), "--model"),
        (("--model=faces", "--guidance-scale=7:1"), "--guidance-scale"),
        (("--model=problem=gaussian", "--guidance-scale=3"), "--guidance-scale"),
        (("--model=faces", "--pipeline=x"), "--model"),
        (("--pipeline=nowhere",), "--pipeline"),
        (("--pipeline=x", "--guidance-scale=1:7"), "--guidance-scale"),
        (("--model=faces", "--prompt=an owl"), "--prompt"),
        (("--model=faces", "--nfe=0"), "--nfe"),
        (("--model=faces", "--level=best"), "--level"),
        (("--model=faces", "--starts=2"), "--starts"),
    ],
)
def test_wrong_options_are_named_before_a_network_is_called(arguments, option, tmp_path):
    result = run(*arguments, out=tmp_path / "cards")
    assert result.exit_code == 2 and option in result.output, result.output
