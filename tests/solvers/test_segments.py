"""A plan as its runs use it: slots, matrices, and who keeps them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter

import pytest
import torch
from cases import GAUSSIAN, MIXTURE, NFE, SCHEDULES, normal, solver_cases
from torch.utils._python_dispatch import TorchDispatchMode

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    DATA,
    EMS,
    PREDICTIONS,
    SOLVERS,
    Node,
    Noise,
    Plan,
    Row,
    make_plan,
    sample,
    sample_parallel,
)
from logsnr.solvers.noise import noise_source
from logsnr.solvers.products import Products
from logsnr.solvers.running import executor_for, proceed
from logsnr.solvers.segments import OUTPUT, STATE, layout, maps, product
from logsnr.solvers.terms import Terms

SCHEDULE = SCHEDULES["vp_linear"]
DENOISE = exact_denoiser(MIXTURE, SCHEDULE)
X = normal(3, 4)


def plan_of(name: str, options: dict | None = None) -> Plan:
    return make_plan(name, SCHEDULE, nfe=NFE, spacing="logsnr", **(options or {}))


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_a_slot_holds_what_a_row_takes_it_for(name, options):
    """When a row is formed, and still at the next call, so that the last one can be made again."""
    plan = plan_of(name, options)
    known = layout(plan)
    holds: dict[int, tuple[str, int]] = {}
    read: list[tuple[int, tuple[str, int]]] = []
    newest = -1

    def put(slot, kind, k):
        if slot is not None:
            assert 0 <= slot < known.slots
            holds[slot] = (kind, k)

    for k, (row, line) in enumerate(zip(plan.rows, known.lines, strict=True)):
        assert [(j, a) for _, j, a in line.states] == list(row.states)
        assert [(j, b) for _, j, b in line.outputs] == list(row.outputs)
        for kind, terms, fresh in (("x", line.states, STATE), ("g", line.outputs, OUTPUT)):
            for place, j, _ in terms:
                assert j == newest if place == fresh else holds[place] == (kind, j)
                if place != fresh and j < newest:
                    read.append((place, (kind, j)))
        put(line.slot, "x", k)
        if row.evaluated or k == len(plan.rows) - 1:
            assert all(holds[place] == value for place, value in read)
            read, newest = [], k
            assert all(holds[slot] == ("x", j) for slot, j in line.others)
            put(line.keep, "x", k)
            put(line.output, "g", k)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_matrices_are_the_plan(name, prediction):
    """live' = W [live; x; output], row by row, against the rows with g = P output + Q x."""
    plan = plan_of(name)
    made, known, linear = product(plan, prediction), layout(plan), maps(plan, prediction)
    outputs = {k: normal(5, seed=k) for k in plan.evaluated}
    noise = normal(5, seed=99)
    states, g = {0: normal(5, seed=1000)}, {}
    slots = torch.zeros(known.slots, 5, dtype=torch.float64)
    weights = made.weights.split(made.sizes)
    x = output = state = states[0]
    for k, row in enumerate(plan.rows):
        if k > 0:
            states[k] = sum(
                [a * states[j] for j, a in row.states]
                + [b * g[j] for j, b in row.outputs]
                + [term.scale * noise for term in row.noise],
                torch.zeros(5, dtype=torch.float64),
            )
            total = made.sums[k]
            begin, end = (0, 0) if total.span is None else made.spans[total.span]
            state = weights[k] @ slots[begin:end]
            state = state + total.state * x + total.output * output
            state = state + sum(term.scale for term in row.noise) * noise
            torch.testing.assert_close(state, states[k], rtol=1e-11, atol=1e-11)
            if total.slot is not None:
                slots[total.slot] = state
        if row.evaluated:
            x, output = state, outputs[k]
            g[k] = linear[k].out * output + linear[k].x * states[k]
            store = made.stores[k]
            if store.keep is not None:
                slots[store.keep] = x
            if store.slot is not None:
                first, second = (x, output) if store.state_first else (output, x)
                slots[store.slot] = first + store.ratio * second
                torch.testing.assert_close(store.scale * slots[store.slot], g[k])


@pytest.mark.parametrize(("name", "options"), solver_cases())
def test_little_is_alive(name, options):
    """A state and the outputs of the method's order, with one more of each while they change."""
    assert layout(plan_of(name, options)).slots <= 7


def test_a_plan_may_begin_with_a_row_that_is_not_evaluated():
    """As churn does: noise is added to the start, which later rows need, before the first call."""
    nodes = [Node(t, SCHEDULE.alpha(t), SCHEDULE.sigma(t)) for t in (0.9, 0.9, 0.5)]
    rows = (
        Row(nodes[0]),
        Row(nodes[1], ((0, 1.0),), (), DATA, noise=(Noise(0.1, -2.0, -1.0),)),
        Row(nodes[2], ((0, 0.25), (1, 0.5)), ((1, 0.3),)),
    )
    plan, z = Plan(rows, consistent=False), normal(3, 4, seed=2)
    churned = X + 0.1 * z
    expected = 0.25 * X + 0.5 * churned + 0.3 * DENOISE(churned, 0.9)
    for differentiable in (False, True):
        found = sample(DENOISE, X, plan, noise=[z], differentiable=differentiable)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def steps(executor, begin=0):
    """The states at which the network is asked from row ``begin`` on, and the sample."""
    process = proceed(executor, executor.waiting.clone(), noise_source(None), begin)
    evaluation, seen = next(process), []
    while True:
        seen.append(evaluation.x.clone())
        try:
            evaluation = process.send(DENOISE.evaluate(evaluation.x, evaluation.node.t))
        except StopIteration as stop:
            return [*seen, stop.value]


COPIES = {
    "fork": lambda executor: executor.fork(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda executor: pickle.loads(pickle.dumps(executor)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", [Products, Terms])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_copy_of_a_run_goes_on_by_itself(name, kind, way):
    plan = plan_of(name)
    torch.manual_seed(1)
    executor, middle = kind(plan, "epsilon", X), plan.evaluated[NFE // 2]
    for k, row in enumerate(plan.rows[:middle]):
        if k > 0:
            executor.combine(k, noise_source(None))
        if row.evaluated:
            output = DENOISE.evaluate(executor.waiting, row.node.t)
            executor.evaluate(k, output, shared=False)
    executor.combine(middle, noise_source(None))
    other = COPIES[way](executor)
    runs = []
    for one in (executor, other):
        torch.manual_seed(2)
        runs.append(steps(one, middle))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_fitted_plan_without_gradients_runs_as_the_plan_it_came_from(name):
    plan = plan_of(name)
    values = plan.coefficients().requires_grad_()
    fitted = plan.with_coefficients(values.detach())
    assert isinstance(executor_for(fitted, X, "epsilon"), Products)
    assert isinstance(executor_for(plan.with_coefficients(values), X, "epsilon"), Terms)
    done, results = [], []
    for one in (plan, fitted):
        sample(DENOISE, X, one, noise=[1, 2, 3])  # what is made once is made
        with Operations() as seen:
            results.append(sample(DENOISE, X, one, noise=[1, 2, 3]))
        done.append(seen.names)
    assert done[0] == done[1] and torch.equal(*results)


@pytest.mark.parametrize("name", [n for n in SOLVERS if "eta" in SOLVERS[n].defaults])
def test_noise_costs_one_pass_over_the_state_a_term(name):
    """Beside the same run without it, when the noise is there."""
    steps = []
    plans = [plan_of(name, {"eta": eta}) for eta in (0.0, 1.0)]
    terms = sum(len(row.noise) for row in plans[1].rows)
    given = [normal(*X.shape, seed=i) for i in range(terms)]
    for plan, noise in zip(plans, (None, given), strict=True):
        sample(DENOISE, X, plan, noise=noise)
        with Operations() as seen:
            sample(DENOISE, X, plan, noise=noise)
        steps.append(Counter(seen.names))
    more = steps[1] - steps[0]
    assert more["add_"] <= terms and more.keys() <= {"add_", "mul", "mv", "addmv"}


# what is left of runs


def statistics(schedule, event=(2, 8, 8)) -> EMS:
    lam = torch.linspace(schedule.lam(1.0), schedule.lam(1e-3), 30, dtype=torch.float64)
    own = torch.rand(event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = lam.view(-1, 1, 1, 1) + own
    return EMS(lam, torch.sigmoid(-at), 0.4 * torch.sin(at) - 0.3, 0.3 * torch.cos(0.7 * at))


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) is torch.Tensor:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("name", ["unipc", "dpm-solver-v3"])
def test_a_run_in_inference_mode_spoils_no_later_one(name):
    options = {"ems": statistics(SCHEDULE), "fallback": False} if name.endswith("v3") else {}
    plans = [make_plan(name, SCHEDULE, nfe=6, t_start=1.0, t_end=1e-3, **options) for _ in range(2)]
    x = normal(2, 2, 8, 8)
    with torch.inference_mode():
        sample(lambda x, t: torch.tanh(x), x.clone(), plans[0])
    gradients = []
    for plan in plans:
        start = x.clone().requires_grad_()
        result = sample(lambda x, t: torch.tanh(x), start, plan)
        gradients.append(torch.autograd.grad(result.square().sum(), start)[0])
    assert torch.equal(*gradients)


def test_plans_with_tensors_leave_nothing_behind():
    ems, x = statistics(SCHEDULE), normal(2, 2, 8, 8)
    gone: list[weakref.ref] = []

    def runs(nfe: int) -> None:
        plan = make_plan(
            "dpm-solver-v3", SCHEDULE, nfe=nfe, ems=ems, t_start=1.0, t_end=1e-3, fallback=False
        )
        assert not plan.numeric
        for run in (sample, sample_parallel):
            run(lambda x, t: torch.tanh(x), x, plan)
        gone.append(weakref.ref(plan))

    runs(5)
    before = live_bytes()
    for nfe in range(6, 12):
        runs(nfe)
    assert live_bytes() <= before
    assert not any(ref() is not None for ref in gone)


def test_what_is_made_of_a_plan_is_made_once_and_not_copied_with_it():
    plan = plan_of("unipc")
    sample(exact_denoiser(GAUSSIAN, SCHEDULE), X, plan)
    assert layout(plan) is layout(plan) and product(plan, "epsilon") is product(plan, "epsilon")
    assert plan.compiled and not pickle.loads(pickle.dumps(plan)).compiled
