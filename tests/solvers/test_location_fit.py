"""`fit_location`: the location of the logistic grid by a few runs, where the answer is known."""

import math

import pytest
import torch
from cases import SCHEDULES

from logsnr.benchmarks.problems.analytic import Mixture, exact_denoiser, point_mass
from logsnr.solvers import default_location, fit_location, make_plan, reference_solution, sample
from logsnr.solvers.location_fit import LOCATIONS, lowest

DIMENSION = 16
LARGE = 5.0


def denoiser(schedule, scale=1.0):
    """Of the data of a mixture times ``scale``."""
    rng = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(6, DIMENSION, generator=rng, dtype=torch.float64)
    weights, scales = torch.full((6,), 1 / 6, dtype=torch.float64), torch.full((6,), 0.15)
    mixture = Mixture(weights, scale * means, scale * scales)
    return exact_denoiser(mixture, schedule, "sample")


def starts(schedule, seeds=range(8), dtype=torch.float64):
    plan = make_plan("ddim", schedule, nfe=1)
    return plan.start((len(seeds), DIMENSION), seeds, dtype=dtype)


def counted(denoise):
    calls = []

    def count(x, t):
        calls.append(t)
        return denoise(x, t)

    return count, calls


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_data_of_another_scale_move_the_location_by_its_logarithm(factor):
    """k times the data is the same model at lambda - log k, where both ends are infinite."""
    schedule, x_T = SCHEDULES["flow"], starts(SCHEDULES["flow"])
    first, moved = (
        fit_location(
            denoiser(schedule, scale), x_T, schedule, solver="unipc", order=2, locations=places
        )
        for scale, places in [
            (LARGE, LOCATIONS),
            (LARGE * factor, [c - math.log(factor) for c in LOCATIONS]),
        ]
    )
    assert not first.at_an_end
    assert moved.location == pytest.approx(first.location - math.log(factor), abs=1e-6)
    assert moved.errors == pytest.approx([factor * error for error in first.errors], rel=1e-6)


@pytest.mark.parametrize("name", ["vp_linear", "edm", "flow"])  # whose ends lie far out
def test_on_one_list_too_within_what_a_few_starts_tell(name):
    schedule, x_T = SCHEDULES[name], starts(SCHEDULES[name], range(64))
    places = [-2.0, -1.6, -1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.2, 1.6]
    rule = {"locations": places, "nfe": range(5, 11)}  # of one number, errors cancel by chance
    small, large = (
        fit_location(denoiser(schedule, scale), x_T, schedule, **rule).location
        for scale in (2.0, 8.0)
    )
    assert small - large == pytest.approx(math.log(4), abs=0.4)


@pytest.mark.parametrize("name", ["vp_linear", "vp_discrete", "edm", "flow"])
@pytest.mark.parametrize("scale", [1.0, LARGE])
def test_the_fitted_location_is_no_worse_than_the_rules(name, scale):
    """On starts that the fit has not seen, against the converged solution."""
    schedule = SCHEDULES[name]
    denoise = denoiser(schedule, scale)
    flow = {"solver": "ipndm", "order": 2, "variable": "time", "corrector": True}
    solver = flow if name == "flow" else {"solver": "unipc", "order": 2}
    fitted = fit_location(denoise, starts(schedule), schedule, **solver).location
    unseen = starts(schedule, range(100, 164))
    exact, _ = reference_solution(denoise, unseen, schedule, rtol=1e-6)

    def error(location):
        plans = [make_plan(**solver, schedule=schedule, nfe=n, location=location) for n in (6, 8)]
        gaps = [sample(denoise, unseen, plan) - exact for plan in plans]
        return float(torch.stack(gaps).square().mean(-1).sqrt().log().mean().exp())

    assert error(fitted) < 1.05 * error(default_location(schedule))


def test_what_is_found_is_the_mean_log_error_of_the_runs():
    """Evaluations counted, errors by hand from one long run and one run each."""
    schedule = SCHEDULES["vp_discrete"]
    x_T, ends = starts(schedule, range(3)), {"t_end": 2e-3, "snap": True}
    denoise, calls = counted(denoiser(schedule))
    options = {"locations": [-1.0, 0.5, 1.0], "nfe": [3, 4], "reference_nfe": 20}
    found = fit_location(
        denoise, x_T, schedule, solver="dpm-solver++", order=2, scale=1.1, **options, **ends
    )
    assert found.evaluations == len(calls) == 20 + 3 * (3 + 4)
    assert found.tried == (-1.0, 0.5, 1.0)
    long = make_plan("unipc", schedule, nfe=20, order=3, location=0.0, scale=1.7, **ends)
    exact = sample(denoise, x_T, long)
    for location, error in zip(found.tried, found.errors, strict=True):
        product = 1.0
        for n in (3, 4):
            rule = {"location": location, "scale": 1.1, **ends}
            x = sample(denoise, x_T, make_plan("dpm-solver++", schedule, nfe=n, order=2, **rule))
            product *= float((x - exact).square().mean(1).sqrt().prod())
        assert error == pytest.approx(product ** (1 / 6), rel=1e-9)
    assert found.location == lowest(found.tried, [math.log(error) for error in found.errors])


@pytest.mark.parametrize("vertex", [-0.7, 0.13, 0.9])
def test_the_parabola_is_followed_to_its_vertex_and_not_beyond_the_ends(vertex):
    places = [-1.0, -0.3, 0.1, 0.6]
    logs = [2.0 * (c - vertex) ** 2 - 3 for c in places]
    assert lowest(places, logs) == pytest.approx(min(vertex, 0.6), abs=1e-12)


def test_without_a_valley_the_least_is_taken_and_lost_runs_are_not():
    assert lowest([0.0, 1.0, 2.0], [3.0, 2.0, 1.0]) == 2.0
    assert lowest([0.0, 1.0, 2.0], [1.0, 3.0, 2.0]) == 0.0
    assert lowest([0.0, 1.0, 2.0, 3.0], [math.inf, 1.0, 2.0, 3.0]) == 1.0
    with pytest.raises(ValueError, match="no run at any of the locations"):
        lowest([0.0, 1.0, 2.0], [math.inf] * 3)


def test_data_at_one_point_have_a_location_too():
    """Every solver is exact there, so that the errors are rounding."""
    schedule = SCHEDULES["vp_linear"]
    denoise = exact_denoiser(point_mass(torch.zeros(DIMENSION)), schedule, "sample")
    found = fit_location(denoise, starts(schedule, dtype=torch.float32), schedule)
    assert found.tried[0] <= found.location <= found.tried[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"locations": [0.0, 1.0]}, r"locations=\[0.0, 1.0\]: need at least three"),
        ({"locations": [0.0, 1.0, 1.0]}, "locations=.*rising"),
        ({"locations": [0.0, 1.0, math.inf]}, "locations=.*finite"),
        ({"locations": 0.5}, "locations=0.5: need a list"),
        ({"locations": ["a", "b", "c"]}, "locations=.*need a list"),
        ({"nfe": 6}, "nfe=6: need a list"),
        ({"nfe": []}, r"nfe=\[\]: need a list"),
        ({"nfe": [6, 0]}, r"nfe=\[6, 0\]: need a list"),
        ({"nfe": [6, True]}, "nfe=.*need a list"),
        ({"reference_nfe": 8}, "reference_nfe=8: need a whole number above 8"),
        ({"reference_nfe": 60.5}, "reference_nfe=60.5: need a whole number"),
        ({"spacing": "karras"}, "spacing='karras': the grids of the fit"),
        ({"location": 0.3}, "location=0.3: the grids of the fit"),
        ({"times": [1.0, 0.5]}, r"times=\[1.0, 0.5\]: the grids of the fit"),
        ({"solver": "eulerish"}, "'eulerish'"),
        ({"solver": "unipc", "orders": 2}, "orders=2"),
        ({"eta": 1.0}, "eta=1.0 is not an option"),
        ({"solver": "ddim", "eta": 1.0}, "solver='ddim' adds noise"),
        ({"scale": -1.0}, "scale=-1.0: need a positive"),
        ({"shift": 2.0}, "shift=2.0 belongs to FlowMatching"),
        ({"t_end": 2.0}, "t_end=2.0"),
        ({"schedule": None}, "schedule=None"),
        ({"x_T": torch.zeros(3)}, "x_T has shape"),
        ({"x_T": torch.zeros(3, 4, dtype=torch.int64)}, "x_T is torch.int64"),
        ({"x_T": torch.full((3, 4), math.nan)}, "x_T has values that are not finite"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_called(arguments, message):
    schedule = SCHEDULES["vp_linear"]
    denoise, calls = counted(denoiser(schedule))
    given = {"x_T": starts(schedule), "schedule": schedule, **arguments}
    with pytest.raises(ValueError, match=message):
        fit_location(denoise, **given)
    assert not calls
