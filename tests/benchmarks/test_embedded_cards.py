"""The cards that ship with the embedded models: of these very models, and better than none."""

from __future__ import annotations

import pytest
import torch

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.embedded import EMBEDDED_MODELS
from logsnr.benchmarks.harness.contenders import PASTED, parse_contender
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.solvers import Cards


@pytest.mark.parametrize("model", EMBEDDED_MODELS.values(), ids=lambda model: model.name)
def test_they_are_of_the_model_and_run_in_a_scheduler(model):
    cards = Cards.load(model.cards_folder)
    for nfe, card in cards.items():
        assert card.model.weights == model.digest()
        assert (card.model.event, card.model.prediction) == (model.shape, model.prediction)
        scheduler = PlanScheduler.from_config(model.load_scheduler_config(), plan=cards)
        scheduler.set_timesteps(nfe)
        assert len(scheduler.timesteps) == nfe and scheduler.plan.rows == card.plan.rows


def test_a_few_evaluations_end_nearer_to_the_solution():
    """From starts that no fit has seen."""
    subject = embedded_subject(EMBEDDED_MODELS["faces"])
    indices = range(12)
    truth = subject.converged(60, 77, indices, lambda: None).x

    def error(contender: str) -> torch.Tensor:
        found = subject.run(parse_contender(contender), 5, 77, indices, lambda: None).x
        return (found - truth).flatten(1).square().mean(1).sqrt()

    tuned, pasted = error("card:faces"), error(PASTED)
    assert tuned.median() < 0.9 * pasted.median()
    assert (tuned < pasted).float().mean() > 0.6
