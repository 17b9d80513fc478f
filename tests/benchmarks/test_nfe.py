"""``logsnr nfe``: schedulers on a user's pipeline against a converged solution."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import FAMILIES
from typer.testing import CliRunner

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.cli.command_line import numbers
from logsnr.benchmarks.harness import records as results
from logsnr.benchmarks.harness.comparison import check_study
from logsnr.benchmarks.harness.contenders import (
    REFERENCE_CONFIG,
    default_contenders,
    parse_contender,
    steps_for,
)
from logsnr.benchmarks.harness.records import RECORDS
from logsnr.benchmarks.harness.study import Study
from logsnr.benchmarks.harness.subjects import pipeline as pipelines
from logsnr.benchmarks.harness.subjects.opening import open_pipeline
from logsnr.benchmarks.harness.subjects.pipeline import (
    PipelineSubject,
    picture,
    run_pipeline_once,
    told_rounding,
)
from logsnr.benchmarks.reports.nfe_page import ERROR_PLOT, PICTURES, REPORT, write_findings
from logsnr.benchmarks.studies.nfe import measure_all
from logsnr.benchmarks.studies.nfe_findings import Findings

CHEAP = (9, 7)


def saved(name: str, folder: Path) -> tuple[Path, str]:
    """A tiny pipeline on disk, and the arguments of its call as JSON."""
    family = FAMILIES[name]
    family.build().save_pretrained(folder)
    arguments = {
        key: value.tolist() if isinstance(value, torch.Tensor) else value
        for key, value in family.arguments().items()
    }
    return folder, json.dumps(arguments)


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory) -> tuple[Path, str]:
    """Stable Diffusion: latents, a VAE, embeddings as arguments."""
    return saved("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def subject(latent_model) -> PipelineSubject:
    return opened(*latent_model)


def opened(folder: Path, arguments: str) -> PipelineSubject:
    return open_pipeline(str(folder), call_args=json.loads(arguments))


def study(*contenders: str, **changed) -> Study:
    options = {"nfe": (2, 4), "seeds": (0, 1), "reference_nfe": CHEAP}
    return Study(tuple(map(parse_contender, contenders)), **{**options, **changed})


def findings(study: Study, subject: PipelineSubject, folder: Path) -> Findings:
    return Findings(study, subject.about, tuple(measure_all(study, subject, folder)), folder)


def by_hand(subject: PipelineSubject, scheduler, steps: int, seed: int) -> torch.Tensor:
    """The latents as the pipeline itself returns them."""
    pipe = subject.pipe
    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        return pipe(
            **subject.arguments,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    finally:
        pipe.scheduler = own


def test_the_distance_is_that_of_the_pipelines_own_latents(subject, tmp_path):
    found = findings(study("unipc"), subject, tmp_path)
    config = subject.pipe.scheduler.config
    squares = {2: [], 4: [], "bar": []}
    for seed in (0, 1):
        exact, coarse = (
            by_hand(
                subject,
                PlanScheduler.from_config(config, solver="unipc", **REFERENCE_CONFIG),
                n,
                seed,
            )
            for n in CHEAP
        )
        squares["bar"].append((exact - coarse) ** 2)
        for n in (2, 4):
            x = by_hand(subject, PlanScheduler.from_config(config, solver="unipc"), n, seed)
            squares[n].append((x - exact) ** 2)
    expected = {key: float(torch.cat(value).mean().sqrt()) for key, value in squares.items()}
    assert found.error_bar == pytest.approx(expected["bar"], rel=1e-4)
    for n in (2, 4):
        cell = found.cells["unipc", n]
        assert cell.rmse == pytest.approx(expected[n], rel=1e-4) and cell.nfe_counted == n
        assert cell.psnr == pytest.approx(20 * np.log10(found.range / expected[n]), abs=1e-2)
        assert len(cell.pictures) == 2 and all((tmp_path / name).exists() for name in cell.pictures)


@pytest.mark.parametrize(
    ("text", "asked", "counted"),
    [
        ("HeunDiscrete", 5, 5),
        ("HeunDiscreteScheduler", 4, 3),
        ("PNDMScheduler:skip_prk_steps=true", 5, 5),
        ("DPMSolverMultistepScheduler", 5, 5),
        ("heun", 4, 4),
        ("dpm-solver:order=3", 5, 5),
    ],
)
def test_evaluations_are_counted_and_never_more_than_asked(subject, text, asked, counted):
    """Heun's method of diffusers takes 2 n - 1 for n steps, PNDM n + 1."""
    scheduler = parse_contender(text).scheduler(subject.pipe.scheduler)
    steps = steps_for(scheduler, asked)
    seen = []
    handle = subject.pipe.unet.register_forward_pre_hook(lambda *_: seen.append(1))
    outcome = run_pipeline_once(subject, scheduler, steps, seed=0)
    handle.remove()
    assert outcome.nfe_counted == outcome.network_calls == len(seen) == counted <= asked
    assert "step" not in vars(scheduler)


def test_a_scheduler_that_cannot_make_the_number_says_so(subject, tmp_path):
    found = findings(study("HeunDiscreteScheduler", nfe=(4,), seeds=(0,)), subject, tmp_path)
    assert found.cells["HeunDiscrete", 4].nfe_counted == 3
    page = write_findings(found, tmp_path).read_text()
    assert "(3)" in page and "(n) the evaluations counted" in page


@pytest.mark.parametrize(
    ("text", "stochastic"),
    [
        ("stock", False),
        ("unipc", False),
        ("ddim:eta=1.0", True),
        ("EulerAncestralDiscreteScheduler", True),
        ("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++", True),
        ("DPMSolverMultistepScheduler", False),
    ],
)
def test_what_draws_noise_has_no_distance(subject, tmp_path, text, stochastic):
    found = findings(study(text, nfe=(3,), seeds=(0,)), subject, tmp_path)
    cell = found.cells[parse_contender(text).text, 3]
    assert (cell.note == "SDE") is (cell.rmse is None) is stochastic
    assert cell.pictures[0] is not None


# Resuming


def test_a_killed_run_loses_nothing(subject, tmp_path):
    whole = study("unipc", "stock")
    calls = []
    handle = subject.pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    first = findings(whole, subject, tmp_path)
    total = 2 * (sum(CHEAP) + 2 * (2 + 4))
    assert len(calls) == total == whole.evaluations
    assert findings(whole, subject, tmp_path).as_json() == first.as_json()
    assert len(calls) == total
    # Killed while the last but one of the records was written, and one of the files was lost.
    path = tmp_path / RECORDS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:30])
    (tmp_path / json.loads(lines[3])["files"][0]).unlink()
    again = findings(whole, subject, tmp_path)
    missing = json.loads(lines[3])["nfe"]  # the states of the others are kept
    assert len(calls) == total + missing
    for key, cell in first.cells.items():
        assert again.cells[key].rmse == cell.rmse
    # Another question reuses what it can.
    findings(study("unipc", nfe=(2, 4, 5)), subject, tmp_path)
    assert len(calls) == total + missing + 2 * 5
    handle.remove()


def test_another_model_or_call_is_another_problem(latent_model):
    folder, arguments = latent_model
    first, second = opened(folder, arguments), opened(folder, arguments)
    assert first.about == second.about
    weight = next(second.pipe.unet.parameters())
    weight.data.view(-1)[0] += 1e-3
    assert pipelines.fingerprint(second) != first.about["weights"]
    other = open_pipeline(str(folder), guidance_scale=1.0, call_args=json.loads(arguments))
    assert other.about["call"]["guidance_scale"] == 1.0 != first.about["call"]


def test_a_failing_scheduler_is_reported_and_tried_again(tmp_path):
    """The embedded DDPMPipeline hands a generator to ``step``, which stock UniPC refuses."""
    subject = open_pipeline("embedded", prompt="3")
    compared = study("UniPCMultistep", "unipc", nfe=(3,), seeds=(0,), reference_nfe=(6, 5))
    found = findings(compared, subject, tmp_path)
    assert found.cells["UniPCMultistep", 3].note == "failed"
    assert found.cells["unipc", 3].rmse > 0
    page = write_findings(found, tmp_path).read_text()
    assert "`UniPCMultistep` failed at 3 NFE: TypeError" in page and "generator" in page
    before = len((tmp_path / RECORDS).read_text().splitlines())
    findings(compared, subject, tmp_path)
    assert len((tmp_path / RECORDS).read_text().splitlines()) == before + 1


def test_a_diverged_run_is_recorded(subject, tmp_path, monkeypatch):
    run = pipelines.run_pipeline_once

    def broken(subject, scheduler, steps, *rest):
        outcome = run(subject, scheduler, steps, *rest)
        if steps == 4:
            outcome.x[0, 0, 0, 0] = float("nan")
        return outcome

    monkeypatch.setattr(pipelines, "run_pipeline_once", broken)
    found = findings(study("unipc", seeds=(0,)), subject, tmp_path)
    assert found.cells["unipc", 4].note == "diverged" and found.cells["unipc", 2].rmse > 0
    assert "diverged" in write_findings(found, tmp_path).read_text()


@pytest.mark.parametrize("way", ["fails", "diverges"])
def test_a_pipeline_without_a_reference_ends_the_command(monkeypatch, tmp_path, way):
    run_once = pipelines.run_pipeline_once

    def broken(*arguments):
        if way == "fails":
            raise RuntimeError("image has the wrong size")
        outcome = run_once(*arguments)
        outcome.x[...] = float("inf")
        return outcome

    monkeypatch.setattr(pipelines, "run_pipeline_once", broken)
    arguments = ["--nfe=2", "--seeds=0", "--reference-nfe=5,4", "--solvers=unipc"]
    for _ in range(2):  # and so it does when it is started again
        result = run(*arguments, f"--out={tmp_path}")
        message = " ".join(result.output.split())
        assert result.exit_code == 1
        assert ("wrong size" if way == "fails" else "is not finite") in message


# Other pipelines


def test_flow_models(tmp_path):
    subject = opened(*saved("sd3", tmp_path / "model"))
    compared = study("stock", "ddim:linspace", "unipc", nfe=(4,), seeds=(0,))
    found = findings(compared, subject, tmp_path)
    cells = found.cells
    # On the flow path an Euler step and a DDIM step are the same one, and the grids agree.
    assert cells["ddim:linspace", 4].rmse == pytest.approx(cells["stock", 4].rmse, rel=1e-3)
    assert cells["unipc", 4].rounding is None
    names = [contender.name for contender in default_contenders(subject.pipe.scheduler)]
    assert names == ["stock", "ddim", "dpm-solver++", "PlanScheduler", "unipc"]


@pytest.mark.parametrize(("options", "rounded"), [({}, False), ({"use_karras_sigmas": True}, True)])
def test_rounded_times_are_noticed(subject, options, rounded):
    own = subject.pipe.scheduler.config
    for scheduler in (
        PlanScheduler.from_config(own, solver="unipc", **options),
        parse_contender("DPMSolverMultistepScheduler").scheduler(subject.pipe.scheduler),
    ):
        if rounded and not isinstance(scheduler, PlanScheduler):
            scheduler = type(scheduler).from_config(own, **options)
        scheduler.set_timesteps(12)
        measured = told_rounding(scheduler)
        exact = (scheduler.timesteps != scheduler.timesteps.round()).any()
        assert exact or (0.1 < measured <= 0.51 if rounded else measured < 1e-3)


def test_what_is_not_decoded_has_no_pictures(latent_model, tmp_path):
    folder, arguments = latent_model
    call_args = json.loads(arguments) | {"output_type": "latent"}
    latent = open_pipeline(str(folder), call_args=call_args)
    decoded = opened(folder, arguments)
    scheduler = parse_contender("unipc").scheduler(latent.pipe.scheduler)
    first, second = (run_pipeline_once(s, scheduler, 3, seed=0) for s in (latent, decoded))
    assert torch.equal(first.x, second.x) and not first.pictures and second.pictures
    decoded.pipe.vae = None
    assert torch.equal(run_pipeline_once(decoded, scheduler, 3, seed=0).x, first.x)
    write_findings(findings(study("unipc", nfe=(2,)), latent, tmp_path), tmp_path)
    assert PICTURES not in (tmp_path / REPORT).read_text() and not (tmp_path / PICTURES).exists()


def test_pictures_of_every_kind_of_output():
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    array = np.zeros((2, 4, 3), dtype=np.float32)
    array[..., 0] = 1
    frames = np.stack([array * 0, array, array * 0])
    for output in (
        SimpleNamespace(images=[image]),
        SimpleNamespace(images=array[None]),
        SimpleNamespace(images=torch.from_numpy(array).permute(2, 0, 1)[None]),
        SimpleNamespace(frames=[[image, image, image]]),
        SimpleNamespace(frames=frames[None]),
        SimpleNamespace(frames=torch.from_numpy(frames).permute(0, 3, 1, 2)[None]),
    ):
        found = picture(output)
        assert found.size == (4, 2) and found.getpixel((1, 1)) == (255, 0, 0)
    assert picture(SimpleNamespace(audios=[np.zeros(3)])) is None


# The command


def run(*arguments: str):
    return CliRunner().invoke(app, ["nfe", *arguments], prog_name="logsnr")


def test_the_command_writes_and_prints_its_results(tmp_path, latent_model):
    folder, arguments = latent_model
    command = [f"--pipeline={folder}", f"--call-args={arguments}", "--nfe=4,2", "--seeds=3,5-6"]
    command += ["--solvers=stock,unipc:order=2:use_karras_sigmas=true", "--reference-nfe=9,7"]
    command += [f"--out={tmp_path}"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "RMSE to the converged solution, 3 seeds" in words and "9 evaluations" in words
    for name in (REPORT, ERROR_PLOT, PICTURES, RECORDS):
        assert (tmp_path / name).exists() and name in result.output
    found = json.loads(run(*command, "--json").stdout)
    assert found["seeds"] == [3, 5, 6] and found["reference_nfe"] == [9, 7]
    cells = {(cell["contender"], cell["nfe"]): cell for cell in found["cells"]}
    assert set(cells) == {(name, n) for name in ("stock", "unipc:order=2:karras") for n in (2, 4)}
    assert f"{cells['stock', 4]['rmse']:.4f}" in words
    assert len(results.load(tmp_path / RECORDS)) == 3 * (1 + 2 * 2)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("pipeline", "tests", "need a folder with a model_index.json"),
        ("pipeline", "./nowhere", "no such folder"),
        ("pipeline", "nowhere", "no such folder"),
        ("solvers", "unipc,eulerish", "'eulerish': choose some of"),
        ("solvers", "unipc,unipc", "each once"),
        ("solvers", "unipc:order", "need options as key=value or one of karras"),
        ("solvers", "unipc:orders=3", "orders=3"),
        ("solvers", "stock:eta_of_nothing=3", "eta_of_nothing=3 is not an option of DDPMScheduler"),
        ("solvers", "unipc:order=three", "order='three'"),
        ("nfe", "5,x", "need whole numbers"),
        ("nfe", "0", "need numbers of at least 1"),
        ("nfe", "2000", "above the largest of nfe"),
        ("seeds", "3-1", "empty range"),
        ("seeds", "1,1", "each once"),
        ("reference-nfe", "200", "need two numbers"),
        ("reference-nfe", "150,200", "need a fine and a coarser number"),
        ("dtype", "int8", "choose one of float32"),
        ("device", "nowhere", "device='nowhere'"),
        ("prompt", "a fox", "takes a digit"),
        ("guidance-scale", "3", "needs a prompt"),
        ("height", "64", "does not take"),
        ("call-args", "[1]", "need a JSON object"),
        ("call-args", "{", "is not JSON"),
        ("call-args", '{"generator": 1}', "is set by the comparison"),
        ("out", __file__, "need a folder"),
    ],
)
def test_a_bad_value_names_its_option_before_the_network_is_called(
    monkeypatch, tmp_path, option, value, says
):
    def no_network(*_):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(pipelines, "run_pipeline_once", no_network)
    out = [] if option == "out" else [f"--out={tmp_path}"]
    result = run(f"--{option}={value}", *out)
    message = " ".join(result.output.replace("│", "").split())
    assert result.exit_code == 2, result.output
    assert says.replace(" ", "") in message.replace(" ", "")
    named = {"height": "call-args", "2000": "reference-nfe"}
    assert f"--{named.get(option, named.get(value, option))}" in message


def test_arguments_that_the_call_lacks_or_does_not_have(latent_model):
    folder, arguments = latent_model
    with pytest.raises(ValueError, match="prompt: the call of StableDiffusionPipeline needs"):
        open_pipeline(str(folder))
    with pytest.raises(ValueError, match="'strength': the call of .* has no such argument"):
        open_pipeline(str(folder), prompt="", call_args={"strength": 0.5})


def test_schedulers_that_cannot_run_are_refused_beforehand(subject):
    with pytest.raises(ValueError, match="nfe=1: .*"):
        check_study(study("unipc:thresholding=true:prediction_type=no", nfe=(1,)), subject)
    assert numbers("seeds", "0-2,7") == (0, 1, 2, 7)
