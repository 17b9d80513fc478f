"""DPM-Solver-v3 with statistics in PlanScheduler: the solver, files, errors, pipelines."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import diffusers
import diffusers.configuration_utils
import pytest
import torch
from diffusers.pipelines.pipeline_loading_utils import filter_model_files
from huggingface_hub.errors import EntryNotFoundError
from scheduler_cases import (
    EDM,
    FAMILIES,
    LATENT,
    SHAPE,
    assert_close,
    drive,
    load_and_run,
    network,
    run_with,
    start,
)
from tiny.family import using
from tiny_pipelines import FAMILIES as PIPELINES

import logsnr.adapters.config.carried_files
from logsnr.adapters import PlanScheduler, noise_schedule, run_pipeline, statistics
from logsnr.adapters.pipelines.statistics_algorithm import LARGEST_SHIFT
from logsnr.solvers import EMS, Denoiser, DiscreteVP, NoiseSchedule, Verdict, make_plan, sample

V3 = "dpm-solver-v3"
EVENTS = {"coordinate": SHAPE[1:], "channel": (SHAPE[1], 1, 1), "scalar": ()}


def schedule_of(config: dict[str, Any]) -> NoiseSchedule:
    return noise_schedule(PlanScheduler(**config).config)


def training_ends(schedule: NoiseSchedule) -> dict[str, float]:
    """The range that statistics of a pipeline have."""
    near = 1 / 1000 if isinstance(schedule, DiscreteVP) else 1 / 1000 / LARGEST_SHIFT
    start = schedule.t_start if schedule.alpha(schedule.t_start) > 0 else 1 - near
    return {"t_start": start, "t_end": schedule.t_end or 1 / 1000}


def smooth(
    config: dict[str, Any], event: tuple[int, ...] = EVENTS["channel"], **ends: float
) -> EMS:
    """Statistics that differ from coordinate to coordinate, smooth in lambda."""
    schedule = schedule_of(config)
    lam = EMS.degenerate(schedule, **{**training_ends(schedule), **ends}, intervals=60).lam
    own = torch.rand(event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grid = lam.view(-1, *[1] * len(event))
    l = torch.sigmoid(-2 * grid + own)
    s, b = -0.3 * torch.sigmoid(grid - own), 0.2 * torch.sigmoid(grid) * own
    return EMS(lam, l, s.expand_as(l), b.expand_as(l), about={"schedule": repr(schedule)})


def v3(config: dict[str, Any], ems: Any, solver: Any = V3, **options: Any) -> PlanScheduler:
    return PlanScheduler(**config, solver=solver, ems=ems, **options)


# --- the solver


@pytest.mark.parametrize("granularity", EVENTS)
@pytest.mark.parametrize("family", ["sd", "zero_snr", "flow", "edm"])
def test_a_pipeline_loop_is_the_plan_of_make_plan(family, granularity):
    config, given = FAMILIES[family]
    ems = smooth(config, EVENTS[granularity])
    scheduler = v3(config, ems)
    scheduler.set_timesteps(7, **given)
    looped = drive(scheduler, start(torch.float64))

    schedule, nodes = schedule_of(config), scheduler._evaluations.layout.nodes
    options = {"order": 2, "ems": ems, "treatment": "spline"}
    plan = make_plan(V3, schedule, times=[node.t for node in nodes], **options)
    told = iter(scheduler.timesteps)
    kinds = {"zero_snr": "v_prediction", "flow": "flow_prediction", "edm": "v_prediction"}
    sign = -1 if family == "edm" else 1
    denoise = Denoiser(
        lambda x, t: sign * network(x, next(told)), schedule, kinds.get(family, "epsilon")
    )
    expected = sample(denoise, start(torch.float64), plan)
    unit = config.get("sigma_data", 1.0)  # the last node of EDM models is in the data's units
    assert_close(looped, unit * expected, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_nodes_of_every_run_lie_on_statistics_of_the_whole_of_training(family):
    config, given = FAMILIES[family]
    ems = smooth(config, ())
    scheduler, other = v3(config, ems), PlanScheduler(**config, solver="unipc")
    for nfe in (1, 2, 3, 5, 10, 30, 60):
        for each in (scheduler, other):
            each.set_timesteps(nfe, **given)
        assert torch.equal(scheduler.timesteps, other.timesteps)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta", "logsnr"])
@pytest.mark.parametrize("config", [LATENT, {"shift": 7.0}], ids=["sd", "flow"])
def test_the_nodes_of_every_spacing_lie_on_them_too(config, spacing, final):
    options = {"timestep_spacing": spacing, "final_sigmas_type": final}
    scheduler = v3(config, smooth(config, ()), **options)
    for nfe in (1, 4, 30):
        scheduler.set_timesteps(nfe)
        assert drive(scheduler, start()).isfinite().all()


def test_statistics_that_lose_are_left_out_unless_the_solver_insists():
    """The verdict is asked for the order and the number of evaluations of the run."""
    errors = {2: (1.0, 1.0), 3: (1.0, 3.0)}
    lost = Verdict((5, 6), errors, {2: (1.0, 1.0), 3: (1.0, 1.0)}, starts=16)
    config = {**LATENT, "solver_order": 3}
    ems = smooth(config)
    losing = replace(ems, verdict=lost)
    insisted, plain = (run_with(v3(config, e), {}) for e in (ems, None))
    assert insisted != plain
    with pytest.warns(UserWarning, match="order 3 at 6 NFE: .* 3 times"):
        assert run_with(v3(config, losing), {}) == plain
    assert run_with(v3(config, losing, {"name": V3, "fallback": False}), {}) == insisted
    second = LATENT | {"solver_order": 2}
    assert run_with(v3(second, losing), {}) == run_with(v3(second, ems), {})


def test_degenerate_statistics_are_none():
    degenerate = EMS.degenerate(schedule_of(LATENT))
    results = [run_with(v3(LATENT, ems, solver_order=3), {}) for ems in (degenerate, None)]
    assert_close(*map(torch.tensor, results), 1e-6)


def test_the_mapping_has_the_other_options():
    config = {**LATENT, "timestep_spacing": "trailing"}
    ems = smooth(config)
    scheduler = v3(config, ems, {"name": V3, "treatment": "published", "corrector": False})
    scheduler.set_timesteps(8)
    moved = [node.lam for node in scheduler._nodes]
    assert all((ems.lam - lam).abs().min() < 1e-9 for lam in moved)
    assert scheduler.timesteps.dtype == torch.int64
    drive(scheduler, start())
    with pytest.raises(ValueError, match="ems=.* in solver: give it beside solver"):
        v3(config, None, {"name": V3, "ems": ems}).set_timesteps(8)


def test_image_to_image_begins_in_the_middle():
    scheduler = v3(LATENT, smooth(LATENT))
    whole = v3(LATENT, smooth(LATENT))
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    rest = drive(scheduler, start(), begin=5)
    whole.set_timesteps(timesteps=scheduler.timesteps[5:].tolist())
    assert torch.equal(drive(whole, start()), rest)


def test_other_solvers_ignore_them():
    with_ems = PlanScheduler(**LATENT, solver="unipc", ems=smooth(LATENT))
    assert run_with(with_ems, {}) == run_with(PlanScheduler(**LATENT, solver="unipc"), {})


# --- the config, files


@pytest.fixture(scope="module")
def fresh_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("granularity", EVENTS)
def test_saved_moved_and_loaded_in_a_fresh_process(granularity, fresh_process, tmp_path):
    ours = v3(LATENT, smooth(LATENT, EVENTS[granularity]))
    expected = run_with(ours, {})
    ours.save_pretrained(tmp_path / "first")
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        "scheduler_config.json",
        "ems.sft",
    }
    shutil.move(tmp_path / "first", tmp_path / "second")
    folder = str(tmp_path / "second")
    assert fresh_process.submit(load_and_run, folder, {}).result() == expected
    assert fresh_process.submit(run_with, ours, {}).result() == expected  # sent as a pickle

    loaded = PlanScheduler.from_pretrained(tmp_path, subfolder="second")
    shutil.rmtree(folder)
    assert run_with(loaded, {}) == expected
    loaded.save_pretrained(folder)
    assert load_and_run(folder, {}) == expected


@pytest.mark.parametrize("kind", ["file", "folder", "string", "scheduler's folder"])
def test_a_path_is_as_good_as_the_statistics(kind, tmp_path):
    ems = smooth(LATENT)
    expected = run_with(v3(LATENT, ems), {})
    ems.save(tmp_path if kind == "folder" else tmp_path / "own.safetensors")
    path: Any = tmp_path if kind == "folder" else tmp_path / "own.safetensors"
    if kind == "scheduler's folder":
        path = tmp_path / "saved"
        v3(LATENT, ems).save_pretrained(path)
    ours = v3(LATENT, str(path) if kind == "string" else path)
    shutil.rmtree(tmp_path)
    assert run_with(ours, {}) == expected
    assert str(tmp_path) not in ours.to_json_string()
    assert json.loads(ours.to_json_string())["ems"] == "ems.sft"


def test_statistics_go_where_the_config_goes(tmp_path):
    ours = v3(LATENT, smooth(LATENT))
    expected = run_with(ours, {})
    changed = PlanScheduler.from_config(ours.config, disable_corrector=[1])
    assert run_with(PlanScheduler.from_config(changed.config, disable_corrector=[]), {}) == expected
    # through a scheduler of diffusers, which can be saved, and names no file that is not there
    stock = diffusers.DDIMScheduler.from_config(ours.config)
    assert run_with(PlanScheduler.from_config(stock.config), {}) == expected
    stock.save_pretrained(tmp_path)
    assert "ems" not in ours.to_stock().config
    with pytest.raises(ValueError, match="ems='ems.sft' does not exist"):
        PlanScheduler.from_pretrained(tmp_path).set_timesteps(4)
    PlanScheduler.from_pretrained(tmp_path, solver="unipc").set_timesteps(4)
    # Stable Diffusion's constructors rewrite the config of the scheduler that they are given
    rewritten = diffusers.configuration_utils.FrozenDict({**ours.config, "steps_offset": 1})
    ours._internal_dict = rewritten
    ours.set_timesteps(6)
    assert PlanScheduler.from_config(ours.config, ems=None).config.ems is None


def test_copies_share_the_statistics():
    ours = v3(LATENT, smooth(LATENT))
    expected = run_with(ours, {})
    copied = copy.deepcopy(ours)
    assert copied.config.ems.value is ours.config.ems.value
    pickled = pickle.loads(pickle.dumps(ours))
    assert run_with(copied, {}) == run_with(pickled, {}) == expected


def test_the_hub_keeps_the_statistics_with_the_config(monkeypatch, tmp_path):
    pushed, asked = tmp_path / "hub", []

    def upload(self: Any, folder: str, repo_id: str, **_: Any) -> None:
        shutil.copytree(folder, pushed)

    def download(repo: str, filename: str, **options: Any) -> str:
        asked.append((repo, filename, options.get("subfolder"), options.get("revision")))
        if not (pushed / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(pushed / filename)

    class Repository:
        repo_id = "someone/scheduler"

    config_module = diffusers.configuration_utils
    monkeypatch.setattr(config_module, "create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr(config_module, "hf_hub_download", download)
    monkeypatch.setattr(logsnr.adapters.config.carried_files, "hf_hub_download", download)
    monkeypatch.setattr(PlanScheduler, "_upload_folder", upload)
    ours = v3(LATENT, smooth(LATENT))
    ours.save_pretrained(str(tmp_path / "local"), push_to_hub=True)
    names = [path.name for path in pushed.iterdir()]
    # A pipeline's from_pretrained downloads all of a folder, unless it takes a file for weights.
    assert "ems.sft" in names and filter_model_files(f"scheduler/{name}" for name in names) == []

    load = partial(PlanScheduler.from_pretrained, "someone/pipeline", subfolder="scheduler")
    assert run_with(load(revision="v2"), {}) == run_with(ours, {})
    assert asked[1] == ("someone/pipeline", "ems.sft", "scheduler", "v2")
    (pushed / "ems.sft").unlink()
    load(solver="unipc").set_timesteps(4)
    with pytest.raises(ValueError, match="ems='ems.sft' does not exist"):
        load().set_timesteps(4)


# --- errors, all before the network is called but that of the shape


def test_statistics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="made for FlowMatching.*not for DiscreteVP"):
        v3(LATENT, smooth({"shift": 3.0}, ())).set_timesteps(4)
    short = smooth(LATENT, (), t_start=0.9, t_end=0.1)
    with pytest.raises(ValueError, match="node 0 of the run is at sigma=14.6.* covers 8.* to 0.3"):
        v3(LATENT, short).set_timesteps(4)
    wide = {"use_karras_sigmas": True, "sigma_max": 20.0}
    with pytest.raises(ValueError, match="node 0 .*sigma=20, .*choose other nodes"):
        v3(LATENT, smooth(LATENT, ()), **wide).set_timesteps(4)
    with pytest.raises(ValueError, match="two nodes of the grid fall on node"):
        v3(LATENT, smooth(LATENT), {"name": V3, "treatment": "published"}).set_timesteps(100)


@pytest.mark.parametrize("event", [(3, 8, 8), (4, 1, 1), (3, 4)])
def test_statistics_of_another_shape_are_refused_at_the_first_step(event):
    scheduler = v3(LATENT, smooth(LATENT, event))
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"ems holds .*\(3, 4, 4\).*granularity='channel'"):
        drive(scheduler, start())


def test_what_is_no_statistics_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ems='nowhere' does not exist"):
        v3(LATENT, "nowhere").set_timesteps(4)
    with pytest.raises(ValueError, match="ems=3: need an EMS, the path"):
        v3(LATENT, 3).set_timesteps(4)
    with pytest.raises(ValueError, match="holds no statistics|does not exist"):
        v3(LATENT, tmp_path)
    (tmp_path / "text").write_text("no statistics")
    with pytest.raises(ValueError, match="holds no statistics"):
        v3(LATENT, tmp_path / "text")


# --- pipelines


def test_a_pipeline_keeps_them(tmp_path):
    family = PIPELINES["ddpm"]
    pipe = family.build()
    config = pipe.scheduler.config
    ems = EMS.degenerate(
        schedule_of({"beta_start": config.beta_start, "beta_end": config.beta_end})
    )
    ems = EMS(ems.lam, 0.5 * ems.l, ems.s - 0.2, ems.b, about=ems.about)
    with using(pipe, PlanScheduler.from_config(config, solver=V3, ems=ems)):
        expected = family.call(pipe)
        pipe.save_pretrained(tmp_path)
    with using(pipe, PlanScheduler.from_config(config, solver=V3)):
        assert not torch.equal(family.call(pipe), expected)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is PlanScheduler
    assert_close(family.call(loaded), expected, 1e-5)
    with using(pipe, loaded.scheduler):
        assert torch.equal(family.call(pipe), expected)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_estimated_through_a_pipeline_with_guidance_and_used_there(name):
    family = PIPELINES[name]
    pipe = family.build()
    config = pipe.scheduler.config

    def latents(solver: Any, steps: int, **options: Any) -> torch.Tensor:
        scheduler = PlanScheduler.from_config(
            config, solver=solver, timestep_spacing="logsnr", **options
        )
        result, told = family.run(scheduler, steps=steps)
        assert len(told) == steps
        return result

    run = run_pipeline(
        pipe,
        statistics(
            nodes=12, samples=8, groups=8, group=8, granularity="channel", check=name != "sd"
        ),
        **family.arguments(),
        output_type="latent",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
    )
    ems = run.result
    assert ems.event == (4, 1, 1)
    assert (ems.verdict is None) is (name == "sd")
    assert ems.about["t_start"] == (1.0 if name == "sd" else 1 - 1 / 16000)
    converged = latents("unipc", 40)
    insisting = {"name": V3, "fallback": False}
    assert_close(latents(insisting, 40, ems=ems), converged, 0.02)
    if name == "sd":  # the network of sd3 is too far from smooth at random weights
        few = [(latents(V3, 6, ems=e) - converged).norm() for e in (ems, None)]
        assert few[0] < 0.9 * few[1]


def test_statistics_can_be_renewed():
    """A pipeline whose scheduler has statistics of the wrong schedule can still be estimated."""
    family = PIPELINES["ddpm"]
    pipe = family.build()
    wrong = PlanScheduler.from_config(pipe.scheduler.config, solver=V3, ems=smooth(EDM, ()))
    with using(pipe, wrong):
        small = statistics(nodes=4, samples=4, groups=4, group=4, granularity="scalar", check=False)
        arguments = family.arguments() | {"output_type": "np"}
        result = run_pipeline(pipe, small, num_inference_steps=4, **arguments).result
        assert pipe.scheduler is wrong
    PlanScheduler.from_config(wrong.config, ems=result).set_timesteps(8)
