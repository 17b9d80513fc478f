"""Cards: files that come back as they were, or say what is wrong with them; notes that warn."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import SCHEDULES, normal

from logsnr.solvers import (
    Card,
    Cards,
    ClassifierFree,
    Denoiser,
    FlowMatching,
    Plan,
    VPLinear,
    make_plan,
    sample,
    sample_parallel,
)
from logsnr.solvers.fitted_to import FittedTo, fitted_to, noted
from logsnr.solvers.tuning.cards import load_any, load_folder

MODEL = FittedTo("net", "c0ffee", "FlowMatching()", "flow_prediction", (3, 8, 8), (1, 7), 3.0)
ERRORS = {"median": 0.0571, "rmse": 0.0890, "log_mean": 0.05, "count": 192}


def card(nfe: int = 5, level: str = "full", model: FittedTo = MODEL, **said) -> Card:
    plan = make_plan("unipc", FlowMatching(), nfe=nfe)
    weights = plan.coefficients() * (1 + 1e-3 * normal(len(plan.coefficients())))
    told = [
        replace(row, node=row.node._replace(told=row.node.t + 0.01)) if row.evaluated else row
        for row in plan.with_coefficients(weights).rows
    ]
    fitted = replace(plan, rows=tuple(told), consistent=False) if level == "full" else plan
    return Card(fitted, level, model, before=ERRORS, after={**ERRORS, "median": 0.02}, **said)


def same(one: Card, other: Card) -> bool:
    return one.about() == other.about() and one.plan.rows == other.plan.rows


@pytest.mark.parametrize("way", ["folder", "file", "bundle", "one file of one"])
def test_what_is_saved_comes_back(way, tmp_path: Path):
    cards = Cards([card(8), card(5, fit={"starts": 192, "seed": 3})])
    if way == "bundle":
        cards.save(tmp_path / "cards.sft")
        found = load_any(tmp_path / "cards.sft")
    elif way == "folder":
        cards.save_folder(tmp_path / "cards")
        found = Cards.load(tmp_path / "cards")
    elif way == "file":
        cards[5].save(tmp_path / "mine.json")
        found = {5: Card.load(tmp_path / "mine.json"), 8: cards[8]}
    else:
        cards[5].save(tmp_path)
        found = {**Cards.load(tmp_path / "card-5.json"), 8: cards[8]}
    assert list(found) == [5, 8] and all(same(found[n], cards[n]) for n in (5, 8))
    assert fitted_to(found[5].plan) == MODEL


def test_the_plan_of_a_card_is_a_file_of_a_plan_and_equal_cards_are_equal_files(tmp_path: Path):
    for folder in ("one", "two"):
        card().save(tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["card-5.json", "card-5.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert Plan.load(tmp_path / "one" / "card-5.safetensors").rows == card().plan.rows


def damaged(folder: Path, how: str) -> None:
    text, numbers = folder / "card-5.json", folder / "card-5.safetensors"
    about = json.loads(text.read_text())
    if how == "cut":
        text.write_text(text.read_text()[:100])
    elif how == "foreign":
        text.write_text('{"format": "something else"}')
    elif how == "a list":
        text.write_text("[1, 2]")
    elif how == "lacking":
        text.write_text(json.dumps({key: v for key, v in about.items() if key != "model"}))
    elif how == "no plan":
        numbers.unlink()
    elif how == "flipped":
        content = bytearray(numbers.read_bytes())
        content[-3] ^= 1
        numbers.write_bytes(bytes(content))
    elif how == "another plan":
        card(8).plan.save(numbers)
    elif how == "binary":
        text.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "cut": "card-5.json' cannot be read",
        "foreign": "no card",
        "a list": "no card",
        "lacking": "lacks 'model'",
        "no plan": "card-5.safetensors is missing",
        "flipped": "damaged",
        "another plan": "damaged, or of another card",
        "binary": "cannot be read",
    }.items(),
)
def test_damage_is_named(how, words, tmp_path: Path):
    card().save(tmp_path)
    damaged(tmp_path, how)
    for load in (Cards.load, lambda folder: Card.load(folder / "card-5.json")):
        with pytest.raises(ValueError, match=words):
            load(tmp_path)


def test_what_is_no_card_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no card in it"):
        Cards.load(tmp_path)
    with pytest.raises(ValueError, match="two have nfe=5"):
        Cards([card(), card()])
    with pytest.raises(ValueError, match="different models, weights='c0ffee' and 'tea'"):
        Cards([card(5), card(8, model=replace(MODEL, weights="tea"))])
    with pytest.raises(ValueError, match="at least one"):
        Cards([])
    with pytest.raises(ValueError, match="JSON"):
        card(fit={"loss": float("nan")})
    with pytest.raises(ValueError, match="guidance="):
        FittedTo(guidance=(7, 1))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch):
    card().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(self, path):
        Path(path).write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Plan, "save", broken)
    with pytest.raises(OSError, match="full"):
        card(fit={"seed": 1}).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("schedule", [FlowMatching(), VPLinear(), SCHEDULES["vp_discrete"]])
def test_nodes_for_other_programs(schedule):
    plan = make_plan("unipc", schedule, nfe=6)
    found = Card(plan, "grid")
    nodes = [plan.rows[k].node for k in plan.evaluated] + [plan.rows[-1].node]
    straight = isinstance(schedule, FlowMatching)
    assert found.sigmas() == [n.sigma if straight else n.sigma / n.alpha for n in nodes]
    steps = found.model.training_steps
    assert found.timesteps() == [steps * t - (0 if straight else 1) for t in plan.times]
    with pytest.raises(ValueError, match="sigmas: .*level='full'"):
        card().sigmas()
    with pytest.raises(ValueError, match="several times a step"):
        Card(make_plan("heun", VPLinear(), nfe=9, spacing="time", t_end=0.01), "grid").timesteps()


def test_a_fitted_plan_elsewhere_is_never_silent():
    plan = noted(make_plan("unipc", FlowMatching(), nfe=4), replace(MODEL, guidance=(2, 3)))
    x = normal(2, 3, 8, 8)

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.1 * x

    def denoise(scale: float, prediction: str = "flow_prediction") -> Denoiser:
        guided = ClassifierFree(scale, {"y": torch.zeros(2)}, {"y": torch.ones(2)})
        return Denoiser(network, FlowMatching(), prediction, guidance=guided)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(denoise(2.5), x, plan)
        sample(denoise(7.0), x, make_plan("unipc", FlowMatching(), nfe=4))
    for run in (sample, sample_parallel):
        with pytest.warns(UserWarning, match="guidance 7, fitted at 2 to 3"):
            run(denoise(7.0), x, plan)
        with pytest.warns(UserWarning, match=r"shape \(3, 8, 6\), fitted at \(3, 8, 8\)"):
            run(denoise(2.0), x[..., :6], plan)
        with pytest.warns(UserWarning, match="predicts sample, fitted to flow_prediction"):
            run(denoise(2.0, "sample"), x, plan)
