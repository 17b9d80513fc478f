"""Names that people bring: aliases, spellings, suggestions, and whose words an error uses."""

from __future__ import annotations

import re

import diffusers
import pytest
import torch
from places import ROOT

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.harness.contenders import parse_contender
from logsnr.solvers import SOLVERS, SPACINGS, VPLinear, make_plan
from logsnr.solvers.names import ABSENT, ALIASES

VP = VPLinear()
MEANT = {
    "UniPC": ("unipc", {}),
    "uni_pc": ("unipc", {"variant": "bh1"}),
    "uni_pc_bh2": ("unipc", {"variant": "bh2"}),
    "unipc-3": ("unipc", {"order": 3}),
    "unipc_2": ("unipc", {"order": 2}),
    "UniPCMultistepScheduler": ("unipc", {}),
    "DEIS": ("deis", {}),
    "deis-2": ("deis", {"order": 2}),
    "adams-9": ("adams", {"order": 9}),
    "dpmpp_2m": ("dpm-solver++", {"order": 2}),
    "DPM++ 2M": ("dpm-solver++", {"order": 2}),
    "dpm++3m": ("dpm-solver++", {"order": 3}),
    "dpmpp_3m": ("dpm-solver++", {"order": 3}),
    "dpmpp_2s": ("dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "DPMSolverMultistep": ("dpm-solver++", {}),
    "dpm_solver++": ("dpm-solver++", {}),
    "DPM-Solver-v3": ("dpm-solver-v3", {}),
    "dpm_2": ("dpm2", {}),
    "dpm-solver-2": ("dpm-solver", {"order": 2}),
    "Heun": ("heun", {}),
    "EulerDiscreteScheduler": ("euler", {}),
    "plms": ("ipndm", {"order": 4}),
    "lms_discrete": ("lms", {}),
    "Euler a": ("euler-ancestral", {}),
    "euler_ancestral": ("euler-ancestral", {}),
    "EulerAncestralDiscreteScheduler": ("euler-ancestral", {}),
    "DPM2 a": ("dpm2-ancestral", {}),
    "dpm_2_ancestral": ("dpm2-ancestral", {}),
    "KDPM2AncestralDiscreteScheduler": ("dpm2-ancestral", {}),
    "DPM++ 2S a": ("dpm++2s-ancestral", {}),
    "dpmpp_2s_ancestral": ("dpm++2s-ancestral", {}),
    "DDPMScheduler": ("ddpm", {}),
    "Flow-GRPO": ("euler-maruyama", {"diffusion": "flow-grpo"}),
    "DanceGRPO": ("euler-maruyama", {"diffusion": "constant"}),
    "DPM++ 2M SDE": ("sde-dpm-solver++", {"order": 2}),
    "DPM++ 2M SDE Heun": ("sde-dpm-solver++", {"order": 2, "solver_type": "heun"}),
    "dpmpp_3m_sde_gpu": ("sde-dpm-solver++", {"order": 3, "solver_type": "heun"}),
    "dpmpp_sde": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "DPMSolverSDEScheduler": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "sde-dpmsolver++": ("sde-dpm-solver++", {}),
    "seeds_2": ("seeds", {"order": 2}),
    "seeds_3": ("seeds", {"order": 3}),
    "res_multistep": ("res", {}),
    "res_multistep_ancestral": ("res", {"eta": 1.0}),
    "gradient_estimation": ("gradient-estimation", {}),
}


@pytest.mark.parametrize("typed", MEANT)
def test_a_name_means_the_same_plan_everywhere(typed):
    name, options = MEANT[typed]
    expected = make_plan(name, VP, nfe=12, **options)
    plan = make_plan(typed, VP, nfe=12)
    assert (plan.solver, plan.rows) == (name, expected.rows)
    ours, aliased = (PlanScheduler(solver=solver) for solver in ({"name": name, **options}, typed))
    for scheduler in (ours, aliased):
        scheduler.set_timesteps(9)
    assert aliased.timesteps.tolist() == ours.timesteps.tolist()
    if not hasattr(diffusers, f"{typed.removesuffix('Scheduler')}Scheduler"):
        contender = parse_contender(typed)  # which else is the scheduler of diffusers
        assert (contender.name, contender.options) == (name, options)


def test_every_alias_is_a_solver_with_those_options():
    for typed, (name, options) in ALIASES.items():
        assert typed not in SOLVERS and options.keys() <= SOLVERS[name].defaults.keys()
        assert make_plan(typed, VP, nfe=12).solver == name


def test_the_config_keeps_the_word_and_reads_it_again(tmp_path):
    PlanScheduler(solver="dpmpp_3m").save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path)
    assert again.config.solver == "dpmpp_3m"
    assert "solver_order" not in again.to_json_string()


@pytest.mark.parametrize("typed", [*ABSENT, "euler_cfg_pp", "DPM++ 2M CFG++", "LCM"])
def test_what_is_not_here_says_what_is(typed):
    for ask in (lambda: make_plan(typed, VP, nfe=5), lambda: PlanScheduler(solver=typed)):
        with pytest.raises(ValueError, match="choose one of adams, .*; ") as caught:
            ask()
        assert repr(typed) in str(caught.value)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_misspelled_solver_is_recognised(name):
    for typed in (f"x{name}", f"{name[:2]}{name[3:]}", f"{name}s"):
        try:
            make_plan(typed, VP, nfe=12)
        except ValueError as error:
            assert "did you mean" in str(error)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: make_plan("unipcc", VP, nfe=5), "solver='unipcc'.*did you mean 'unipc'"),
        (lambda: make_plan("unipc", VP, nfe=5, ordr=2), "ordr=2.*did you mean 'order'"),
        (lambda: make_plan("ddim", VP, nfe=5, spacing="karas"), "spacing='karas'.*'karras'"),
        (
            lambda: PlanScheduler(timestep_spacing="trailling"),
            "timestep_spacing='trailling'.*did you mean 'trailing'",
        ),
        (
            lambda: PlanScheduler.from_config({}, solver_ordr=2),
            "solver_ordr=2.*did you mean 'solver_order'",
        ),
        (
            lambda: PlanScheduler.from_config({}, use_karas_sigmas=True),
            "use_karas_sigmas=True.*did you mean 'use_karras_sigmas'",
        ),
        (
            lambda: PlanScheduler.from_config({}, solver="unipc", corrector=False),
            "solver={'name': 'unipc', 'corrector': False}",
        ),
        (lambda: PlanScheduler(solver="DPM++ 2M Karras"), "'DPM\\+\\+ 2M' with 'karras'"),
    ],
)
def test_the_nearest_name_is_suggested(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()


@pytest.mark.parametrize("typed", ["normal", "SGM Uniform", "ddim_uniform", "simple", "AYS"])
def test_spacings_of_other_programs_say_what_comes_near(typed):
    for ask in (
        lambda: make_plan("unipc", VP, nfe=5, spacing=typed),
        lambda: PlanScheduler(timestep_spacing=typed),
    ):
        with pytest.raises(ValueError, match=f"{typed}.*; (it depends|trailing|there are)"):
            ask()


def test_options_have_their_other_names():
    expected = make_plan("unipc", VP, nfe=9, order=2, spacing="karras")
    plan = make_plan("unipc", VP, nfe=9, solver_order=2, timestep_spacing="Karras")
    assert plan.rows == expected.rows
    config = diffusers.UniPCMultistepScheduler().config
    ours = PlanScheduler.from_config(config, solver="unipc", order=3, spacing="trailing")
    assert (ours.config.solver_order, ours.config.timestep_spacing) == (3, "trailing")
    assert "order" not in ours.config
    assert PlanScheduler(order=3).config.solver_order == 3


@pytest.mark.parametrize("key", ["order", "solver_order"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "three", True, 17])
def test_an_order_is_checked_at_once_in_the_words_of_the_user(key, value):
    for ask in (
        lambda: PlanScheduler(**{key: value}),
        lambda: PlanScheduler.from_config({}, solver="deis", **{key: value}),
        lambda: make_plan("unipc", VP, nfe=20, **{key: value}),
    ):
        with pytest.raises(ValueError, match=f"^{key}={value!r}: "):
            ask()


@pytest.mark.parametrize("key", ["spacing", "timestep_spacing"])
def test_a_spacing_is_checked_at_once_in_the_words_of_the_user(key):
    for ask in (
        lambda: PlanScheduler(**{key: "nonesuch"}),
        lambda: PlanScheduler.from_config({}, **{key: "nonesuch"}),
        lambda: make_plan("unipc", VP, nfe=20, **{key: "nonesuch"}),
    ):
        with pytest.raises(ValueError, match=f"^{key}='nonesuch': choose one of"):
            ask()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_spacing_has_any_case(spacing):
    ends = {"t_start": 1.0, "t_end": 1e-3}
    expected = make_plan("ddim", VP, nfe=6, spacing=spacing, **ends)
    for typed in (spacing.upper(), spacing.title().replace("-", "_")):
        assert make_plan("ddim", VP, nfe=6, spacing=typed, **ends).rows == expected.rows
        assert PlanScheduler(timestep_spacing=typed).config.timestep_spacing == spacing


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: make_plan("unipc-3", VP, nfe=9, order=2), "order=2: solver='unipc-3' means"),
        (lambda: make_plan("unipc-3", VP, nfe=9, solver_order=2), "solver_order=2: solver="),
        (lambda: make_plan("unipc", VP, nfe=9, order=2, solver_order=3), "are one option"),
        (lambda: PlanScheduler(solver="unipc-3", solver_order=2), "solver_order=2: solver="),
        (lambda: PlanScheduler(solver="unipc-3", order=2), "^order=2: solver="),
        (lambda: PlanScheduler(order=2, solver_order=2), "are one option"),
        (lambda: PlanScheduler(solver={"name": "unipc-3", "order": 2}), "order=2: solver="),
        (
            lambda: PlanScheduler.from_config({}, solver="uni_pc", solver_type="bh2"),
            "solver_type='bh2': solver='uni_pc' means variant='bh1'",
        ),
    ],
)
def test_contradictions_are_refused(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()


def test_the_name_of_the_solver_wins_over_the_config_of_another_scheduler():
    config = diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2").config
    for typed, name, order in (("dpmpp_3m", "dpm-solver++", 3), ("unipc-3", "unipc", 3)):
        scheduler = PlanScheduler.from_config(config, solver=typed)
        plain = PlanScheduler.from_config(config, solver=name, solver_order=order)
        x = [torch.linspace(-2, 2, 8)] * 2
        for i, run in enumerate((scheduler, plain)):
            run.set_timesteps(8)
            for t in run.timesteps:
                x[i] = run.step(torch.sin(3 * x[i]), t, x[i]).prev_sample
        assert torch.equal(*x)


def rows() -> list[tuple[list[str], str]]:
    """(names, what to write) of docs/pipelines.md's table of other programs' names."""
    page = (ROOT / "docs" / "pipelines.md").read_text()
    table = page.split("## From the names you know")[1].split("Spacings have their own")[0]
    lines = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")][1:]
    return [
        (
            re.findall(r"[^`,;]+", theirs.replace("`", ""))
            + re.findall(r"`(\w+Scheduler)`", stock),
            ours,
        )
        for theirs, stock, ours in lines
    ]


@pytest.mark.parametrize("names, write", rows(), ids=lambda value: str(value)[:30])
def test_the_names_of_the_table_may_be_given_as_they_stand(names, write):
    meant = re.search(r'(?:solver=|"name": )"([^"]+)"', write)
    for name in map(str.strip, names):
        if "flow models" in "".join(names) and "Scheduler" not in name:
            continue  # the same name is the method for other models
        if meant is None or "not yet" in write or name in AS_WRITTEN:
            with pytest.raises(ValueError, match="choose one of "):
                make_plan(name, VP, nfe=12)
        else:
            assert make_plan(name, VP, nfe=12).solver == meant[1]


AS_WRITTEN = ("DPM++ 2M Karras",)
"""Of which the table says what comes near, under another name or with another option."""
