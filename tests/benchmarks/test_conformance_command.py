"""``logsnr conformance``: what it matches, and that it fails when something is wrong."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMParallelScheduler, UniPCMultistepScheduler
from places import DATA
from typer import Typer
from typer.testing import CliRunner

from logsnr.benchmarks.cli.conformance import conformance
from logsnr.benchmarks.official import cases as official
from logsnr.benchmarks.official import diffusers_schedulers as official_diffusers
from logsnr.benchmarks.official.compare import (
    TOLERANCE,
    check_folder,
    compare,
    read_cases,
    summarise,
)
from logsnr.benchmarks.official.sigma import vp_of
from logsnr.benchmarks.problems.analytic import Mixture
from logsnr.solvers import VPLinear

MODEL = Mixture.load(DATA / "model.json")


@pytest.fixture(scope="module")
def comparisons():
    return check_folder(DATA)


def run_command(*arguments):
    app = Typer()
    app.command()(conformance)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def unipc_case():
    return next(case for case in read_cases(DATA, ["unipc"]) if case.config["order"] == 2)


def copy_with(tmp_path, change):
    """A copy of the unipc cases after ``change`` of the list of index entries and the arrays."""
    for name in ("model.json", "problems.npz"):
        shutil.copy(DATA / name, tmp_path)
    index = json.loads((DATA / "unipc.json").read_text())
    index["cases"] = index["cases"][:3]
    with np.load(DATA / "unipc.npz", allow_pickle=False) as file:
        arrays = dict(file)
    change(index["cases"], arrays)
    (tmp_path / "unipc.json").write_text(json.dumps(index))
    np.savez(tmp_path / "unipc.npz", **arrays)
    return tmp_path


def test_every_case_is_matched_or_explained(comparisons):
    unexplained = [entry for entry in comparisons if entry.status == "unexplained"]
    assert not unexplained
    assert all(entry.reason for entry in comparisons if entry.status != "matched")


def test_at_least_95_percent_are_matched_within_the_tolerance(comparisons):
    matched = [entry for entry in comparisons if entry.status == "matched"]
    finite = [e for e in comparisons if "not finite" not in e.reason]
    assert len(matched) >= 0.95 * len(finite)
    assert max(entry.error for entry in matched) <= TOLERANCE


@pytest.mark.parametrize("family", ["dpm_solver", "unipc", "edm_thuml", "deis", "dpm_solver_v3"])
def test_families_without_known_defects_are_matched_completely(comparisons, family):
    (summary,) = summarise([entry for entry in comparisons if entry.family == family])
    assert summary.matched == summary.cases > 0


def test_other_start_states_are_run_not_looked_up():
    case = unipc_case()
    assert compare(case, MODEL).status == "matched"
    other = compare(replace(case, x_T=case.x_T[::-1]), MODEL)
    assert (other.status, other.reason) == ("unexplained", "the result differs")
    permuted = replace(
        case, x_T=case.x_T[::-1], arrays={**case.arrays, "final": case.arrays["final"][::-1]}
    )
    assert compare(permuted, MODEL).status == "matched"


@pytest.mark.parametrize(
    "change",
    [
        {"order": 3},
        {"variant": "bh3"},
        {"skip_type": "time_quadratic"},
        {"t_end": 2e-3},
        {"lower_order_final": None, "steps": 1},
    ],
)
def test_another_configuration_does_not_match(change):
    case = unipc_case()
    assert any(case.config[key] != value for key, value in change.items())
    config = {**case.config, **change}
    assert compare(replace(case, config=config), MODEL).status == "unexplained"


def test_a_configuration_without_an_option_is_unexplained():
    case = unipc_case()
    config = {key: value for key, value in case.config.items() if key != "skip_type"}
    found = compare(replace(case, config=config), MODEL)
    assert (found.status, found.reason) == ("unexplained", "the case has no 'skip_type'")


def test_number_and_times_of_the_calls_must_match_too():
    case = unipc_case()
    times = case.arrays["t_eval"]
    for wrong in (times[:-1], times * (1 + 1e-6)):
        found = compare(replace(case, arrays={**case.arrays, "t_eval": wrong}), MODEL)
        assert found.status == "unexplained"
        assert "network calls" in found.reason
        assert found.error < TOLERANCE


def test_an_official_result_that_is_not_finite_is_a_difference_if_ours_is_finite():
    case = unipc_case()
    broken = {**case.arrays, "final": np.full_like(case.arrays["final"], np.nan)}
    found = compare(replace(case, arrays=broken), MODEL)
    assert found.status == "difference"
    assert "not finite" in found.reason


def test_an_unknown_family_is_unexplained():
    assert compare(replace(unipc_case(), family="other"), MODEL).status == "unexplained"


def test_a_wrong_result_larger_than_rounding_is_not_excused_as_rounding():
    case = unipc_case()
    moved = {**case.arrays, "final": case.arrays["final"] * (1 + 1e-8)}
    assert compare(replace(case, arrays=moved), MODEL).status == "unexplained"


def test_every_recipe_names_a_schedule_that_is_known():
    with pytest.raises(ValueError, match="schedule='sine'"):
        official.schedule_of(replace(unipc_case(), schedule="sine"))


def test_command_prints_a_line_a_family_and_succeeds():
    result = run_command(DATA, "--family", "unipc", "--family", "deis")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines() if line.strip()}
    assert lines["unipc"][1] == lines["unipc"][2] == "55"
    assert lines["deis"][1] == lines["deis"][2] == "36"


def test_command_writes_json(tmp_path):
    result = run_command(DATA, "--family", "unipc", "--json", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "out.json").read_text())
    (family,) = record["families"]
    assert (family["matched"], family["unexplained"]) == (55, 0)
    assert len(record["cases"]) == 55


def test_command_fails_and_lists_what_is_unexplained(tmp_path):
    def spoil(cases, arrays):
        arrays[cases[1]["arrays"]["final"]] *= 1 + 1e-7

    folder = copy_with(tmp_path, spoil)
    result = run_command(folder, "-v")
    assert result.exit_code == 1
    spoiled = json.loads((folder / "unipc.json").read_text())["cases"][1]
    assert f"{spoiled['id']} {spoiled['name']}: unexplained" in result.output


def test_command_names_what_is_missing(tmp_path):
    assert run_command(tmp_path).exit_code == 2
    result = run_command(DATA, "--family", "unknown")
    assert result.exit_code == 2
    assert "unipc" in result.output


def parallel_ddim(n: int, spacing: str):
    """A case of ParaDiGMs with a window of 1, stepped by diffusers' edition of its scheduler.

    Also the official result, and that of first-order steps written out that go to t - N // n.
    """
    case = next(read_cases(DATA, ["paradigms"]))
    schedule = official.schedule_of(case)
    table = schedule.alphas_cumprod.numpy()
    scheduler = DDIMParallelScheduler(
        clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.set_timesteps(n)
    x = torch.from_numpy(case.x_T)
    ours = case.x_T
    for t in scheduler.timesteps:
        eps = MODEL.predict(x, float(table[t] ** 0.5), float((1 - table[t]) ** 0.5))[0]
        x = scheduler.batch_step_no_noise(eps, t[None], x)
        eps = MODEL.predict(torch.from_numpy(ours), *np.sqrt([table[t], 1 - table[t]]).tolist())[0]
        to = int(t) - 1000 // n
        bar = table[to] if to >= 0 else 1.0
        data = (ours - np.sqrt(1 - table[t]) * eps.numpy()) / np.sqrt(table[t])
        ours = np.sqrt(bar) * data + np.sqrt(1 - bar) * eps.numpy()
    timesteps = scheduler.timesteps.numpy()
    arrays = {"final": x.numpy(), "timesteps": timesteps, "window_begin_timesteps": timesteps}
    config = {**case.config, "num_inference_steps": n, "timestep_spacing": spacing, "parallel": 1}
    return replace(case, config=config, arrays=arrays, nfe=n), ours


@pytest.mark.parametrize(
    ("n", "spacing", "status"),
    [
        (10, "trailing", "matched"),
        (13, "leading", "matched"),
        (13, "trailing", "difference"),
        (64, "trailing", "difference"),
        (30, "trailing", "difference"),
    ],
)
def test_paradigms_steps_to_a_timestep_that_its_list_may_not_have(n, spacing, status):
    case, written_out = parallel_ddim(n, spacing)
    np.testing.assert_allclose(case.arrays["final"], written_out, rtol=0, atol=1e-12)
    found = compare(case, MODEL)
    assert found.status == status
    assert (status == "matched") == ("t - N // n" not in found.reason)


LEVELS = {  # sigma(t) and its inverse; the derivative by differences
    "linear": (lambda t: t, lambda sigma: sigma),
    "ve": (lambda t: t**0.5, lambda sigma: sigma**2),
    "vp": (None, None),  # that of the range of sigma
}


def in_time(scheme: str, scaled: bool, heun: bool, share: float, churn: float):
    """A case of EDM's ablations: its sampler written out for x = s (x0 + sigma n)."""
    case = next(c for c in read_cases(DATA, ["nvlabs_edm"]) if "solver" in c.config)
    generator, points, ends = np.random.default_rng(0), 6, (20.0, 0.05)
    levels = np.linspace(ends[0] ** (1 / 7), ends[1] ** (1 / 7), points) ** 7
    at, back = LEVELS[scheme]
    if scheme == "vp":
        vp = vp_of(*ends)
        at = lambda t: math.sqrt(math.expm1(vp.slope * t**2 / 2 + vp.offset * t))  # noqa: E731
        back = vp.time

    def scale(t):
        return 1 / math.sqrt(1 + at(t) ** 2) if scaled else 1.0

    def derivative(function, t):
        d = 1e-4 * t  # central differences of order 4
        far, near = function(t - 2 * d) - function(t + 2 * d), function(t + d) - function(t - d)
        return (far + 8 * near) / (12 * d)

    def velocity(x, t):
        s, sigma = scale(t), at(t)
        called.append(sigma)
        data = MODEL.predict(torch.from_numpy(x / s), 1.0, sigma)[1].numpy()
        noise = (x / s - data) / sigma
        # d/dt of s (x0 + sigma n) along the probability-flow ODE, whose n moves only with sigma
        return derivative(scale, t) * x / s + s * derivative(at, t) * noise

    called, draws = [], []
    start = case.x_T / (80.0 if case.schedule == "edm" else VPLinear().sigma(1.0))
    times = [*(back(level) for level in levels), 0.0]
    x = start * levels[0] * scale(times[0])
    for i, (t, end) in enumerate(pairwise(times)):
        gamma = min(churn / points, math.sqrt(2) - 1) if 0.1 <= levels[i] <= 10 else 0.0
        draws.append(generator.standard_normal(x.shape))
        up = back(at(t) * (1 + gamma)) if gamma else t
        added = math.sqrt(max(at(up) ** 2 - at(t) ** 2, 0.0))
        x = scale(up) / scale(t) * x + scale(up) * added * draws[-1]
        h, slope = end - up, velocity(x, up)
        if heun and i < points - 1:
            inner = velocity(x + share * h * slope, up + share * h)
            slope = slope + (inner - slope) / (2 * share)
        x = x + h * slope
    config = {
        "num_steps": points, "solver": "heun" if heun else "euler", "discretization": "edm",
        "schedule": scheme, "scaling": "vp" if scaled else "none", "alpha": share,
        "S_churn": churn, "S_min": 0.1, "S_max": 10.0, "S_noise": 1.0,
        "sigma_max": ends[0], "sigma_min": ends[1],
    }  # fmt: skip
    arrays = {"final": x, "sigma_eval": np.array(called), "noise": np.stack(draws)}
    return replace(case, config=config, arrays=arrays, nfe=len(called))


@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize(("heun", "share"), [(False, 1.0), (True, 1.0), (True, 0.6)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("scheme", LEVELS)
def test_ablations_of_edm_in_their_own_time(scheme, scaled, heun, share, churn):
    found = compare(in_time(scheme, scaled, heun, share, churn), MODEL)
    # The derivatives here are differences.
    assert found.error is not None and found.error < 1e-7
    assert found.status == "matched" or found.reason == "the result differs"


@pytest.mark.parametrize("steps", [(0,), (1, 3), tuple(range(9))])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_of_diffusers_without_some_correctors(order, steps):
    case = next(
        c for c in read_cases(DATA, ["diffusers"]) if c.function == "UniPCMultistepScheduler.step"
        and c.schedule != "flow"
    )  # fmt: skip
    config = {
        **{k: case.config[k] for k in ("beta_start", "beta_end", "beta_schedule")},
        "solver_order": order, "disable_corrector": list(steps), "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min",
    }  # fmt: skip
    scheduler = UniPCMultistepScheduler(**config)
    scheduler.set_timesteps(9)
    schedule = official_diffusers._schedule(
        replace(case, config={**config, "num_train_timesteps": 1000})
    )
    x = torch.from_numpy(case.x_T)
    for t in scheduler.timesteps:
        told = (float(t) + 1) / 1000
        eps = MODEL.predict(x, schedule.alpha(told), schedule.sigma(told))[0]
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    arrays = {
        "final": x.numpy(),
        "sigmas": scheduler.sigmas.double().numpy(),
        "timesteps": scheduler.timesteps.numpy(),
    }
    whole = {**config, "num_train_timesteps": 1000, "model_time": "timestep"}
    found = compare(replace(case, config=whole, arrays=arrays, nfe=9), MODEL)
    # The scheduler's tables are float32.
    assert found.error is not None and found.error < 2e-6, found.reason
