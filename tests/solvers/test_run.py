"""The runner: its protocol, its two executors, noise, edits, dtypes, and independence of runs."""

from __future__ import annotations

import math
import threading
from functools import partial

import pytest
import torch
from cases import (
    GAUSSIAN,
    MIXTURE,
    NFE,
    SCHEDULES,
    deterministic_cases,
    normal,
    solver_cases,
    start_states,
)
from topologies import topology_cases

from logsnr.benchmarks.problems.analytic import Network, exact_denoiser
from logsnr.solvers import (
    DATA,
    NOISE,
    PREDICTIONS,
    SOLVERS,
    ClassifierFree,
    Denoiser,
    Evaluation,
    Noise,
    Plan,
    Row,
    Target,
    make_plan,
    run,
)
from logsnr.solvers import sample as sample_with

SCHEDULE = SCHEDULES["vp_linear"]
sample = partial(sample_with, noise=7)  # so that runs of solvers with noise can be compared
X = start_states(SCHEDULE, 1.0)
DENOISE = exact_denoiser(MIXTURE, SCHEDULE)
ANCESTRAL = make_plan("ddim", SCHEDULE, nfe=NFE, eta=1.0)


def plan_of(name: str, options: dict | None = None, nfe: int = NFE):
    return make_plan(name, SCHEDULE, nfe=nfe, spacing="logsnr", **(options or {}))


def by_hand(plan, denoise, x, noise=None):
    """The formula of plan.py's module text, row by row, in terms of x0 and eps alone."""
    z, drawn = iter(noise or []), {}
    states, outputs = {0: x}, {}
    for k, row in enumerate(plan.rows):
        for term in row.noise:
            drawn[term.key] = drawn[term.key] if term.key in drawn else next(z)
        if k > 0:
            states[k] = sum(
                [a * states[j] for j, a in row.states]
                + [b * outputs[j] for j, b in row.outputs]
                + [term.scale * drawn[term.key] for term in row.noise],
                torch.zeros_like(x) + row.offset,
            )
        if row.target is not None:
            x0 = denoise(states[k], row.node.t)
            eps = (states[k] - row.node.alpha * x0) / row.node.sigma
            u, w, q = row.target
            outputs[k] = u * eps + w * x0 + q * states[k]
    return states[len(plan.rows) - 1]


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_both_executors_compute_the_formula(name, options):
    plan = plan_of(name, options)
    z = [normal(*X.shape, seed=100 + i) for i in range(sum(len(row.noise) for row in plan.rows))]
    noise = z or None
    expected = by_hand(plan, DENOISE, X, z)
    for differentiable in (False, True):
        result = sample(DENOISE, X, plan, noise=noise, differentiable=differentiable)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_row_may_have_every_kind_of_term(differentiable):
    """Several states, outputs of every target, an offset, and two noise terms in one row."""
    nodes = [row.node for row in ANCESTRAL.rows[:6]]
    one, two, three = (ANCESTRAL.rows[k].noise for k in (2, 3, 4))
    rows = (
        Row(nodes[0], target=Target(0.5, 0.25, 2.0)),
        Row(nodes[1], ((0, 0.9),), ((0, 0.2),), NOISE, offset=0.3),
        Row(nodes[2], ((0, 0.4), (1, 0.5)), ((0, 0.1), (1, -0.3)), None, -0.2, (*one, *two)),
        Row(nodes[3], ((2, 0.8), (0, 0.1)), ((1, 0.4),), DATA, 0.1),
        Row(nodes[4], ((0, 0.2),), ((0, 0.3), (3, 0.7)), DATA, noise=three),
        Row(nodes[5], ((2, 0.3), (3, 0.3)), ((4, 0.6),), offset=0.5),
    )
    plan = Plan(rows, consistent=False)
    z = [normal(*X.shape, seed=100 + i) for i in range(3)]
    result = sample(DENOISE, X, plan, noise=z, differentiable=differentiable)
    torch.testing.assert_close(result, by_hand(plan, DENOISE, X, z), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_sample_does_not_depend_on_what_the_network_predicts(name, prediction):
    plan = plan_of(name)
    result = sample(exact_denoiser(MIXTURE, SCHEDULE, prediction), X, plan)
    torch.testing.assert_close(result, sample(DENOISE, X, plan), rtol=1e-9, atol=1e-10)
    plain = sample(lambda x, t: DENOISE(x, t), X, plan)
    torch.testing.assert_close(plain, result, rtol=1e-9, atol=1e-10)


# protocol


@pytest.mark.parametrize("name", SOLVERS)
def test_the_generator_asks_at_the_plans_times_and_returns_the_sample(name):
    plan = plan_of(name)
    process, asked = run(plan, X, "epsilon", noise=7), []
    evaluation = next(process)
    while True:
        assert isinstance(evaluation, Evaluation)
        assert evaluation.node == plan.rows[evaluation.index].node
        asked.append(evaluation.node.t)
        output = DENOISE.evaluate(evaluation.x, evaluation.node.t)
        try:
            evaluation = process.send(output)
        except StopIteration as stop:
            result = stop.value
            break
    assert tuple(asked) == plan.times
    assert torch.equal(result, sample(DENOISE, X, plan))


@pytest.mark.parametrize("name", SOLVERS)
def test_network_is_called_nfe_times(name):
    plan = plan_of(name)
    network = Network(MIXTURE, SCHEDULE)
    sample(Denoiser(network, SCHEDULE, network_time=lambda t: t), X, plan)
    assert tuple(network.times) == plan.times


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_callback_sees_every_state_with_its_data_prediction(name, prediction):
    plan, steps = plan_of(name), []
    sample(exact_denoiser(MIXTURE, SCHEDULE, prediction), X, plan, callback=steps.append)
    assert [step.evaluation for step in steps] == list(range(1, plan.nfe + 1))
    assert tuple(step.node.t for step in steps) == plan.times
    for step in steps:
        assert step.plan is plan
        expected = DENOISE(step.x, step.node.t)
        torch.testing.assert_close(step.x0, expected, rtol=1e-10, atol=1e-10)


def test_progress_bar_counts_evaluations(capsys):
    sample(DENOISE, X, plan_of("ddim", nfe=7), progress=True)
    assert "7/7" in capsys.readouterr().err
    sample(DENOISE, X, plan_of("ddim", nfe=7))
    assert capsys.readouterr().err == ""


# states that a driver changes


def drive_with_edits(plan, edit, *, differentiable):
    """Run a plan on the Gaussian; ``edit(evaluation)`` may change the state before it is used."""
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    process = run(plan, X.clone(), "epsilon", differentiable=differentiable)
    with torch.no_grad():
        evaluation = next(process)
        while True:
            edit(evaluation)
            try:
                evaluation = process.send(denoise.evaluate(evaluation.x, evaluation.node.t))
            except StopIteration as stop:
                return stop.value


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_edits_in_place_and_by_assignment_agree_and_take_effect(name, options, differentiable):
    plan = plan_of(name, options)
    shift = normal(*X.shape, seed=9)

    def assign(evaluation):
        evaluation.x = evaluation.x + shift

    def in_place(evaluation):
        evaluation.x.add_(shift)

    def at(index, edit):
        def only_there(evaluation):
            if evaluation.index == index:
                edit(evaluation)

        return drive_with_edits(plan, only_there, differentiable=differentiable)

    for index in (plan.evaluated[0], plan.evaluated[NFE // 2], plan.evaluated[-1]):
        assigned, changed = at(index, assign), at(index, in_place)
        untouched = at(None, assign)
        torch.testing.assert_close(assigned, changed, rtol=1e-12, atol=1e-12)
        assert (assigned - untouched).abs().max() > 1e-6


@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_restarting_from_a_state_is_an_edit_that_solvers_carry_on(name, options):
    """Put the exact solution into every state: the last step then starts on the exact path."""
    plan = plan_of(name, options)
    flow = GAUSSIAN.flow(plan.rows[0].node, X)

    def to_exact(evaluation):
        evaluation.x = flow(evaluation.node)

    exact = flow(plan.rows[-1].node)
    for differentiable in (False, True):
        kept = drive_with_edits(plan, to_exact, differentiable=differentiable)
        left = drive_with_edits(plan, lambda e: None, differentiable=differentiable)
        assert (kept - exact).norm() < (left - exact).norm()


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_an_edit_moves_the_sample_along_the_linear_part(name, options, differentiable):
    """With constant predictions of x0 (eps), a shift of x_s is one of x_t by sigma_t / sigma_s
    (alpha_t / alpha_s), whatever other states the plan was holding.
    """
    plan = plan_of(name, options)
    (target,) = {plan.rows[k].target for k in plan.evaluated}
    prediction = "sample" if target == DATA else "epsilon"
    shift, constant = normal(*X.shape, seed=9), normal(*X.shape, seed=8)

    def final(index):
        process = run(plan, X, prediction, differentiable=differentiable)
        evaluation = next(process)
        while True:
            if evaluation.index == index:
                evaluation.x = evaluation.x + shift
            try:
                evaluation = process.send(constant)
            except StopIteration as stop:
                return stop.value

    end = plan.rows[-1].node
    for index in plan.evaluated:
        node = plan.rows[index].node
        factor = end.sigma / node.sigma if target == DATA else end.alpha / node.alpha
        moved = final(index) - final(None)
        torch.testing.assert_close(moved, factor * shift, rtol=1e-8, atol=1e-9)


def test_executors_carry_edits_alike():
    plan = plan_of("unipc")

    def half(evaluation):
        evaluation.x = 0.5 * evaluation.x

    results = [drive_with_edits(plan, half, differentiable=flag) for flag in (False, True)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def test_a_run_leaves_the_start_state_alone():
    for name in SOLVERS:
        x = X.clone()
        sample(DENOISE, x, plan_of(name))
        assert torch.equal(x, X)


# noise


def test_noise_seeds_belong_to_samples_not_to_batches():
    together = sample(DENOISE, X, ANCESTRAL, noise=[3, 4, 5])
    for i, seed in enumerate([3, 4, 5]):
        alone = sample(DENOISE, X[i : i + 1], ANCESTRAL, noise=[seed])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-12)
    assert not torch.equal(together, sample(DENOISE, X, ANCESTRAL, noise=[3, 4, 6]))


def test_forms_of_noise():
    def generator():
        return torch.Generator().manual_seed(5)

    drawn: list[torch.Tensor] = []
    terms: list[Noise] = []
    source = generator()

    def record(term, like):
        terms.append(term)
        drawn.append(torch.randn(like.shape, generator=source, dtype=like.dtype))
        return drawn[-1]

    expected = sample(DENOISE, X, ANCESTRAL, noise=generator())
    assert torch.equal(sample(DENOISE, X, ANCESTRAL, noise=record), expected)
    assert torch.equal(sample(DENOISE, X, ANCESTRAL, noise=drawn), expected)
    assert terms == [term for row in ANCESTRAL.rows for term in row.noise]
    torch.manual_seed(5)
    assert torch.equal(sample(DENOISE, X, ANCESTRAL, noise=None), expected)


def test_noise_has_the_variance_that_the_plan_states():
    """With x0 = alpha x, ancestral DDIM is x' = f x + n z, whose variance is a recursion."""
    variance = 1.0
    for start, end in zip(ANCESTRAL.rows, ANCESTRAL.rows[1:], strict=False):
        keep = math.exp(start.node.lam - end.node.lam)  # sigma_t / sigma_s alpha_s / alpha_t
        a = keep**2 * end.node.alpha / start.node.alpha  # of the DDPM posterior mean
        factor = a + (end.node.alpha - a * start.node.alpha) * start.node.alpha
        variance = factor**2 * variance + end.node.sigma**2 * (1 - keep**2)
    x = normal(50_000, 4, seed=1)
    noise = torch.Generator().manual_seed(2)
    result = sample(lambda x, t: SCHEDULE.alpha(t) * x, x, ANCESTRAL, noise=noise)
    assert result.var() == pytest.approx(variance, rel=0.02)
    assert result.mean() == pytest.approx(0.0, abs=0.02)


# independence


@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_a_batch_element_does_not_see_its_batch(name, options):
    plan = plan_of(name, options)
    together = sample(DENOISE, X, plan)
    for i in range(len(X)):
        alone = sample(DENOISE, X[i : i + 1], plan)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_threads_share_a_plan(name):
    plan = plan_of(name)
    starts = [start_states(SCHEDULE, 1.0, seed=seed) for seed in range(4)]
    expected = [sample(DENOISE, x, plan) for x in starts]
    results: dict[int, torch.Tensor] = {}

    def work(i):
        for _ in range(3):
            results[i] = sample(DENOISE, starts[i], plan)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], expected[i]) for i in range(4))


@pytest.mark.parametrize("name", SOLVERS)
def test_memory_layout_and_event_shape_do_not_matter(name):
    plan = plan_of(name)
    expected = sample(lambda x, t: x.tanh(), X, plan)
    strided = X.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(sample(lambda x, t: x.tanh(), strided, plan), expected)
    shaped = sample(lambda x, t: x.tanh(), X.view(3, 2, 1, 2), plan)
    assert torch.equal(shaped.view(3, 4), expected)


@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_the_size_of_a_state_does_not_matter(name, options):
    """Large states are summed in another way."""
    plan = plan_of(name, options)
    expected = sample(lambda x, t: x.tanh(), X, plan)
    large = sample(lambda x, t: x.tanh(), X.repeat(1, 6000), plan)
    torch.testing.assert_close(large, expected.repeat(1, 6000), rtol=1e-12, atol=1e-13)


# dtypes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), deterministic_cases())
def test_dtype_in_is_dtype_out_and_accuracy_that_of_the_dtype(name, options, dtype):
    plan = plan_of(name, options)
    seen = set()

    def data_prediction(x, t):
        seen.add(x.dtype)
        return x.double().tanh().to(x.dtype)

    x = X.to(dtype)
    result = sample(data_prediction, x, plan)
    assert result.dtype == dtype and seen == {dtype}
    exact = sample(lambda x, t: x.tanh(), x.double(), plan)
    # Rounding of the states and outputs that pass through the dtype, amplified by the run.
    assert (result.double() - exact).abs().max() <= 60 * torch.finfo(dtype).eps * exact.abs().max()


# gradients


def test_the_graph_is_kept_only_on_demand():
    plan = plan_of("unipc")
    factor = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def network(x, t):
        return factor * x

    denoise = Denoiser(network, SCHEDULE, "sample")
    assert not sample(denoise, X, plan).requires_grad
    assert sample(denoise, X, plan, differentiable=True).requires_grad
    assert sample(denoise, X.clone().requires_grad_(), plan).requires_grad
    with torch.no_grad():
        assert not sample(denoise, X.clone().requires_grad_(), plan).requires_grad


@pytest.mark.parametrize("name", SOLVERS)
def test_gradient_with_respect_to_the_start_agrees_with_differences(name):
    plan = plan_of(name)
    direction, weights = normal(*X.shape, seed=1), normal(*X.shape, seed=2)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * sample(DENOISE, x, plan)).sum(), x)
    ends = [(weights * sample(DENOISE, X + s * direction, plan)).sum() for s in (1e-5, -1e-5)]
    slope = float(ends[0] - ends[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_inference_mode_gives_the_same_sample(name):
    plan = plan_of(name)
    expected = sample(DENOISE, X, plan)
    with torch.inference_mode():
        assert torch.equal(sample(DENOISE, X.clone(), plan), expected)


# the denoiser in a run


def test_guidance_and_threshold_act_inside_a_run():
    plan = plan_of("dpm-solver++")
    labels = {"c": torch.full((3,), 2.0, dtype=torch.float64)}
    nulls = {"c": torch.zeros(3, dtype=torch.float64)}

    def network(x, t, c):
        return x.tanh() + 0.1 * c[:, None]

    guided = Denoiser(
        network, SCHEDULE, "sample", guidance=ClassifierFree(3.0, labels, nulls), threshold=None
    )
    expected = sample(lambda x, t: x.tanh() + 3.0 * 0.2, X, plan)
    torch.testing.assert_close(sample(guided, X, plan), expected, rtol=1e-12, atol=1e-12)

    clipped = Denoiser(lambda x, t: x, SCHEDULE, "epsilon", threshold=lambda x0: x0.clamp(-1, 1))
    to_data = make_plan("ddim", SCHEDULE, nfe=5, spacing="time", t_end=0.0)
    assert sample(clipped, X, to_data).abs().max() <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_autocast_does_not_lower_the_precision_of_the_states(name):
    plan = make_plan(name, SCHEDULES["vp_linear"], nfe=6)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))

    def denoise(x, t):
        return torch.tanh(x)

    expected = sample(denoise, x, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sample(denoise, x, plan)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_outputs_of_another_shape_are_refused():
    process = run(make_plan("ddim", SCHEDULES["vp_linear"], nfe=2), torch.zeros(2, 5))
    next(process)
    with pytest.raises(ValueError, match=r"output has shape \(1, 5\)"):
        process.send(torch.zeros(1, 5))
