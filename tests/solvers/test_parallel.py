"""Parallel in time: the sequential result, sweep by sweep what the theory says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    GAUSSIAN,
    MIXTURE,
    RANGES,
    label,
    main_options,
    normal,
    plan_for,
    spacings,
    start_states,
)
from places import DATA

from logsnr.benchmarks.problems.analytic import Gaussian, Mixture, Network, exact_denoiser
from logsnr.solvers import (
    SOLVERS,
    Denoiser,
    DiscreteVP,
    Plan,
    VPLinear,
    make_plan,
    sample,
    sample_parallel,
)
from logsnr.solvers.noise import noise_source
from logsnr.solvers.parallel import Sweep, picard
from logsnr.solvers.parallel.acceptance import Changes, errors_left, settled, variances
from logsnr.solvers.parallel.sweeps import Evaluated, measured

SCHEDULE = VPLinear()
MODES: tuple[dict[str, Any], ...] = (
    {"window": 3},
    {"acceleration": None, "data_scale": 0.0},
    {"update": "literal", "window": 4},
    {"update": "literal", "published": True},
)
NFE = 6


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def registry_cases() -> list[Any]:
    """Every solver on every range with its defaults; with every option on one range, where the
    modes take turns.
    """
    cases = [(where, name, {}, MODES) for name in SOLVERS for where in RANGES]
    options = [(name, options) for name in SOLVERS for options in main_options(name)]
    cases += [("vp_linear", *option, (MODES[i % len(MODES)],)) for i, option in enumerate(options)]
    return [pytest.param(*case, id=f"{case[0]}-{label(*case[1:3])}") for case in cases]


@pytest.mark.parametrize(("where", "name", "options", "modes"), registry_cases())
def test_tolerance_zero_is_the_sequential_run(where, name, options, modes):
    range_ = RANGES[where]
    arguments = {"schedule": range_.schedule, "nfe": NFE, **range_.ends}
    plan = plan_for(name, {**arguments, "spacing": spacings(where)[0]}, options)
    denoise = exact_denoiser(MIXTURE, range_.schedule, "v_prediction")
    x, noise = start_states(range_.schedule, range_.t_start, batch=2), list(normal(40, 2, 4))
    exact = sample(denoise, x, plan, noise=noise)
    for mode in modes:
        ours, stats = sample_parallel(denoise, x, plan, noise=noise, **mode)
        assert relative(ours, exact) < 1e-12, mode
        assert stats.sweeps <= plan.nfe


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "flow_prediction"])
@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_one_sweep_solves_normal_data_of_the_given_scale(prediction, space, scale):
    """The network of N(0, s^2) is the linear one that the sweep keeps: nothing is left to do."""
    data = Gaussian(torch.zeros(4), torch.full((4,), scale, dtype=torch.float64))
    denoise, x = exact_denoiser(data, SCHEDULE, prediction), normal(2, 4)
    plan = make_plan("unipc", SCHEDULE, nfe=10, space=space)
    seen: list[Sweep] = []
    sample_parallel(
        denoise,
        x,
        plan,
        acceleration=None,
        data_scale=scale,
        init=lambda node: normal(2, 4, seed=7),
        callback=seen.append,
    )
    assert relative(seen[0].x, sample(denoise, x, plan)) < 1e-12


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm-solver", "heun"])
def test_a_second_evaluation_of_a_line_is_enough_for_the_secant(solver):
    """In one dimension a linear network is known after two evaluations, whatever its slope."""
    data = Gaussian(torch.tensor([0.7]).double(), torch.tensor([0.3]).double())
    denoise, x = exact_denoiser(data, SCHEDULE, "epsilon"), normal(3, 1)
    plan = make_plan(solver, SCHEDULE, nfe=12)
    exact = sample(denoise, x, plan)
    seen: list[Sweep] = []
    guess = {"init": lambda node: normal(3, 1, seed=5), "callback": seen.append}
    sample_parallel(denoise, x, plan, data_scale=2.0, **guess)
    assert relative(seen[0].x, exact) > 1e-3
    assert relative(seen[1].x, exact) < 1e-9


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dpm-solver++", "unipc", "heun"])
def test_tensor_coefficients_take_the_same_sweeps(name, mode):
    denoise, x = exact_denoiser(MIXTURE, SCHEDULE, "epsilon"), normal(2, 4)
    plan = make_plan(name, SCHEDULE, nfe=10)
    tensors = plan.with_coefficients(plan.coefficients().requires_grad_())
    assert not tensors.numeric
    numbers_run = sample_parallel(denoise, x, plan, tolerance=1e-2, **mode)
    tensors_run = sample_parallel(denoise, x, tensors, tolerance=1e-2, **mode)
    assert relative(tensors_run[0], numbers_run[0]) < 1e-12
    assert tensors_run[1].windows == numbers_run[1].windows


def test_the_compared_variance_is_that_of_ancestral_steps():
    plans = [make_plan("ddim", SCHEDULE, nfe=9, t_end=0.0, spacing="time", eta=e) for e in (0, 1.0)]
    noise = [row.noise[0].scale ** 2 for row in plans[1].rows[1:-1]]
    np.testing.assert_allclose(variances(plans[0])[:-2], noise, rtol=1e-9)
    # The step to sigma = 0 has no noise, and no step leaves the sample.
    assert variances(plans[0])[-2:] == [variances(plans[0])[-3]] * 2
    assert variances(plans[0], published=True)[-2:] == [0.0, 0.0]


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++"])
@pytest.mark.parametrize(
    ("where", "spacing"), [("vp_linear", "logsnr"), ("edm", "karras"), ("flow", "time")]
)
def test_fewer_evaluations_and_sweeps_than_published_within_the_tolerance(solver, where, spacing):
    range_ = RANGES[where]
    denoise = exact_denoiser(MIXTURE, range_.schedule, "flow_prediction")
    x = start_states(range_.schedule, range_.t_start, batch=4)
    plan = make_plan(solver, range_.schedule, nfe=40, spacing=spacing, **range_.ends)
    exact = sample(denoise, x, plan)
    for tolerance in (0.1, 1e-2, 1e-3):
        _, published = sample_parallel(
            denoise, x, plan, tolerance=tolerance, update="literal", published=True
        )
        ours, stats = sample_parallel(denoise, x, plan, tolerance=tolerance)
        assert stats.sweeps < published.sweeps and stats.evaluations < published.evaluations
        assert ((ours - exact).norm(dim=1) < tolerance * exact.norm(dim=1)).all()


@pytest.mark.parametrize("where", ["vp_linear", "edm", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_guess_is_the_run_of_normal_data(where, eta):
    """The network of N(0, s^2) is solved before it is called: a single sweep confirms it."""
    range_, scale = RANGES[where], 0.6
    data = Gaussian(torch.zeros(4), torch.full((4,), scale, dtype=torch.float64))
    denoise = exact_denoiser(data, range_.schedule, "flow_prediction")
    x, noise = start_states(range_.schedule, range_.t_start, batch=2), list(normal(12, 2, 4))
    plan = make_plan("ddim", range_.schedule, nfe=12, eta=eta, **range_.ends)
    options = {"tolerance": 1e-9, "data_scale": scale, "noise": noise}
    for mode in ({}, {"update": "literal"}):
        result, stats = sample_parallel(denoise, x, plan, **options, **mode)
        assert (stats.sweeps, stats.evaluations) == (1, plan.nfe)
        assert relative(result, sample(denoise, x, plan, noise=noise)) < 1e-12


def test_what_is_left_of_the_error_shrinks_as_the_last_two_sweeps_did():
    """The prediction is the change that the next sweep would make at the same rate."""
    ones = torch.ones(3, 1, dtype=torch.float64)
    first, second = Changes(1, ones, 0.4 * ones), Changes(2, ones, 0.1 * ones)
    torch.testing.assert_close(errors_left(first, None), 0.4 * ones)
    # The point that is new has no rate yet.
    expected = torch.tensor([[0.1 / 4], [0.1 / 4], [0.1]], dtype=torch.float64)
    torch.testing.assert_close(errors_left(second, first), expected)
    # Neither growth nor an accident of a tiny change is carried on.
    for change, left in ((0.8, 0.8), (1e-6, 1e-7), (0.0, 0.0)):
        now = Changes(1, ones, change * ones)
        torch.testing.assert_close(errors_left(now, first), left * ones)
    errors = torch.tensor([[1e-4, 9e-4], [2e-3, 0.0], [0.0, 0.0]])
    limits = torch.tensor([1e-3, 1e-3, 1.0], dtype=torch.float64)
    assert settled(errors.double(), limits) == 1


def test_secants_are_symmetric_and_reproduce_two_evaluations():
    slope = normal(5, 5, seed=1)
    slope, (before, now) = slope + slope.T, normal(2, 3, 2, 5, seed=2)
    found = measured(
        Evaluated(0, before, before @ slope), Evaluated(0, now, now @ slope), [0.7, 0.3, 2.0]
    )
    assert found is not None and found.begin == 1
    s, r = found.pairs.unbind(1)  # at the points 1 and 2
    q = (s * r).sum(-1)[..., None, None]
    correction = r[..., :, None] * s[..., None, :] + s[..., :, None] * r[..., None, :]
    correction -= q * s[..., :, None] * s[..., None, :]
    learned = correction + torch.tensor([0.3, 2.0]).view(2, 1, 1, 1) * torch.eye(5)
    torch.testing.assert_close(learned, learned.mT)
    moved = (now - before)[1:]
    torch.testing.assert_close((learned @ moved[..., None])[..., 0], moved @ slope)


def official_runs() -> list[Any]:
    index = json.loads((DATA / "paradigms.json").read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in index if case["config"]["tolerance"] > 0]


@pytest.mark.parametrize("case", official_runs())
def test_published_windows_are_reproduced(case):
    with np.load(DATA / "paradigms.npz", allow_pickle=False) as stored:
        recorded = {name: stored[key] for name, key in case["arrays"].items()}
    with np.load(DATA / "problems.npz", allow_pickle=False) as stored:
        x, table = stored[case["x_T"]], torch.from_numpy(stored["vp_discrete/alphas_cumprod"])
    schedule, config = DiscreteVP(table), case["config"]
    denoise = exact_denoiser(Mixture.load(DATA / "model.json"), schedule, "epsilon")
    steps = recorded["timesteps"]
    plan = make_plan("ddim", schedule, times=[*((steps + 1) / 1000).tolist(), 0.0])
    ours, stats = sample_parallel(
        denoise,
        torch.from_numpy(x),
        plan,
        config["parallel"],
        config["tolerance"],
        update="literal",
        published=True,
    )
    assert [steps[begin] for begin, _ in stats.windows] == list(recorded["window_begin_timesteps"])
    assert [end - begin for begin, end in stats.windows] == list(recorded["window_len"])
    assert (stats.sweeps, stats.evaluations) == (case["pass_count"], case["flops_count"])
    assert relative(ours, torch.from_numpy(recorded["final"])) < 1e-9


def test_stats_count_what_the_network_was_asked():
    network = Network(MIXTURE, SCHEDULE, "epsilon")
    sizes: list[int] = []

    def counted(x, t):
        sizes.append(len(x))
        return network(x, t)

    denoise = Denoiser(counted, SCHEDULE, network_time=lambda t: t)
    plan = make_plan("unipc", SCHEDULE, nfe=20)
    result, stats = sample_parallel(denoise, normal(3, 4), plan, 8, 1e-2)
    assert len(sizes) == stats.sweeps == len(stats.residuals) == len(stats.windows)
    assert sum(sizes) == 3 * stats.evaluations
    assert max(sizes) == 3 * 8
    assert stats.windows[0] == (0, 8) and stats.windows[-1][1] == plan.nfe
    sizes.clear()
    again, _ = sample_parallel(denoise, normal(3, 4), plan, 8, 1e-2, max_groups=2)
    assert max(sizes) == 3 * 2
    assert relative(again, result) < 1e-12


def test_a_perfect_guess_is_accepted_at_once():
    denoise, x = exact_denoiser(GAUSSIAN, SCHEDULE), normal(3, 4)
    plan = make_plan("ddim", SCHEDULE, nfe=15)
    states: dict[float, torch.Tensor] = {}
    end = plan.rows[-1].node.t
    states[end] = sample(
        denoise, x, plan, callback=lambda step: states.update({step.node.t: step.x})
    )
    result, stats = sample_parallel(
        denoise, x, plan, tolerance=1e-9, init=lambda node: states[node.t]
    )
    assert (stats.sweeps, stats.evaluations) == (1, 15)
    assert relative(result, states[end]) < 1e-12


def test_evaluations_can_be_taken_elsewhere():
    denoise, x = exact_denoiser(MIXTURE, SCHEDULE), normal(2, 4)
    plan = make_plan("dpm-solver++", SCHEDULE, nfe=8)

    def unreachable(x, t):
        raise AssertionError("the network is elsewhere")

    result, _ = sample_parallel(
        Denoiser(unreachable, SCHEDULE), x, plan, evaluate=denoise.evaluate_groups
    )
    assert relative(result, sample(denoise, x, plan)) < 1e-12


@pytest.mark.parametrize("noise", [[3, 1], "generator"])
def test_noise_is_drawn_in_the_order_of_the_sequential_run(noise):
    def draws():
        return torch.Generator().manual_seed(4) if noise == "generator" else noise

    denoise, x = exact_denoiser(MIXTURE, SCHEDULE), normal(2, 4)
    plan = make_plan("ddim", SCHEDULE, nfe=10, eta=1.0)
    exact = sample(denoise, x, plan, noise=draws())
    for window in (None, 1, 4):
        result, _ = sample_parallel(denoise, x, plan, window, noise=draws())
        assert relative(result, exact) < 1e-12


def test_thresholds_and_plain_functions():
    inner = exact_denoiser(MIXTURE, SCHEDULE)
    x, plan = normal(2, 4), make_plan("unipc", SCHEDULE, nfe=8)
    clamped = Denoiser(
        inner.network, SCHEDULE, network_time=lambda t: t, threshold=lambda x0: x0.clamp(-0.5, 0.5)
    )
    for denoise in (clamped, lambda x, t: inner(x, float(t))):
        result, _ = sample_parallel(denoise, x, plan)
        assert relative(result, sample(denoise, x, plan)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_states_accumulate_in_float32(dtype):
    inner = exact_denoiser(MIXTURE, SCHEDULE)
    seen: set[torch.dtype] = set()

    def denoise(x, t):
        seen.add(x.dtype)
        return inner(x.double(), t).to(x.dtype)

    x, plan = normal(2, 4, dtype=dtype), make_plan("dpm-solver++", SCHEDULE, nfe=10)
    result, _ = sample_parallel(denoise, x, plan)
    assert result.dtype == dtype and seen == {dtype}
    unit = torch.finfo(dtype).eps
    assert relative(result.double(), sample(denoise, x, plan).double()) < 20 * unit


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else vars(value).values()
    return [part for part in parts if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize(("solver", "rows_a_point"), [("ddim", 1), ("unipc", 2)])
def test_memory_grows_with_the_window_not_with_the_plan(solver, rows_a_point):
    x = normal(1, 4096, dtype=torch.float32)
    one = x.untyped_storage().nbytes()
    plan = make_plan(solver, SCHEDULE, nfe=60)
    most = {}
    for window in (4, 12):
        process = picard(plan, x, "epsilon", draw=noise_source(None), window=window, tolerance=1e-3)
        batch, most[window] = next(process), 0
        while True:
            alive = process.gi_frame.f_locals.values()
            found = [t for value in alive if hasattr(value, "__dict__") for t in tensors_in(value)]
            found += [t for value in alive if isinstance(value, tuple) for t in tensors_in(value)]
            sizes = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in found
                if t.shape[-1:] == x.shape[-1:]
            }
            most[window] = max(most[window], sum(sizes.values()) // one)
            try:
                batch = process.send(0.1 * torch.sin(batch.x))
            except StopIteration as stop:
                stats = stop.value[1]
                break
        states = rows_a_point * (window + 1) + 6  # six: the history of a multistep method
        assert window < stats.rows_held <= states
        # The states twice (the last sweep's too), targets, and both once more for the secants.
        assert most[window] <= 2 * states + 6 * window + 12
    assert most[4] < most[12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"tolerance": "0.1"}, "tolerance='0.1'"),
        ({"tolerance": None}, "tolerance=None"),
        ({"update": "picard"}, "semilinear.*literal"),
        ({"acceleration": "newton"}, "secant"),
        ({"data_scale": -1.0}, "data_scale=-1.0"),
        ({"data_scale": None}, "data_scale=None"),
        ({"max_groups": 0}, "max_groups=0"),
        ({"max_groups": 2.5}, "max_groups=2.5"),
        ({"devices": 1, "throughput": 3}, "throughput=3"),
        ({"init": 3}, "init=3"),
        ({"evaluate": 3}, "evaluate=3"),
        ({"callback": 3}, "callback=3"),
        ({"noise": "white"}, "noise='white'"),
        ({"plan": "ddim"}, "need a Plan"),
        ({"x_T": torch.full((2, 4), torch.nan)}, "not finite"),
        ({"x_T": torch.zeros(0, 4)}, "at least one sample"),
    ],
)
def test_errors_name_the_argument_before_the_network_is_called(options, message):
    def unreachable(x, t):
        raise AssertionError("called")

    plan: Plan = make_plan("ddim", SCHEDULE, nfe=4)
    arguments = {"denoise": unreachable, "x_T": normal(2, 4), "plan": plan, **options}
    with pytest.raises(ValueError, match=message):
        sample_parallel(**arguments)


def test_a_function_that_returns_no_data_prediction_is_named():
    plan = make_plan("ddim", SCHEDULE, nfe=4)
    for wrong, message in ((None, "NoneType"), (torch.zeros(2, 3), r"\(2, 3\)")):
        with pytest.raises(ValueError, match=f"denoise returned {message}"):
            sample_parallel(lambda x, t, wrong=wrong: wrong, normal(2, 4), plan)
