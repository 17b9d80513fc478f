"""PlanScheduler inside real diffusers pipelines: starting in the middle, edits, saving, loading."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import diffusers
import pipeline_matrix as matrix
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.family import last_state, normal, told, using
from tiny.stable_diffusion import mask, prompt
from tiny_pipelines import FAMILIES

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.embedded import NULL_LABEL, load_pipeline
from logsnr.solvers import SOLVERS

NFE = 4
SINGLESTEP = {"name": "dpm-solver++", "steps": "singlestep"}


def test_the_embedded_model_in_its_own_pipeline():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    labels = torch.full((2,), NULL_LABEL)
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "class_labels": labels}), with_kwargs=True
    )
    images = []
    ours = PlanScheduler.from_config(pipe.scheduler.config, solver="ddim", keep_sampling=True)
    stock = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    for scheduler in (ours, stock):
        with using(pipe, scheduler), told(pipe.unet) as times:
            generator = torch.Generator().manual_seed(0)
            options = {"num_inference_steps": NFE, "output_type": "np", "generator": generator}
            images.append(torch.from_numpy(pipe(batch_size=2, **options).images))
        assert len(times) == NFE
    hook.remove()
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=2e-4)


# Starting and ending in the middle


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", SINGLESTEP], ids=str)
@pytest.mark.parametrize("name", ["sd-img2img", "sdxl-img2img", "sd3-img2img", "flux-img2img"])
def test_image_to_image_spends_its_share(name, solver, strength):
    """strength * n evaluations, at the end of the timesteps, the first where the image is noised.

    Solvers with two evaluations a step too: they are laid out anew on what remains.
    """
    steps = 10
    family = FAMILIES[name]
    scheduler = matrix.ours(family, solver)
    latents, times = family.run(scheduler, steps=steps, strength=strength)
    count = round(strength * steps)
    assert len(times) == count and latents.isfinite().all()
    scale = 1000 if name == "flux-img2img" else 1
    assert [scale * t for t in times] == pytest.approx(scheduler.timesteps[-count:].tolist())
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["sd-img2img", "sd3-img2img"])
def test_image_to_image_with_every_solver(name, solver):
    family = FAMILIES[name]
    scheduler = matrix.ours(family, solver)
    latents, times = family.run(scheduler, steps=8, strength=0.5)
    assert len(times) == 4 and times == scheduler.timesteps[4:].tolist()
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    "name, solver",
    [
        ("sd-img2img", "ddim"),
        ("sd-img2img", "dpm-solver++"),
        ("sd-img2img", "unipc"),
        ("sdxl-img2img", "dpm-solver++"),
        ("sd-depth2img", "dpm-solver++"),
        ("sd3-img2img", "ddim"),
        ("flux-img2img", "ddim"),
    ],
)
def test_image_to_image_equals_stock(name, solver):
    family = FAMILIES[name]
    name, changed = family.stock[solver]
    stock, ours = matrix.beside_stock(family, name, solver, changed)
    given = {"steps": 10, "strength": 0.6}
    expected, _ = family.run(stock, **given)
    result, _ = family.run(ours, **given)
    scale = float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=0, atol=matrix.PARITY * scale)


def base_and_refiner(solver, steps=10, split=0.8, **options):
    """(latents, times of the base, times of the refiner) of a split run from fixed noise."""
    base, refiner = FAMILIES["sdxl"], FAMILIES["sdxl-img2img"]
    scheduler = matrix.ours(base, solver, **options)
    start = normal(1, 4, 8, 8, seed=2)
    handed, first = base.run(scheduler, steps=steps, latents=start, denoising_end=split)
    latents, second = refiner.run(scheduler, steps=steps, image=handed, denoising_start=split)
    return latents, first, second


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "unipc", "heun", SINGLESTEP], ids=str)
def test_base_and_refiner_share_the_evaluations(solver):
    """The refiner goes on where the base stopped: n evaluations in all, at falling times.

    Heun evaluates every time but the first twice, and the pipeline splits by time.
    """
    latents, first, second = base_and_refiner(solver)
    assert len(first) + len(second) == 10
    assert first + second == sorted(first + second, reverse=True)
    assert first[-1] >= 200 > second[-1] and (second[0] < 200 or solver == "heun")
    assert latents.isfinite().all()


def test_a_one_step_solver_does_not_feel_the_split():
    whole, _ = FAMILIES["sdxl"].run(
        matrix.ours(FAMILIES["sdxl"], "ddim"), steps=10, latents=normal(1, 4, 8, 8, seed=2)
    )
    split, _, _ = base_and_refiner("ddim")
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


# Explicit grids


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver++"])
@pytest.mark.parametrize("name", ["sd", "sd-controlnet", "sdxl", "pixart-sigma"])
def test_custom_timesteps(name, solver):
    asked = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    family = FAMILIES[name]
    latents, times = family.run(
        matrix.ours(family, solver), timesteps=asked, steps=None, num_inference_steps=len(asked)
    )
    assert times == asked and latents.isfinite().all()


def test_custom_sigmas_of_a_variance_preserving_model():
    """sigma / alpha of all nodes, the end included: one evaluation fewer than numbers."""
    family = FAMILIES["sdxl"]
    published = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]
    scheduler = matrix.ours(family, "dpm-solver++")
    latents, times = family.run(scheduler, sigmas=published)
    assert len(times) == 10 and latents.isfinite().all()
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(published), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["sd3", "lumina2", "sana"])
def test_custom_sigmas_of_a_flow_model_are_shifted_as_in_diffusers(name):
    family = FAMILIES[name]
    asked = [1.0, 0.8, 0.4, 0.1]
    scheduler = matrix.ours(family, "unipc")
    config = scheduler.config
    shift = config["flow_shift"] if config["shift"] is None else config["shift"]
    latents, _ = family.run(scheduler, sigmas=asked)
    expected = [1000 * shift * t / (1 + (shift - 1) * t) for t in asked]
    assert scheduler.timesteps.tolist() == pytest.approx(expected, rel=1e-6)
    assert latents.isfinite().all()


# Edits between the steps


def test_a_callback_that_edits_latents_is_heard():
    """Latents that the callback sets at the end of a step are those the network sees next."""
    family = FAMILIES["sd"]
    pipe = family.build()
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].clone()), with_kwargs=True
    )

    def callback(pipe, step, timestep, kwargs):
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 2 else {}

    scheduler = matrix.ours(family, "unipc")
    edited, _ = family.run(scheduler, callback_on_step_end=callback)
    hook.remove()
    assert not seen[3].any() and seen[2].any()
    assert not torch.equal(edited, family.run(scheduler)[0])


def kept_region_drift(scheduler, steps):
    """How far the kept half is from the noised image when a step hands it back, rms, per step.

    The pipeline puts the kept half right after each step. A solver that heard of it starts the
    next step from there.
    """
    family = FAMILIES["sd-inpaint"]
    blended = []

    def callback(pipe, step, timestep, kwargs):
        blended.append(kwargs["latents"])
        return {}

    pipe = family.build()
    with using(pipe, scheduler), last_state(scheduler) as states:
        family.call(pipe, steps=steps, callback_on_step_end=callback)
    kept = (mask() == 0).expand_as(blended[0])
    pairs = zip(states, blended, strict=True)
    return [float((own - right)[kept].square().mean().sqrt()) for own, right in pairs]


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_inpainting_with_unipc_keeps_what_is_to_be_kept(steps):
    """Stock's corrector restarts from states before the blend, so that its drift grows.

    Ours falls at every step, and is DPM++2M's within a tenth. The last step goes to sigma = 0: it
    is the network's own data prediction.
    """
    config = FAMILIES["sd-inpaint"].build().scheduler.config
    ours = kept_region_drift(
        PlanScheduler.from_config(config, solver="unipc", timestep_spacing="linspace"), steps
    )
    stock = kept_region_drift(diffusers.UniPCMultistepScheduler.from_config(config), steps)
    plain = kept_region_drift(diffusers.DPMSolverMultistepScheduler.from_config(config), steps)
    assert all(earlier > later for earlier, later in pairwise(ours[:-1]))
    assert ours == pytest.approx(plain, rel=0.1)
    assert stock[: steps // 2] == sorted(stock[: steps // 2])
    assert max(stock) > 1.8 * stock[0] and max(stock) > 3 * max(ours[1:])


# Saving and loading

RELOAD = """
import sys
import torch
import diffusers
import logsnr.adapters
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
folder, given, result = sys.argv[1:]
pipe = diffusers.DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
assert type(pipe.scheduler) is logsnr.adapters.PlanScheduler
pipe.set_progress_bar_config(disable=True)
images = pipe(
    **load_file(given), num_inference_steps=4, generator=torch.Generator().manual_seed(0),
    height=8, width=8, output_type="pt",
).images
save_file({"images": images}, result)
"""


def test_a_pipeline_gives_the_same_image_in_a_fresh_process(tmp_path):
    family = FAMILIES["sd"]
    pipe = family.build()
    own = pipe.scheduler
    with using(pipe, matrix.ours(family, SINGLESTEP, use_karras_sigmas=True)):
        images = family.call(pipe, steps=4, output_type="pt")
        pipe.save_pretrained(tmp_path / "pipe")
    save_file(prompt(), tmp_path / "given")
    paths = [str(tmp_path / name) for name in ("pipe", "given", "result")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", RELOAD, *paths], check=True, env=offline)
    assert torch.equal(load_file(paths[-1])["images"], images)

    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        paths[0], text_encoder=None, tokenizer=None
    )
    assert loaded.scheduler.config.solver == SINGLESTEP
    back = loaded.scheduler.to_stock()
    assert all(back.config[key] == own.config[key] for key in own.config if key[0] != "_")
