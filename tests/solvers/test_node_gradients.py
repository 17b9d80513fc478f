"""Nodes, parameters of grids, scales of noise and offsets keep their gradient to the sample.

Compared with central differences, whose leading errors Richardson's extrapolation removes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, main_options, normal, tensor
from torch import Tensor

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import SOLVERS, CustomSchedule, Denoiser, Plan, make_plan, sample

VP, FLOW = SCHEDULES["vp_linear"], SCHEDULES["flow"]
X, WEIGHTS = normal(2, 4, seed=3), normal(2, 4, seed=4)
NOISE = [normal(2, 4, seed=10 + i) for i in range(24)]
TIMES = tensor(0.95, 0.7, 0.52, 0.4, 0.31, 0.22, 0.15, 0.09, 0.05)
GRIDS = {
    "vp_linear": ("epsilon", TIMES),
    "flow": ("flow_prediction", tensor(1.0, 0.8, 0.6, 0.35, 0.2, 0.1, 0.0)),
    "edm": ("epsilon", tensor(80.0, 20.0, 5.0, 2.0, 0.8, 0.3, 0.05)),
    "vp_cosine": ("v_prediction", tensor(1.0, 0.8, 0.6, 0.35, 0.2, 0.1, 0.0)),
}


def slope(function: Callable[[Tensor], Tensor], step: float) -> float:
    """The derivative at 0 by differences of order 6."""
    with torch.no_grad():
        widths = [step, step / 2, step / 4]
        first = [float(function(tensor(h)[0]) - function(tensor(-h)[0])) / (2 * h) for h in widths]
    second = [(4 * b - a) / 3 for a, b in zip(first, first[1:], strict=False)]
    return (16 * second[1] - second[0]) / 15


def assert_gradient(function: Callable[[Tensor], Tensor], step: float = 0.1) -> None:
    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(at), at)
    assert float(gradient) == pytest.approx(slope(function, step), rel=1e-6)


def outcome(plan: Plan, denoise: Denoiser) -> Tensor:
    return (WEIGHTS * sample(denoise, X, plan, noise=NOISE if plan.stochastic else None)).sum()


@pytest.mark.parametrize("name", SOLVERS)
def test_nodes_of_every_solver_and_option(name):
    denoise = exact_denoiser(GAUSSIAN, VP)
    direction = torch.linspace(0.02, 0.01, len(TIMES), dtype=torch.float64) * TIMES
    for options in main_options(name):

        def loss(e: Tensor, options: dict = options) -> Tensor:
            return outcome(make_plan(name, VP, times=TIMES + e * direction, **options), denoise)

        assert_gradient(loss, 0.4)


@pytest.mark.parametrize("schedule", GRIDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_nodes_of_every_schedule_also_at_singular_ends(name, schedule):
    prediction, times = GRIDS[schedule]
    denoise = exact_denoiser(GAUSSIAN, SCHEDULES[schedule], prediction)
    direction = torch.linspace(0.01, 0.005, len(times), dtype=torch.float64) * times
    if float(times[-1]) == 0:
        direction = direction * (1 - times)  # the ends stay

    def loss(e: Tensor) -> Tensor:
        return outcome(make_plan(name, SCHEDULES[schedule], times=times + e * direction), denoise)

    assert_gradient(loss, 0.3)


@pytest.mark.parametrize(
    ("spacing", "name", "value"),
    [
        ("auto", "location", 0.3),
        ("auto", "scale", 1.2),
        ("auto", "shift", 2.5),
        ("time", "shift", 2.5),
        ("karras", "rho", 6.0),
        *[
            (spacing, "t_start", 0.9)
            for spacing in ("auto", "time", "quadratic", "logsnr", "karras", "kl_optimal", "beta")
        ],
        *[
            (spacing, "t_start", 0.9)
            for spacing in ("linear_quadratic", "ays-sdxl", "trailing", "leading", "linspace")
        ],
        ("time", "t_end", 0.1),
    ],
)
def test_numbers_of_a_grid(spacing, name, value):
    schedule = FLOW if name == "shift" else VP
    denoise = exact_denoiser(GAUSSIAN, schedule, "flow_prediction")

    def loss(e: Tensor) -> Tensor:
        plan = make_plan("unipc", schedule, nfe=6, spacing=spacing, **{name: value + e})
        return outcome(plan, denoise)

    assert_gradient(loss, 0.01)


@pytest.mark.parametrize(("key", "values"), [("sigmas", [0.95, 0.6, 0.2]), ("lams", [-2.0, 0, 2])])
def test_lists_of_other_quantities(key, values):
    denoise = exact_denoiser(GAUSSIAN, VP)

    def loss(e: Tensor) -> Tensor:
        middle = values[1] + e  # a list of numbers and a tensor
        return outcome(make_plan("heun", VP, **{key: [values[0], middle, values[2]]}), denoise)

    assert_gradient(loss, 0.01)


@pytest.mark.parametrize("tensors", [True, False], ids=["torch", "math"])
def test_schedules_of_functions(tensors):
    import math

    library = torch if tensors else math
    schedule = CustomSchedule(
        lambda t: library.cos(t * math.pi / 2), lambda t: library.sin(t * math.pi / 2)
    )
    denoise = exact_denoiser(GAUSSIAN, schedule, "v_prediction")

    def loss(e: Tensor) -> Tensor:
        plan = make_plan("deis", schedule, nfe=5, spacing="logsnr", t_start=0.9 + e, t_end=0.1)
        return outcome(plan, denoise)

    assert_gradient(loss, 0.02)


def test_scales_of_noise_and_offsets():
    denoise = exact_denoiser(GAUSSIAN, VP)
    plan = make_plan("ddim", VP, nfe=4, eta=1.0)

    def loss(e: Tensor) -> Tensor:
        rows = list(plan.rows)
        (term,) = rows[1].noise
        rows[1] = replace(rows[1], noise=(term._replace(scale=term.scale + e),), offset=0.1 - e)
        return outcome(replace(plan, rows=tuple(rows), consistent=False), denoise)

    assert_gradient(loss)


def test_the_told_time_keeps_its_gradient():
    denoise = exact_denoiser(GAUSSIAN, VP)
    plan = make_plan("unipc", VP, nfe=5, spacing="time", t_end=0.1)

    def loss(e: Tensor) -> Tensor:
        rows = [replace(row, node=row.node._replace(told=row.node.t + e)) for row in plan.rows]
        return outcome(replace(plan, rows=tuple(rows)), denoise)

    assert_gradient(loss, 0.02)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_table_of_tensors_is_that_of_numbers(name):
    """Same rows, same values to rounding, and to the bit once nobody wants a gradient."""
    numbers = make_plan(name, VP, times=TIMES)
    tensors = make_plan(name, VP, times=TIMES.clone().requires_grad_())
    assert tensors.requires_grad and not numbers.requires_grad
    for ours, theirs in zip(tensors.rows, numbers.rows, strict=True):
        assert [j for j, _ in ours.states + ours.outputs] == [
            j for j, _ in theirs.states + theirs.outputs
        ]
        plain = [float(torch.as_tensor(c, dtype=torch.float64).detach()) for c in ours.numbers()]
        assert plain == pytest.approx(theirs.numbers(), rel=1e-11, abs=1e-13)
    with torch.no_grad():
        assert make_plan(name, VP, times=TIMES.clone().requires_grad_()).rows == numbers.rows


def test_what_has_no_gradient_says_so():
    discrete = SCHEDULES["vp_discrete"]
    start = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="snap=True"):
        make_plan("ddim", discrete, nfe=5, t_start=start, snap=True)


def test_a_row_without_gradients_has_none_anywhere():
    middle = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    row = make_plan("ddim", VP, times=[0.9, middle, 0.1], eta=1.0).rows[1]
    assert row.noise and isinstance(row.noise[0].end, Tensor)
    settled = row.without_gradients()
    numbers = [*settled.numbers(), *(end for term in settled.noise for end in term[1:3])]
    assert not any(isinstance(number, Tensor) for number in numbers)
    assert [term.key for term in settled.noise] == [term.key for term in row.noise]
