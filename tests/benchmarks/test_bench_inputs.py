"""What people bring to `logsnr bench`: paths, modules, plans, odd values, broken networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from logsnr.benchmarks.__main__ import app
from logsnr.benchmarks.harness.baseline import compare_folders, open_baseline
from logsnr.benchmarks.harness.files import load_tensors, save_tensors
from logsnr.benchmarks.harness.suite import load_suite, read_suite
from logsnr.benchmarks.harness.written import split
from logsnr.benchmarks.studies.bench import measure, opened
from logsnr.solvers import Card, Cards, FlowMatching, VPLinear, make_plan
from logsnr.solvers.processes import Ranks

SMALL: dict[str, Any] = {
    "subjects": ["problem=gaussian"],
    "contenders": ["ddim"],
    "nfe": [5],
    "samples": 10,
    "shard": 5,
    "reference_nfe": [20, 15],
    "metrics": ["moments"],
}
MODULE = """
import torch

class Net(torch.nn.Module):
    def forward(self, x, sigma, class_labels=None):
        return x * 0.09 / (0.09 + sigma.reshape(-1, 1, 1, 1).to(x) ** 2)

class Broken(Net):
    def forward(self, x, sigma, class_labels=None):
        raise KeyError("no such layer")

class Blind(Net):
    def forward(self, x, sigma, class_labels=None):
        return x * float("nan")

def sample_euler(model, x, sigmas, gain=1.0, words=()):
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        slope = (x - model(x, now * torch.ones(len(x)))) / now
        x = x + gain * slope * (then - now)
    return x

def sample_nothing(model, x, sigmas):
    raise KeyError("never")
"""


def run(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    return measure(read_suite(SMALL | changes), folder, Ranks())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a module of its own, which is not the current one."""
    folder = tmp_path / "ünter wegs"
    folder.mkdir()
    name = f"brought_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return folder


def module(place: Path) -> str:
    return next(place.glob("*.py")).stem


# Text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a:shape=[3,8,8], b", ["a:shape=[3,8,8]", "b"]),
        ('a:call={"x": [1,2], "y": 3},b', ['a:call={"x": [1,2], "y": 3}', "b"]),
        ('a:name="x,y",b', ['a:name="x,y"', "b"]),
        ("a]b,c", ["a]b", "c"]),
    ],
)
def test_commas_within_brackets_and_quotes_are_part_of_a_value(text, parts):
    assert split(text, ",") == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edm=m:f:shape=[3,32,32]", {"edm": "m:f", "shape": [3, 32, 32]}),
        ("digits:device=cpu:0", {"model": "digits", "device": "cpu:0"}),
        ('pipeline="./a:b,c":prompt="one, two: three"', None),
    ],
)
def test_colons_in_values_of_subjects(text, said):
    said = said or {"pipeline": "./a:b,c", "prompt": "one, two: three"}
    suite = read_suite(SMALL | {"subjects": [text], "metrics": []})
    assert suite.subjects[0].said == said


def test_options_that_are_lists_or_hold_colons(place, tmp_path):
    name = f"{module(place)}.sample_euler"
    texts = [f"{name}:words=[1, 2]", f'{name}:words="a:b"', f"{name}:gain=0.5"]
    (place / "suite.toml").write_text(f"contenders = {json.dumps(texts)}\nsubjects = ['digits']\n")
    suite = load_suite(str(place / "suite.toml"))
    found = [dict(contender.options) for contender in suite.contenders]
    assert found == [{"words": [1, 2]}, {"words": "a:b"}, {"gain": 0.5}]


# Places


def test_all_that_a_suite_names_is_looked_for_beside_it(place, tmp_path):
    torch.jit.script(torch.nn.Identity()).save(place / "net.pt")
    make_plan("unipc", FlowMatching(), nfe=5).save(place / "plan.safetensors")
    name = module(place)
    (place / "suite.toml").write_text(f"""
nfe = [5]
samples = 9
reference_nfe = [20, 15]
contenders = ["ddim"]
metrics = []
[[subjects]]
edm = "{name}:Net"
shape = [3, 8, 8]
contenders = ["{name}.sample_euler"]
[[subjects]]
problem = "gaussian"
schedule = "flow"
contenders = ["plan.safetensors"]
""")
    suite = load_suite(str(place / "suite.toml"))
    records = measure(suite, tmp_path / "out", Ranks())
    assert [record["status"] for record in records] == ["ok"] * 6
    assert {record["solver"] for record in records} >= {"plan.safetensors", f"{name}.sample_euler"}


def test_a_torchscript_file_is_an_edm_network(place, tmp_path):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share = torch.nn.Parameter(torch.tensor(0.09))

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x * self.share / (self.share + sigma.reshape(-1, 1, 1, 1).to(x) ** 2)

    torch.jit.script(Net()).save(place / "net.pt")
    changes = {"samples": 2, "shard": 2, "metrics": []}
    script = f"edm={place / 'net.pt'}:shape=[3,8,8]"
    [_, scripted] = run(tmp_path / "a", subjects=[script], **changes)
    (place / "suite.toml").write_text("")
    read = read_suite(
        SMALL | changes | {"subjects": [f"edm={module(place)}:Net:shape=[3,8,8]"]}, place
    )
    [_, plain] = measure(read, tmp_path / "b", Ranks())
    assert scripted["rmse"] == pytest.approx(plain["rmse"], rel=1e-5)
    assert scripted["nfe_counted"] == plain["nfe_counted"] == 5


# Plans


def test_a_saved_plan_runs_at_its_own_number_alone(tmp_path):
    path = tmp_path / "tuned.safetensors"
    make_plan("unipc", VPLinear(), nfe=5).save(path)
    records = run(tmp_path / "out", contenders=["ddim", str(path), "unipc"], nfe=[5, 6])
    assert [r["nfe"] for r in records if r["solver"] == str(path)] == [5]
    found = {(r["solver"], r["nfe"]): r for r in records}
    assert found[str(path), 5]["rmse"] == found["unipc", 5]["rmse"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nfe": [6]}, "is a plan of 5 evaluations"),
        ({"subjects": ["problem=gaussian:schedule=flow"]}, "made for another noise schedule"),
    ],
)
def test_a_plan_that_does_not_fit(changes, says, tmp_path):
    path = tmp_path / "tuned.safetensors"
    make_plan("unipc", VPLinear(), nfe=5).save(path)
    with pytest.raises(ValueError, match=says):
        opened(read_suite(SMALL | {"contenders": [str(path)]} | changes))
    with pytest.raises(ValueError, match="a saved plan has no options"):
        read_suite(SMALL | {"contenders": [f"{path}:order=3"]})


def test_cards_run_at_their_own_numbers_alone(tmp_path):
    plans = {n: make_plan("unipc", VPLinear(), nfe=n) for n in (5, 6)}
    Cards(Card(plan, "grid") for plan in plans.values()).save_folder(tmp_path / "mine")
    text = f"card:{tmp_path / 'mine'}"
    records = run(tmp_path / "out", contenders=[text, "unipc"], nfe=[4, 5, 6])
    found = {(r["solver"], r["nfe"]): r for r in records}
    assert sorted(n for solver, n in found if solver == text) == [5, 6]
    for n in plans:
        assert found[text, n]["rmse"] == found["unipc", n]["rmse"]
    # Other cards are another measurement.
    Card(plans[5], "full").save(tmp_path / "mine")
    again = run(tmp_path / "out2", contenders=[text], nfe=[5])
    assert again[-1]["options"] != found[text, 5]["options"]
    for wrong, says in ((f"card:{tmp_path}", "no card in it"), ("card:nowhere", "no such folder")):
        with pytest.raises(ValueError, match=says):
            read_suite(SMALL | {"contenders": [wrong]})
    with pytest.raises(ValueError, match="is a plan of 5, 6 evaluations"):
        opened(read_suite(SMALL | {"contenders": [text], "nfe": [8]}))


# Refused before a network is called


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 8, "shard": 8}, "samples=8: moments needs at least 9"),
        ({"subjects": ["problem=gaussian", "problem=gaussian"]}, r"subjects\[1\] is subjects\[0\]"),
        ({"subjects": ["digits:guidance=Infinity"]}, "guidance=inf: need a finite number"),
        ({"subjects": ["pipeline=x:prompt=a:prompts=b"]}, "need prompt or prompts, not both"),
        ({"subjects": ["pipeline=embedded:prompts=README.md"], "metrics": []}, "prompts"),
        ({"contenders": ["ddim", "ddim"]}, r"contenders=\['ddim', 'ddim'\]"),
        ({"subjects": ["digits:guidance=2:guidance=3"]}, "guidance is said twice"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        run(tmp_path, **changes)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_sampler_functions_need_a_largest_sigma(place, tmp_path):
    changes = {"contenders": [f"{module(place)}.sample_euler"], "metrics": []}
    read = read_suite(SMALL | changes | {"subjects": ["problem=gaussian:schedule=flow"]}, place)
    with pytest.raises(ValueError, match="begins at the largest sigma"):
        opened(read)
    wrong = SMALL | changes | {"contenders": [f"{module(place)}.sample_nothing"]}
    with pytest.raises(ValueError, match="not possible for .*sample_nothing"):
        opened(read_suite(wrong, place))


# Networks and metrics that fail


@pytest.mark.parametrize(("network", "status"), [("Broken", "failed"), ("Blind", "diverged")])
def test_a_network_that_fails_leaves_records_that_say_so(network, status, place, tmp_path):
    subject = f"edm={module(place)}:{network}:shape=[3,8,8]"
    read = read_suite(SMALL | {"subjects": [subject], "metrics": []}, place)
    for _ in range(2):  # and again, with what the first run left
        records = measure(read, tmp_path / "out", Ranks())
        assert [record["status"] for record in records] == [status] * 2


# The command line


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


SUITE = """
nfe = [5]
samples = 10
shard = 5
reference_samples = 10
reference_nfe = [20, 15]
metrics = ["moments"]
contenders = ["ddim"]
[[subjects]]
problem = "gaussian"
contenders = ["unipc"]
"""


def test_the_command_line_replaces_what_it_names(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    suite = load_suite(str(path), contenders=["unipc"], samples=9)
    assert suite.samples == suite.reference_samples == 9
    assert suite.subjects[0].contenders == ()
    assert len(load_suite(str(path)).subjects[0].contenders) == 1


def test_json_is_all_that_is_printed_and_a_baseline_is_looked_at_first(tmp_path):
    (tmp_path / "suite.toml").write_text(SUITE)
    suite, old, new = (str(tmp_path / name) for name in ("suite.toml", "old", "new"))
    missing = bench(suite, f"--out={old}", f"--baseline={tmp_path / 'nowhere'}")
    assert missing.exit_code == 2 and not list(tmp_path.glob("old/**/*.safetensors"))
    assert bench(suite, f"--out={old}").exit_code == 0
    itself = bench(suite, f"--out={old}", f"--baseline={old}")
    assert itself.exit_code == 2 and "another folder" in itself.output
    same = bench(suite, f"--out={new}", f"--baseline={old}", "--fail-if-worse=0%", "--json")
    assert same.exit_code == 0
    assert len(json.loads(same.stdout)) == 3
    assert "ok: ddim" in same.stderr
    assert bench(suite, f"--out={new}", "--contenders=ddimm").exit_code == 2
    assert bench(suite, f"--out={new}", "--contenders=unipc:order=9").exit_code == 2


def test_a_suite_may_change_until_something_was_measured(tmp_path):
    (tmp_path / "suite.json").write_text('{"samples": 7}')
    assert run(tmp_path)
    with pytest.raises(ValueError, match="another suite"):
        run(tmp_path, samples=20)


# A baseline


def test_a_baseline_judges_every_seed_and_every_subject(tmp_path):
    subjects = ["problem=gaussian", {"problem": "gaussian", "metrics": []}]
    records = run(tmp_path, seeds=[0, 1], subjects=subjects)
    runs = [record for record in records if record["solver"] == "ddim"]
    # one seed ended otherwise, and the other one is worse
    changed = [dict(runs[0], status="diverged"), dict(runs[1], rmse=2 * runs[1]["rmse"])]
    lines = compare_folders(tmp_path, changed, 0.1).lines
    assert any("seed 0 was ok, is diverged" in line for line in lines)
    assert any(line.startswith("WORSE") and "rmse " in line for line in lines)
    # the mean of two subjects would hide that one of them is worse
    one = [
        dict(r, rmse=1.3 * r["rmse"]) if "kl" in r else dict(r, rmse=0.5 * r["rmse"]) for r in runs
    ]
    assert compare_folders(tmp_path, one, 0.1).worse
    # nothing to judge is no pass
    lost = [{key: value for key, value in record.items() if key != "rmse"} for record in runs]
    assert compare_folders(tmp_path, lost, 0.1).worse
    with pytest.raises(ValueError, match="need another folder"):
        open_baseline(tmp_path, tmp_path)


# Damage


def test_records_with_entries_of_another_kind_are_made_again(tmp_path, capsys):
    whole = run(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    hurt = [dict(json.loads(lines[0]), files=None), dict(json.loads(lines[1]), written="now")]
    text = "".join(json.dumps(record) + "\n" for record in hurt)
    (tmp_path / "records.jsonl").write_bytes(text.encode() + b"\0\0\n\xff\n[]\n5\nnull\n")
    again = run(tmp_path)
    assert "line 1 is not a record: files=None" in capsys.readouterr().err
    assert [r["kl"] for r in again] == [r["kl"] for r in whole]
    run(tmp_path)
    assert "is not a record" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_shards_of_standing_records_are_made_again(damage, tmp_path, capsys):
    records = run(tmp_path)
    path = tmp_path / records[0]["files"][0]  # the converged solution
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"y": torch.ones(2)}, path)
    else:
        last = bytes([content[-1] ^ 1])
        path.write_bytes(content[:-8] if damage == "cut" else content[:-1] + last)
    run(tmp_path)
    assert f"{path.name} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == content or load_file(path)["x"].equal(load_tensors(path)[0]["x"])
    run(tmp_path)
    assert "damaged" not in capsys.readouterr().err


def test_a_changed_value_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(3.0), "n": torch.tensor(4)}, {"status": "ok"})
    assert load_tensors(path)[1] == {"status": "ok"}
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(path)
