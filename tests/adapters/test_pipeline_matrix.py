"""Pipelines x solvers: what runs, what equals stock, what equals the plan run by itself.

docs/support.md is the whole matrix as `pipeline_matrix.py` measured it; these are its rows and
columns that fit into a test run.
"""

from __future__ import annotations

import re

import pipeline_matrix as matrix
import pytest
import torch
from places import ROOT
from tiny.family import Family, normal, using
from tiny.refused import REFUSED
from tiny_pipelines import FAMILIES

from logsnr.adapters import PlanScheduler
from logsnr.solvers import (
    SOLVERS,
    ClassifierFree,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    make_plan,
    sample,
)

SUPPORT = ROOT / "docs" / "support.md"
REPRESENTATIVE = ("ddim", "dpm-solver++", "unipc", "heun")
WHOLE_REGISTRY = ("sd", "sd3", "dit")


@pytest.mark.parametrize("solver", REPRESENTATIVE)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs(name, solver):
    """Finite; n timesteps, n network evaluations; the same again with the same scheduler."""
    assert matrix.check(FAMILIES[name], solver) == ""


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - set(REPRESENTATIVE)))
@pytest.mark.parametrize("name", WHOLE_REGISTRY)
def test_every_solver_runs(name, solver):
    assert matrix.check(FAMILIES[name], solver) == ""


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("solver", REPRESENTATIVE)
@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3"])
def test_few_steps(name, solver, steps):
    assert matrix.check(FAMILIES[name], solver, steps=steps) == ""


@pytest.mark.parametrize(
    "name, solver", [(name, solver) for name in FAMILIES for solver in FAMILIES[name].stock]
)
def test_equals_stock_where_stock_is_right(name, solver):
    assert matrix.difference(FAMILIES[name], solver) < matrix.PARITY


ANCESTRAL = {"name": "ddim", "eta": 1.0}
SINGLESTEP = {"name": "dpm-solver++", "steps": "singlestep"}
LEADING, KARRAS = {"timestep_spacing": "leading"}, {"use_karras_sigmas": True}


@pytest.mark.parametrize(
    "family, stock, solver, options",
    [
        ("sdxl", "EulerDiscreteScheduler", "ddim", LEADING),
        ("sdxl", "EulerAncestralDiscreteScheduler", ANCESTRAL, LEADING),
        ("ddpm", "DDPMScheduler", ANCESTRAL, {"clip_sample": False}),
        ("sd", "DPMSolverMultistepScheduler", "dpm-solver++", KARRAS),
        ("sd", "DPMSolverMultistepScheduler", "dpm-solver++", {"solver_order": 3}),
        ("sd", "DPMSolverSinglestepScheduler", SINGLESTEP, {"lower_order_final": True}),
        ("sd", "UniPCMultistepScheduler", "unipc", {"solver_order": 3}),
        ("sd", "UniPCMultistepScheduler", "unipc", KARRAS),
    ],
)
def test_the_names_people_know(family, stock, solver, options):
    """Rows of the migration table of docs/pipelines.md, with the same noise from one generator."""
    tiny = FAMILIES[family]
    theirs, ours = matrix.beside_stock(tiny, stock, solver, options)
    expected, times = tiny.run(theirs, steps=8)
    result, told = tiny.run(ours, steps=8)
    assert told == times
    scale = float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=0, atol=matrix.PARITY * scale)


def denoiser(family: Family) -> tuple[Denoiser, NoiseSchedule]:
    """The family's network with its guidance, taken out of the pipeline."""
    pipe, given = family.build(), family.arguments()
    keys = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
    text = {new: given[old] for old, new in keys.items() if old in given}
    none = {new: given[f"negative_{old}"] for old, new in keys.items() if old in given}
    guidance = ClassifierFree(scale=GUIDANCE, condition=text, null=none)
    network = getattr(pipe, family.network)
    if family.network == "unet":
        schedule: NoiseSchedule = DiscreteVP(pipe.scheduler.alphas_cumprod.double())
        return Denoiser(network, schedule, "epsilon", guidance=guidance), schedule
    schedule = FlowMatching()
    velocity = Denoiser(
        lambda x, t, **text: network(hidden_states=x, timestep=t, **text),
        schedule,
        "flow_prediction",
        guidance=guidance,
        network_time=lambda t: 1000 * t,
    )
    return velocity, schedule


GUIDANCE = 4.0


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc", "deis", "ipndm"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_pipeline_runs_the_plan(name, solver):
    """The pipeline's latents are those of `sample` on the same nodes with the bare network."""
    family = FAMILIES[name]
    denoise, schedule = denoiser(family)
    scheduler = matrix.ours(family, solver, solver_order=2, timestep_spacing="trailing")
    start = normal(1, 4, 8, 8, seed=5)
    result, told = family.run(scheduler, steps=8, latents=start, guidance_scale=GUIDANCE)
    discrete = isinstance(schedule, DiscreteVP)
    times = [(t + 1) / 1000 if discrete else t / 1000 for t in told]
    options: dict[str, object] = (
        {"order": 2} if solver in ("dpm-solver++", "unipc", "deis", "ipndm") else {}
    )
    if solver in ("deis", "ipndm"):
        options["lower_order_final"] = True
    if solver == "ipndm" and not discrete:
        options["variable"] = "time"
    plan = make_plan(solver, schedule, times=[*times, 0.0], **options)
    assert plan.nfe == 8
    with torch.no_grad():
        expected = sample(denoise, start, plan)
    scale = float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("name", REFUSED)
def test_a_protocol_that_cannot_work_is_refused(name):
    refused = REFUSED[name]
    with pytest.raises(ValueError, match=refused.error):
        refused.attempt()


def test_a_pipeline_keeps_its_stock_scheduler():
    """The contexts of these tests put back what they found."""
    pipe = FAMILIES["sd"].build()
    own = pipe.scheduler
    with using(pipe, PlanScheduler.from_config(own.config, solver="unipc")):
        assert pipe.scheduler is not own
    assert pipe.scheduler is own


def between(mark: str) -> list[str]:
    text = SUPPORT.read_text().split(f"<!-- {mark} -->\n")[1].split(f"<!-- end of {mark} -->")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_the_support_table_lists_the_families():
    """The committed table has a row for each family, in order, with all solvers that there are.

    If this fails, measure it again: python tests/pipeline_matrix.py --markdown docs/support.md
    """
    rows = between("matrix")
    assert len(rows) == len(FAMILIES)
    for row, family in zip(rows, FAMILIES.values(), strict=True):
        assert row.startswith(matrix.listed(family)), row
        ran, parity = row.removeprefix(matrix.listed(family)).strip(" |").split(" | ")
        assert ran == f"all {len(SOLVERS)}"
        compared = re.findall(r"`(\w+)` (\S+?)(?:,|$)", parity)
        assert [name for name, _ in compared] == [name for name, _ in family.stock.values()]
        assert all(float(difference) < matrix.PARITY for _, difference in compared), row


def test_the_support_table_lists_what_is_refused():
    rows = between("refused")
    assert [row.split("`")[1] for row in rows] == [entry.pipeline for entry in REFUSED.values()]
    for row, entry in zip(rows, REFUSED.values(), strict=True):
        assert all(part in row for part in (entry.why, "ValueError", entry.error)), row
