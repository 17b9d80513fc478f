"""Bad input to PlanScheduler, and schedulers whose place it cannot take: clear errors."""

from __future__ import annotations

import diffusers
import pytest
import torch
from scheduler_cases import EDM, LATENT, drive, network, scheduler_for, start

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.stock_classes import REFUSED, REPLACED, init_keys


def bad_step(solver="unipc", timesteps=(900, 600, 300, 100), **changes):
    def call():
        scheduler = scheduler_for(solver)
        scheduler.set_timesteps(timesteps=timesteps)
        t = scheduler.timesteps[0]
        scheduler.step(**{"model_output": start(), "timestep": t, "sample": start(), **changes})

    return call


def bad_timesteps(*args, config=None, **kwargs):
    options = {**LATENT, "solver": "unipc", **(config or {})}
    return lambda: PlanScheduler(**options).set_timesteps(*args, **kwargs)


def steps_too_many():
    scheduler = scheduler_for("unipc")
    scheduler.set_timesteps(2)
    drive(scheduler, start())
    scheduler.step(start(), 0, start())


def begins_at(index):
    def call():
        scheduler = scheduler_for("unipc")
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(index)

    return call


FLOW = {"shift": 1.0}
FLOW_DYNAMIC = {"shift": 1.0, "use_dynamic_shifting": True}
FLOW_INVERTED = {"shift": 1.0, "invert_sigmas": True}
BAD = {
    "unknown solver": (lambda: scheduler_for("eulr"), "solver='eulr'.*unipc"),
    "mapping without name": (lambda: scheduler_for({"order": 2}), "solver=.*'name'"),
    "unknown option": (
        bad_timesteps(5, config={"solver": {"name": "ddim", "odrer": 2}}),
        "odrer=2.*option of 'ddim'.*eta",
    ),
    "unknown key": (
        lambda: PlanScheduler.from_config(PlanScheduler().config, solver_odrer=2),
        "solver_odrer=2.*solver_order",
    ),
    "solver_order": (bad_timesteps(5, config={"solver_order": 0}), "solver_order=0"),
    "order too high": (
        bad_timesteps(9, config={"solver": "dpm-solver++", "solver_order": 4}),
        "order=4",
    ),
    "solver_type": (bad_timesteps(5, config={"solver_type": "bh3"}), "solver_type='bh3'.*bh2"),
    "prediction_type": (
        bad_timesteps(5, config={"prediction_type": "noise"}),
        "prediction_type='noise'.*epsilon",
    ),
    "beta_schedule": (
        bad_timesteps(5, config={"beta_schedule": "cosine"}),
        "beta_schedule='cosine'.*squaredcos",
    ),
    "timestep_spacing": (
        bad_timesteps(5, config={"timestep_spacing": "log"}),
        "timestep_spacing='log'.*trailing",
    ),
    "final_sigmas_type": (
        bad_timesteps(5, config={"final_sigmas_type": "one"}),
        "final_sigmas_type='one'.*sigma_min",
    ),
    "train timesteps": (
        bad_timesteps(5, config={"num_train_timesteps": 0}),
        "num_train_timesteps=0",
    ),
    "betas": (bad_timesteps(5, config={"beta_end": 2.0}), "beta_end=2.0.*< 1"),
    "words for timesteps": (bad_timesteps(timesteps=["a"]), "timesteps=.*list of numbers"),
    "rows of timesteps": (bad_timesteps(timesteps=[[9, 5]]), "timesteps=.*list of numbers"),
    "evaluation at sigma 0, flow": (
        bad_timesteps(timesteps=[900, 0], config={"shift": 1.0}),
        "timesteps=.*called at sigma = 0",
    ),
    "evaluation at sigma 0": (bad_timesteps(sigmas=[3.0, 0.0, 0.0]), "called at sigma = 0"),
    "word for mu": (bad_timesteps(5, mu="high"), "mu='high'"),
    "a scheduler for a config": (
        lambda: PlanScheduler.from_config(diffusers.DDIMScheduler()),
        r"config is a DDIMScheduler.*\.config",
    ),
    "negative eta": (bad_step(eta=-0.5, solver="ddim"), "eta=-0.5"),
    "a copy of a repeated time": (bad_step(timesteps=[900, 500, 500], timestep=500), "=500 occurs"),
    "noise at a time beyond training": (
        lambda: scheduler_for("ddim").add_noise(start(), start(), torch.tensor([1000])),
        r"timesteps has 1000.*\[0, 999\]",
    ),
    "noise of another shape": (
        bad_step(solver={"name": "ddim", "eta": 1.0}, variance_noise=torch.zeros(3, 3)),
        r"variance_noise has shape \(3, 3\)",
    ),
    "nothing given": (bad_timesteps(), "num_inference_steps is missing"),
    "no steps": (bad_timesteps(0), "num_inference_steps=0"),
    "half steps": (bad_timesteps(2.5), "num_inference_steps=2.5"),
    "more steps than trained": (bad_timesteps(1001), "num_inference_steps=1001.*1000"),
    "rising timesteps": (bad_timesteps(timesteps=[100, 500]), "timesteps=.*falling"),
    "timesteps out of range": (bad_timesteps(timesteps=[1000, 500]), r"timesteps=.*\[0, 999\]"),
    "NaN in timesteps": (bad_timesteps(timesteps=[float("nan")]), "timesteps=.*finite"),
    "rising sigmas": (bad_timesteps(sigmas=[1.0, 2.0, 0.0]), "sigmas=.*falling"),
    "negative sigmas": (bad_timesteps(sigmas=[1.0, -1.0]), "sigmas has -1.0"),
    "flow sigmas": (bad_timesteps(sigmas=[1.5, 0.5], config=FLOW), "sigmas give.*[0, 1]"),
    "wrong count": (bad_timesteps(3, timesteps=[9, 8]), "num_inference_steps=3.*2"),
    "negative shift": (bad_timesteps(3, config={"shift": -1.0}), "^shift=-1.0"),
    "negative flow_shift": (
        bad_timesteps(3, config={"use_flow_sigmas": True, "flow_shift": -1.0}),
        "^flow_shift=-1.0",
    ),
    "a shift beyond all numbers": (bad_timesteps(3, mu=800.0, config=FLOW_DYNAMIC), "^mu=800.0"),
    "no shift": (bad_timesteps(3, mu=float("nan"), config=FLOW_DYNAMIC), "^mu=nan"),
    "a shift without a flow": (bad_timesteps(3, mu=1.0), "^mu=1.0.*flow models"),
    "shift_terminal": (bad_timesteps(3, config={**FLOW, "shift_terminal": 1.5}), "terminal=1.5"),
    "negative shift_terminal": (
        bad_timesteps(3, config={**FLOW, "shift_terminal": -0.1, "timestep_spacing": "time"}),
        "shift_terminal=-0.1",
    ),
    "sample_size": (lambda: PlanScheduler(sample_size=(8, 0)), r"sample_size=\(8, 0\)"),
    "before set_timesteps": (
        lambda: scheduler_for("unipc").step(start(), 0, start()),
        "before set_timesteps",
    ),
    "after the end": (steps_too_many, "timestep=0 is not one of the run's timesteps.*nearest"),
    "rising times": (bad_timesteps(timesteps=[0.5, 0.1], config=FLOW_INVERTED), "falling"),
    "two flags": (
        bad_timesteps(5, config={"use_karras_sigmas": True, "use_beta_sigmas": True}),
        "use_karras_sigmas=True and use_beta_sigmas=True",
    ),
    "a flag and a name": (
        bad_timesteps(5, config={"use_karras_sigmas": True, "timestep_spacing": "logsnr"}),
        "timestep_spacing='logsnr'.*karras",
    ),
    "logsnr at zero SNR": (
        bad_timesteps(
            5,
            config={"rescale_betas_zero_snr": True, "timestep_spacing": "logsnr"},
        ),
        "zero terminal SNR",
    ),
    "training steps for edm": (
        bad_timesteps(5, config={**EDM, "timestep_spacing": "trailing"}),
        "timestep_spacing='trailing'.*sigma_data.*karras",
    ),
    "location of another spacing": (
        lambda: PlanScheduler(timestep_spacing="karras", location=0.3),
        "location=0.3 belongs to spacing logistic",
    ),
    "location": (lambda: PlanScheduler(location="left"), "location='left': need a number"),
    "scale": (lambda: PlanScheduler(scale=-1.0), "scale=-1.0: need a positive"),
    "edm without range": (
        lambda: PlanScheduler(sigma_data=0.5),
        "sigma_min=None, sigma_max=None",
    ),
    "edm prediction": (
        bad_timesteps(5, config={**EDM, "prediction_type": "sample"}),
        "prediction_type='sample'.*sigma_data",
    ),
    "sigma_schedule": (
        lambda: PlanScheduler(**EDM, sigma_schedule="beta"),
        "sigma_schedule='beta'.*karras",
    ),
    "ramp of Cosmos": (
        bad_timesteps(sigmas=[0.0, 0.5, 1.0], config=EDM),
        "sigmas=.*EDMEulerScheduler",
    ),
    "disable_corrector": (
        bad_timesteps(5, config={"disable_corrector": ["0"]}),
        "disable_corrector=",
    ),
    "half an offset": (
        bad_timesteps(5, config={"timestep_spacing": "leading", "steps_offset": 2.5}),
        "steps_offset=2.5: need a whole number",
    ),
    "a negative offset of a flow": (
        bad_timesteps(5, config={**FLOW, "timestep_spacing": "leading", "steps_offset": -3}),
        "steps_offset=-3: need a whole number",
    ),
    "disable_corrector is no list": (
        bad_timesteps(5, config={"disable_corrector": 3}),
        "disable_corrector=3: need a list",
    ),
    "clip_sample_range": (
        bad_timesteps(5, config={"clip_sample": True, "clip_sample_range": -1.0}),
        "clip_sample_range=-1.0: need a positive",
    ),
    "everything clipped": (
        bad_timesteps(900, config={"lambda_min_clipped": 0.0}),
        "lambda_min_clipped=0.0 leaves",
    ),
    "betas of Shap-E": (
        bad_timesteps(5, config={"beta_schedule": "exp"}),
        "beta_schedule='exp'.*Shap-E",
    ),
    "strength": (begins_at(8), "begin_index=8.*strength"),
    "begins before the start": (begins_at(-1), "begin_index=-1"),
    "output shape": (bad_step(model_output=start()[:, :1]), "model_output has shape"),
    "integer sample": (bad_step(sample=start().long()), "sample is torch.int64"),
    "device": (bad_step(model_output=start().to("meta")), "model_output is on meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_the_network_is_called(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_schedulers_whose_place_cannot_be_taken_are_refused(name):
    with pytest.raises(ValueError, match=f"_class_name='{name}': PlanScheduler cannot"):
        PlanScheduler.from_config({"_class_name": name}, solver="unipc")
    kind = getattr(diffusers, name, None)
    if kind is None or init_keys(name) == init_keys("FlowMatchHeunDiscreteScheduler"):
        return
    try:
        config = kind().config  # without its class's name: by its keys
    except TypeError:
        return  # it has no defaults
    with pytest.raises(ValueError, match="PlanScheduler cannot take the place"):
        PlanScheduler.from_config(config, solver="unipc")


def test_every_scheduler_of_diffusers_is_replaced_or_refused():
    named = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert named <= {*REPLACED, *REFUSED}


def test_cosmos_1_is_told_why_it_cannot_run():
    scheduler = PlanScheduler(**EDM)
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    result = scheduler.step(network(start(), t), t, start(), return_dict=False)
    assert result[0].shape == start().shape
    for call in (lambda: result[1], lambda: scheduler._get_conditioning_c_in(1.0)):
        with pytest.raises(ValueError, match="Cosmos 1.*EDMEulerScheduler"):
            call()
