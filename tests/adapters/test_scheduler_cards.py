"""A scheduler that is given cards runs the plan with as many evaluations as it is asked for."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from scheduler_cases import FAMILIES, LATENT, SHAPE, drive, start
from tiny_pipelines import FAMILIES as TINY

from logsnr.adapters import PlanScheduler, noise_schedule, run_pipeline
from logsnr.adapters.config.foreign import say
from logsnr.solvers import Plan, make_plan
from logsnr.solvers.fitted_to import FittedTo, fitted_to
from logsnr.solvers.tuning.card import Card
from logsnr.solvers.tuning.cards import Cards

FLOW = {"shift": 3.0}
COUNTS = (3, 5)
MODEL = FittedTo(
    prediction="flow_prediction", event=SHAPE[1:], guidance=(3.0, 5.0), shift=3.0, weights="ab"
)


def random_plan(nfe: int, family: str = "flow") -> Plan:
    """A plan with weights that no solver has, so that it is not taken for another."""
    schedule = noise_schedule(PlanScheduler(**FAMILIES[family][0]).config)
    plan = make_plan("dpm-solver++", schedule, nfe=nfe)
    weights = plan.coefficients()
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(nfe))
    return plan.with_coefficients(weights * (1 + 0.1 * noise.double()))


@pytest.fixture
def cards() -> Cards:
    say.cache_clear()
    return Cards(Card(random_plan(n), "full", MODEL) for n in COUNTS)


def result(scheduler: PlanScheduler, n: int) -> torch.Tensor:
    scheduler.set_timesteps(n)
    return drive(scheduler, start())


@pytest.mark.parametrize("given", ["cards", "folder", "file", "bundle", "one"])
def test_the_number_of_evaluations_picks_the_card(given, cards, tmp_path: Path):
    cards.save_folder(tmp_path / "folder")
    cards.save(tmp_path / "cards.sft")
    plan = {
        "cards": cards,
        "folder": tmp_path / "folder",
        "file": tmp_path / "folder" / "card-5.json",
        "bundle": str(tmp_path / "cards.sft"),
        "one": cards[5],
    }[given]
    scheduler = PlanScheduler.from_config(PlanScheduler(**FLOW).config, plan=plan)
    for n in COUNTS if given in ("cards", "folder", "bundle") else (5,):
        expected = result(PlanScheduler(**FLOW, plan=random_plan(n)), n)
        assert torch.equal(result(scheduler, n), expected)
        assert scheduler.plan.rows == cards[n].plan.rows
    with pytest.raises(ValueError, match="num_inference_steps=4: plan=.* has cards for .*5 eval"):
        scheduler.set_timesteps(4)


@pytest.mark.parametrize("way", ["saved", "copied", "pickled", "config", "copied config"])
def test_cards_go_where_the_config_goes(way, cards, tmp_path: Path):
    scheduler = PlanScheduler(**FLOW, plan=cards)
    expected = {n: result(scheduler, n) for n in COUNTS}
    if way == "saved":
        scheduler.save_pretrained(tmp_path / "saved")
        assert not list((tmp_path / "saved").glob("*.safetensors"))  # that is a folder of weights
        again = PlanScheduler.from_pretrained(tmp_path / "saved")
    elif way == "config":
        again = PlanScheduler.from_config(scheduler.config)
    elif way == "copied config":
        again = PlanScheduler.from_config(copy.deepcopy(scheduler.config))
    elif way == "copied":
        again = copy.deepcopy(scheduler)
    else:
        again = pickle.loads(pickle.dumps(scheduler))
    for n in COUNTS:
        assert torch.equal(result(again, n), expected[n])
        assert fitted_to(again.plan) == MODEL
    assert "3, 5 NFE" in repr(PlanScheduler(**FLOW, plan=cards))  # before a number is said


def test_a_pipeline_is_saved_with_them(cards, tmp_path: Path):
    pipe = TINY["sd3"].build()
    own = pipe.scheduler
    try:
        pipe.scheduler = PlanScheduler.from_config(own.config, plan=cards)
        expected = TINY["sd3"].call(pipe, steps=5)
        pipe.scheduler.save_pretrained(tmp_path / "scheduler")
        pipe.scheduler = PlanScheduler.from_pretrained(tmp_path, subfolder="scheduler")
        assert torch.equal(TINY["sd3"].call(pipe, steps=5), expected)
    finally:
        pipe.scheduler = own


def test_numbers_without_a_card_are_run_by_default_where_that_is_asked_for(cards):
    scheduler = PlanScheduler(**FLOW, plan=cards, plan_fallback=True)
    assert torch.equal(result(scheduler, 4), result(PlanScheduler(**FLOW), 4))
    assert torch.equal(result(scheduler, 5), result(PlanScheduler(**FLOW, plan=cards), 5))
    assert torch.equal(result(scheduler, 4), result(PlanScheduler(**FLOW), 4))
    again = PlanScheduler.from_config(scheduler.config, plan=random_plan(6))
    assert torch.equal(result(again, 4), result(PlanScheduler(**FLOW), 4))
    later = PlanScheduler(**FLOW, plan=cards)
    with pytest.raises(ValueError, match="plan_fallback"):
        later.set_timesteps(4)
    later.config.plan_fallback = True
    assert torch.equal(result(later, 4), result(PlanScheduler(**FLOW), 4))


WRONG = {
    "prediction_type='epsilon': plan=.* predicts flow_prediction": lambda cards: PlanScheduler(
        **FLOW, prediction_type="epsilon", plan=cards[5]
    ),
    "on the schedule of this model": lambda cards: PlanScheduler(
        **LATENT, prediction_type="flow_prediction", plan=cards
    ).set_timesteps(5),
    "num_inference_steps is missing: plan=": lambda cards: PlanScheduler(
        **FLOW, plan=cards
    ).set_timesteps(),
    "solver='ddim'": lambda cards: PlanScheduler(**FLOW, plan=cards, solver="ddim"),
    "begin_index=2": lambda cards: PlanScheduler(**FLOW, plan=cards).set_begin_index(2),
    "plan_fallback='yes'": lambda cards: PlanScheduler(**FLOW, plan=cards, plan_fallback="yes"),
    "timesteps and sigmas are those of plan=": lambda cards: PlanScheduler(
        **FLOW, plan=cards, solver=None
    ).step(start(), PlanScheduler(**FLOW).timesteps[0], start()),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_they_cannot_run_is_refused(words, cards):
    with pytest.raises(ValueError, match=words):
        WRONG[words](cards)


def test_another_shape_or_shift_is_in_the_log(cards, caplog):
    scheduler = PlanScheduler(**FLOW, plan=cards)
    with caplog.at_level(logging.WARNING, logger="logsnr.adapters"):
        result(scheduler, 5)
        assert not caplog.messages
        scheduler.set_timesteps(5)
        x = start()[..., :2]
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
        assert len(caplog.messages) == 1  # once, not at every step
        assert "shape (3, 4, 2), fitted at (3, 4, 4)" in caplog.messages[0]
        result(PlanScheduler(shift=1.5, plan=cards), 5)
    assert "shift 1.5, fitted at 3" in caplog.messages[1]


def test_guidance_is_compared_where_a_pipeline_is_called(cards):
    family = TINY["sd3"]
    arguments = {**family.arguments(), "output_type": "latent", "num_inference_steps": 3}
    arguments.pop("guidance_scale", None)
    plan = Card(cards[3].plan, "full", FittedTo(guidance=(3.0, 5.0))).plan
    with pytest.warns(UserWarning, match="guidance 9, fitted at 3 to 5"):
        run_pipeline(family.build(), plan, guidance_scale=9.0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run_pipeline(family.build(), plan, guidance_scale=4.0, **arguments)
