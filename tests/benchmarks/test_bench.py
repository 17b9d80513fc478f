"""Suites: what a TOML file says, what a kill costs, what several processes make of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.harness.baseline import compare_folders, tolerance
from logsnr.benchmarks.harness.records import load
from logsnr.benchmarks.harness.suite import READY, load_suite, read_suite
from logsnr.benchmarks.studies.bench import measure
from logsnr.solvers.processes import Ranks

SIX = "problem=six-gaussians"
SUITE: dict[str, Any] = {
    "subjects": [SIX],
    "contenders": ["unipc:order=3", "ddim"],
    "nfe": [5, 8],
    "samples": 60,
    "shard": 20,
    "reference_samples": 20,
    "reference_nfe": [40, 30],
    "metrics": ["moments"],
}
TOML = """
nfe = [5, 8]
seeds = [0, 1]
samples = 60
shard = 10
reference_samples = 20
reference_nfe = [60, 40]
metrics = ["moments"]
contenders = ["unipc:order=3", "ddim", "dpm-solver++:order=2"]

[[subjects]]
problem = "six-gaussians"
schedule = "flow"
"""
MIXED = """
nfe = [4]
samples = 12
shard = 4
reference_samples = 4
reference_nfe = [8, 6]
contenders = ["unipc:order=2", "ddim"]

[[subjects]]
problem = "six-gaussians"
metrics = ["moments"]

[[subjects]]
model = "faces"
metrics = ["fid", "kid", "prdc", "is", "swd"]
"""
MEASURED_ANEW = ("seconds", "versions", "written")


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in MEASURED_ANEW}


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """All records but their seconds, and all tensors that are kept beside them."""
    records = {name: plain(record) for name, record in load(folder).items()}
    files = {
        str(path.relative_to(folder)): load_file(path)
        for path in folder.glob("shards/*/*.safetensors")
    }
    return records, files


def assert_same(folder: Path, other: Path) -> None:
    """Bit for bit."""
    records, files = contents(folder)
    other_records, other_files = contents(other)
    assert records == other_records
    assert files.keys() == other_files.keys()
    for name, tensors in files.items():
        assert tensors.keys() == other_files[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, other_files[name][key]), (name, key)


def run_suite(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    return measure(read_suite(SUITE | changes), folder, Ranks())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "logsnr.benchmarks", "bench", *arguments]


# What a suite says


def test_a_suite_is_what_its_file_says(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    suite = load_suite(str(path), nfe=[6], seeds=[7])
    assert suite.nfe == (6,) and suite.seeds == (7,)
    assert suite.samples == 60 and suite.reference_samples == 20
    assert [contender.text for contender in suite.contenders][1] == "ddim"
    assert suite.subjects[0].open().name == "six-gaussians, flow"


@pytest.mark.parametrize("name", READY)
def test_ready_suites_can_be_read(name):
    own = {} if name in ("quick", "full") else {"subjects": ["digits"]}
    suite = load_suite(name, **own)
    assert suite.subjects and suite.nfe


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"contender": ["ddim"]}, "suite key='contender': choose one of"),
        ({"contenders": ["ddimm"]}, "contenders[0]='ddimm': choose some of"),
        ({"contenders": ["ddim", {"options": {}}]}, "contenders[1]={'options': {}}: need a name"),
        ({"contenders": ["ddim", {"name": "ddim", "option": 1}]}, "contenders[1] key='option'"),
        ({"contenders": []}, "contenders=[]"),
        ({"contenders": ["no.safetensors"]}, "contenders[0]='no.safetensors': no such file"),
        ({"contenders": "ddim"}, "contenders='ddim': need a list"),
        ({"subjects": []}, "subjects=[]: need at least one"),
        ({"subjects": ["facess"]}, "subjects[0].model='facess': choose one of"),
        ({"subjects": [{"model": "digits", "guidance": "3"}]}, "subjects[0].guidance='3': need"),
        ({"subjects": [{"model": "digits", "scale": 3}]}, "subjects[0] key='scale'"),
        ({"subjects": [{"model": "digits", "unet": "x"}]}, "subjects[0]={'model': 'digits'"),
        ({"subjects": ["problem=six"]}, "subjects[0].problem='six': choose one of"),
        ({"subjects": ["digits:guidance"]}, "subjects[0]='digits:guidance': need options"),
        ({"nfe": [5, "8"]}, "nfe='8': need a whole number"),
        ({"nfe": [5, 5]}, "nfe=[5, 5]"),
        ({"seeds": [-1]}, "seeds=[-1]"),
        ({"samples": 0}, "samples=0"),
        ({"samples": True}, "samples=True"),
        ({"reference_samples": 30}, "reference_samples=30: need a multiple of shard=20"),
        ({"reference_nfe": [40]}, "reference_nfe=[40]: need two numbers"),
        ({"reference_nfe": [30, 40]}, "reference_nfe=30,40"),
        ({"metrics": ["fidd"]}, "metrics='fidd': choose some of"),
        ({"metrics": "fid"}, "metrics='fid': need a list"),
        ({"title": 3}, "title=3: need text"),
    ],
)
def test_a_wrong_entry_is_named_as_it_was_written(changes, begins):
    with pytest.raises(ValueError) as caught:
        read_suite(SUITE | changes)
    assert str(caught.value).startswith(begins)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ["fid"]}, "subjects[0]: metrics=['fid']: a problem has only 'moments'"),
        ({"subjects": ["digits"]}, "subjects[0]: metrics='moments': only a problem"),
        ({"samples": 8, "reference_samples": 0}, "samples=8: moments needs at least 9"),
        ({"contenders": ["PlanScheduler"]}, "not possible for PlanScheduler"),
        ({"contenders": ["ddim:ord=3"]}, "not possible for ddim:ord=3"),
        ({"subjects": ["unet=./nowhere"], "metrics": []}, "subjects[0]: unet='./nowhere'"),
        ({"subjects": ["edm=nowhere"], "metrics": []}, "subjects[0]: edm='nowhere'"),
        ({"subjects": ["edm=nowhere:f"], "metrics": []}, "subjects[0]: edm='nowhere:f' cannot be"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(changes, says, tmp_path):
    with pytest.raises(ValueError) as caught:
        run_suite(tmp_path, **changes)
    assert says in str(caught.value)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_folder_keeps_to_its_suite_and_takes_more_of_it(tmp_path):
    first = run_suite(tmp_path)
    with pytest.raises(ValueError, match="another suite.*samples: 60 | 80"):
        run_suite(tmp_path, samples=80)
    more = run_suite(tmp_path, nfe=[5, 6, 8], contenders=["ddim", "unipc:order=3"])
    assert len(more) == len(first) + 2
    assert all(record in more for record in first)


# What is measured


def test_only_the_first_samples_have_a_converged_solution(tmp_path):
    all_of_them = {r["solver"]: r for r in run_suite(tmp_path / "a", reference_samples=60)}
    some = {r["solver"]: r for r in run_suite(tmp_path / "b")}
    assert some["reference"]["nfe_counted"] == all_of_them["reference"]["nfe_counted"]
    assert some["ddim"]["kl"] == all_of_them["ddim"]["kl"]
    assert some["ddim"]["rmse"] != all_of_them["ddim"]["rmse"]
    none = run_suite(tmp_path / "c", reference_samples=0)
    assert {r["solver"] for r in none} == {"unipc", "ddim"}
    assert not any("rmse" in r for r in none)


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory) -> Path:
    """A tiny UNet of 8 x 8 images with its scheduler, as pipelines are saved."""
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


LIARS = ["heun", "HeunDiscrete", "unipc", "UniPCMultistep", "KDPM2Discrete", "ddim"]


@pytest.mark.parametrize("contender", [*LIARS, "dpm-solver++:denoise_to_zero=true"])
def test_evaluations_are_counted_at_the_network(contender, unet_folder, tmp_path):
    suite = read_suite(
        {
            "subjects": [f"unet={unet_folder}"],
            "contenders": [contender],
            "nfe": [6, 7],
            "samples": 2,
            "reference_samples": 0,
            "metrics": [],
        }
    )
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    subject = suite.subjects[0].open()
    hook = subject.network.register_forward_hook(count)  # type: ignore[attr-defined]
    for nfe in suite.nfe:
        calls = 0
        outcome = subject.run(suite.contenders[0], nfe, 0, [0, 1], lambda: None)
        assert outcome.nfe_counted == calls <= nfe
        assert calls >= nfe - 1
    hook.remove()


class Halves(torch.nn.Module):
    """Features of 8 x 8 images: the means of their quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(len(images), 3, 2, 4, 2, 4).mean((3, 5)).flatten(1)


def test_a_published_protocol_on_a_stand_in(unet_folder, tmp_path):
    """`paper-cifar10` with another network, other features and a folder of images."""
    torch.jit.script(Halves()).save(tmp_path / "features.pt")
    images = tmp_path / "images"
    images.mkdir()
    rng = torch.Generator().manual_seed(0)
    for number in range(40):
        pixels = torch.randint(0, 256, (8, 8, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.png")
    subject = {
        "unet": str(unet_folder),
        "features": str(tmp_path / "features.pt"),
        "reference": str(images),
    }
    changes = {"subjects": [subject], "nfe": [5], "seeds": [0], "samples": 40}
    suite = load_suite("paper-cifar10", **changes, contenders=["ddim"], shard=20, metrics=["fid"])
    [record] = measure(suite, tmp_path / "out", Ranks())
    found = torch.cat(
        [
            load_file(path)["x"]
            for path in sorted((tmp_path / "out").glob("shards/*/*.safetensors"))
            if "x" in load_file(path)
        ]
    )
    assert record["status"] == "ok" and record["fid"] > 0
    assert record["nfe_counted"] == 5 and len(found)


# What is kept


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same(tmp_path):
    """kill -9 at a moment of chance; the next run ends, and all is as in a run without a kill."""
    suite = tmp_path / "suite.toml"
    suite.write_text(TOML)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    measure(load_suite(str(suite)), whole, Ranks())
    process = subprocess.Popen(
        command(str(suite), f"--out={killed}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shards = random.randrange(1, 20)
    while process.poll() is None and len(list(killed.glob("shards/*/*.s*"))) < shards:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    measure(load_suite(str(suite)), killed, Ranks())
    assert_same(whole, killed)


@pytest.mark.distributed
def test_two_ranks_give_what_one_does(tmp_path):
    """With all metrics: none of them may wait for a process that does not compute it."""
    suite = tmp_path / "suite.toml"
    suite.write_text(MIXED)
    measure(load_suite(str(suite)), tmp_path / "one", Ranks())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*torchrun, "-m", "logsnr.benchmarks", "bench", str(suite), f"--out={tmp_path / 'two'}"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "records.1.jsonl").exists()


def test_damaged_files_are_reported_and_made_again(tmp_path, capsys):
    run_suite(tmp_path / "whole")
    run_suite(tmp_path / "hurt")
    records = tmp_path / "hurt" / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    lines[1] = lines[1][: len(lines[1]) // 2] + "\n"
    records.write_text("".join(lines)[:-30])  # the last line was not finished
    shard = next(iter((tmp_path / "hurt").glob("shards/*/0.safetensors")))
    shard.write_bytes(shard.read_bytes()[:-40])
    run_suite(tmp_path / "hurt")
    said = capsys.readouterr().err
    assert "line 2 is not a record" in said and "0.safetensors is damaged" in said
    run_suite(tmp_path / "hurt")
    assert "is not a record" not in capsys.readouterr().err
    assert_same(tmp_path / "whole", tmp_path / "hurt")


# A baseline


def test_a_baseline_judges_what_both_have(tmp_path):
    records = run_suite(tmp_path)
    same = compare_folders(tmp_path, records, 0.0)
    assert not same.worse and any(line.startswith("ok: ddim, 5 NFE") for line in same.lines)
    worse = [dict(record, rmse=record.get("rmse", 0) * 1.03) for record in records]
    assert compare_folders(tmp_path, worse, 0.02).worse
    assert not compare_folders(tmp_path, worse, 0.04).worse
    assert not compare_folders(tmp_path, worse, None).worse
    better = [dict(record, rmse=record.get("rmse", 0) * 0.5) for record in records]
    assert not compare_folders(tmp_path, better, 0.0).worse
    diverged = [dict(record, status="diverged") for record in records]
    assert compare_folders(tmp_path, diverged, 0.5).worse


def test_a_baseline_of_another_protocol_is_refused(tmp_path):
    run_suite(tmp_path / "a")
    other = run_suite(tmp_path / "b", samples=80, reference_samples=20)
    with pytest.raises(ValueError, match=r"same protocol: problem.samples: 80 \| 60"):
        compare_folders(tmp_path / "a", other, 0.02)
    with pytest.raises(ValueError, match="no records there"):
        compare_folders(tmp_path / "c", other, 0.02)


@pytest.mark.parametrize("text", ["two", "-1%", "nan", "2%%"])
def test_a_tolerance_is_a_share(text, tmp_path):
    with pytest.raises(ValueError, match="fail_if_worse="):
        tolerance(text, tmp_path)
    assert tolerance("2%", tmp_path) == tolerance("0.02", tmp_path) == 0.02
    with pytest.raises(ValueError, match="needs --baseline"):
        tolerance("2%", None)


def test_the_command_writes_records_and_a_report(tmp_path):
    suite = tmp_path / "suite.toml"
    suite.write_text(TOML.replace("[5, 8]", "[5]"))
    ran = CliRunner().invoke(app, ["bench", str(suite), f"--out={tmp_path / 'out'}", "--json"])
    assert ran.exit_code == 0, ran.output
    records = json.loads(ran.stdout)
    assert len(records) == 2 * 4
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
