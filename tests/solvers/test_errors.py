"""Bad input: each gives a ValueError that names the argument, before the network is called."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import SCHEDULES, normal
from torch import nn

from logsnr.solvers import (
    SOLVERS,
    SPACINGS,
    Denoiser,
    FlowMatching,
    Plan,
    VarianceExploding,
    VPCosine,
    VPLinear,
    make_plan,
    run,
    sample,
    sample_parallel,
    solver,
)

VP, FLOW = VPLinear(), FlowMatching()


def plan_of(solver: str = "ddim", schedule=VP, **options) -> Callable[[], Plan]:
    return lambda: make_plan(solver, schedule, **options)


BAD_PLANS: list[tuple[Callable[[], Plan], str]] = [
    # names
    (plan_of("unipcc", nfe=5), "solver='unipcc': choose one of .*unipc"),
    (plan_of("unipc", nfe=5, ordr=2), "ordr=2 is not an option of 'unipc': it has .*order"),
    (plan_of("heun", nfe=5, order=2), "order=2 is not an option of 'heun'"),
    (plan_of(nfe=5, spacing="log"), "spacing='log': choose one of .*logsnr"),
    (plan_of(nfe=5, schedule="vp"), "schedule='vp'"),
    # options
    (plan_of("unipc", nfe=5, order=0), "order=0"),
    (plan_of("unipc", nfe=5, order=2.5), "order=2.5"),
    (plan_of("unipc", nfe=5, order=True), "order=True"),
    (plan_of("unipc", nfe=5, variant="bh3"), "variant='bh3': choose one of 'bh1', 'bh2'"),
    (plan_of("unipc", nfe=5, space="pixel"), "space='pixel': choose one of 'data', 'noise'"),
    (plan_of("dpm-solver++", nfe=5, order=4), "order=4"),
    (plan_of("dpm-solver++", nfe=5, steps="single"), "steps='single': choose one of"),
    (plan_of("dpm-solver", nfe=5, solver_type="heun3"), "solver_type='heun3': choose one of"),
    (plan_of("dpm-solver++", nfe=5, weights="exact"), "weights='exact': choose one of"),
    (plan_of(nfe=5, eta=1.5), "eta=1.5"),
    (plan_of(nfe=5, eta=math.nan), "eta=nan"),
    (plan_of(nfe=5, space="x"), "space='x'"),
    # the number of evaluations
    (plan_of(), "nfe is missing"),
    (plan_of(nfe=0), "nfe=0"),
    (plan_of(nfe=-3), "nfe=-3"),
    (plan_of(nfe=2.5), "nfe=2.5"),
    (plan_of(nfe=True), "nfe=True"),
    (plan_of("unipc", nfe=2, order=3), "nfe=2"),
    (plan_of("dpm-solver++", nfe=1, order=2), "nfe=1"),
    (plan_of("dpm-solver++", nfe=2, order=3, steps="singlestep_fixed"), "nfe=2"),
    (plan_of(nfe=5, times=[1.0, 0.5, 0.1]), "nfe=5 does not fit"),
    (plan_of("heun", nfe=7, times=[1.0, 0.5, 0.1]), "nfe=7"),
    (plan_of(nfe=1001, spacing="trailing", t_end=0.0), "nfe=1001"),
    # the range
    (plan_of(nfe=5, t_start=0.1, t_end=0.5), "t_start=0.1, t_end=0.5"),
    (plan_of(nfe=5, t_start=0.5, t_end=0.5), "t_start=0.5, t_end=0.5"),
    (plan_of(nfe=5, t_start=1.2), "t_start=1.2"),
    (plan_of(nfe=5, t_end=-0.1), "t_end=-0.1"),
    (plan_of(nfe=5, t_start=math.nan), "t_start=nan"),
    (plan_of(nfe=5, spacing="logsnr", t_end=0.0), "t_end=0.0 has lambda=inf"),
    (plan_of(nfe=5, schedule=FLOW, spacing="logsnr"), "t_start=1.0 has lambda=-inf"),
    (plan_of(nfe=5, schedule=VPCosine(), spacing="karras", t_start=1.0), "t_start=1.0"),
    (plan_of(nfe=5, schedule=VarianceExploding(), t_start=math.inf), "t_start=inf"),
    (plan_of(nfe=5, spacing="karras", rho=0.0), "rho=0.0"),
    (plan_of(nfe=5, shift=3.0), "shift=3.0 belongs to FlowMatching"),
    (plan_of(nfe=5, schedule=FLOW, shift=-1.0), "shift=-1.0"),
    (plan_of(nfe=5, snap=True), "snap=True"),
    (plan_of(nfe=5, spacing="time", t_end=0.0, denoise_to_zero=True), "denoise_to_zero=True"),
    # explicit grids
    (plan_of(times=[1.0, 0.2, 0.5, 0.1]), "times=.*strictly falling"),
    (plan_of(times=[1.0, 0.5, 0.5]), "times=.*strictly falling"),
    (plan_of(times=[0.1, 1.0]), "times=.*strictly falling"),
    (plan_of(times=[1.0]), "times has 1 entries"),
    (plan_of(times=[]), "times has 0 entries"),
    (plan_of(times=[1.0, math.nan]), "times="),
    (plan_of(times=[2.0, 0.5]), "times="),
    (plan_of(times=[[1.0, 0.5]]), "times="),
    (plan_of(lams=[1.0, -1.0]), "lams=.*strictly rising"),
    (plan_of(lams=[-40.0, 1.0]), "lams=.*need at least"),
    (plan_of(lams=[-math.inf, 1.0]), "lams="),
    (plan_of(lams=[math.nan, 1.0]), "lams="),
    (plan_of(sigmas=[0.1, 0.9]), "sigmas=.*strictly falling"),
    (plan_of(sigmas=[14.6, 1.0, 0.1]), r"sigmas=.*in \[0, 1\].*lams"),
    (plan_of(times=[1.0, 0.1], lams=[-1.0, 1.0]), "times and lams"),
    (plan_of(times=[1.0, 0.1], spacing="time"), "spacing='time' was given beside times"),
    (plan_of(times=[1.0, 0.1], t_end=0.1), "t_end=0.1 was given beside times"),
    (plan_of(times=[1.0, 0.1], shift=2.0), "shift=2.0 was given beside times"),
]


@pytest.mark.parametrize(("build", "message"), BAD_PLANS, ids=[m for _, m in BAD_PLANS])
def test_bad_plans(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_and_spacing_is_offered_by_name(name):
    with pytest.raises(ValueError, match=name.replace("+", r"\+")):
        make_plan("nonesuch", VP, nfe=5)
    for spacing in SPACINGS:
        with pytest.raises(ValueError, match=spacing):
            make_plan(name, VP, nfe=12, spacing="nonesuch")


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_refuses_too_few_evaluations_for_its_order(name):
    if "order" not in SOLVERS[name].defaults:
        return
    with pytest.raises(ValueError, match="nfe=1|order=2"):
        make_plan(name, VP, nfe=1, order=2, **multistep(name))


def multistep(name: str) -> dict[str, str]:
    return {"steps": "multistep"} if "steps" in SOLVERS[name].defaults else {}


# the network's side


class Counting(nn.Module):
    """A network with a parameter, so that its device and dtype are known; it counts its calls."""

    def __init__(self, **kind):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, **kind))
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        return 0.5 * x


X = normal(2, 4, dtype=torch.float32)
PLAN = make_plan("unipc", VP, nfe=5)
PURE_NOISE = make_plan("unipc", FLOW, nfe=5)
ANCESTRAL = make_plan("ddim", VP, nfe=5, eta=1.0)
BAD_VALUE = X.clone().index_fill_(1, torch.tensor([2]), math.nan)

BAD_RUNS: list[tuple[dict, str]] = [
    ({"x": BAD_VALUE}, "x_T has values that are not finite"),
    ({"x": X * math.inf}, "x_T has values that are not finite"),
    ({"x": X.long()}, "x_T is torch.int64"),
    ({"x": X.numpy()}, "x_T is ndarray"),
    ({"x": X[0]}, r"x_T has shape \(4,\)"),
    ({"x": X.to("meta")}, "x_T is on device meta, the network on cpu"),
    ({"network": Counting(device="meta")}, "x_T is on device cpu, the network on meta"),
    ({"x": X.double()}, "x_T has dtype torch.float64, the network torch.float32"),
    ({"network": Counting(dtype=torch.float16)}, "x_T has dtype torch.float32"),
    ({"plan": PURE_NOISE}, "prediction='epsilon' cannot be used at t=1"),
    ({"plan": PURE_NOISE, "prediction": "score"}, "prediction='score' cannot be used at t=1"),
    ({"plan": "unipc"}, "plan='unipc'"),
    ({"plan": ANCESTRAL, "noise": 1.5}, "noise=1.5"),
    ({"plan": ANCESTRAL, "noise": []}, r"noise=\[\]"),
    ({"plan": ANCESTRAL, "noise": [1]}, "noise has 1 seeds"),
    ({"plan": ANCESTRAL, "noise": [X]}, "noise has 1 tensors"),
    ({"plan": ANCESTRAL, "noise": [X[:1]] * 5}, r"noise has shape \(1, 4\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_RUNS, ids=[m for _, m in BAD_RUNS])
def test_bad_runs_never_call_the_network(change, message):
    case = {"x": X, "plan": PLAN, "prediction": "epsilon", "noise": None, "network": Counting()}
    case |= change
    denoise = Denoiser(case["network"], VP, case["prediction"])
    with pytest.raises(ValueError, match=message):
        sample(denoise, case["x"], case["plan"], noise=case["noise"])
    assert case["network"].calls == 0


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (lambda term, like: like[:1], r"noise has shape \(1, 4\): need \(2, 4\)"),
        (lambda term, like: like[0], r"noise has shape \(4,\)"),
        (lambda term, like: 0.5, "noise returned float"),
    ],
)
def test_the_same_noise_for_every_sample_is_refused(noise, message):
    """It would be broadcast, and every sample be the same."""
    denoise = lambda x, t: 0 * x  # noqa: E731
    for draw in (sample, sample_parallel):
        with pytest.raises(ValueError, match=message):
            draw(denoise, X, ANCESTRAL, noise=noise)


def test_plain_functions_are_checked_too():
    with pytest.raises(ValueError, match="x_T is on device meta"):
        sample(lambda x, t: x, X.to("meta"), PLAN)
    with pytest.raises(ValueError, match="denoise=None"):
        sample(None, X, PLAN)
    for wrong, message in ((X[:1], r"\(1, 4\): .*\(2, 4\)"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"denoise returned {message}"):
            sample(lambda x, t, wrong=wrong: wrong, X, PLAN)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x[:1], r"network returned shape \(1, 4\): need that of x, \(2, 4\)"),
        (lambda x: x[:, :2], r"network returned shape \(2, 2\)"),
        (lambda x: torch.cat([x, x], 1), r"network returned shape \(2, 8\)"),
        (lambda x: None, "network returned NoneType"),
        (lambda x: [x], "network returned list"),
        (lambda x: x.long(), "network returned dtype torch.int64"),
        (lambda x: x * math.nan, "network returned values that are not finite at t=1"),
        (lambda x: x / 0, "network returned values that are not finite at t=1"),
    ],
)
def test_a_bad_output_is_refused_at_the_first_call(output, message):
    calls = []

    def network(x, t):
        calls.append(float(t[0]))
        return output(x)

    with pytest.raises(ValueError, match=message):
        sample(Denoiser(network, VP), X, PLAN)
    assert calls == [1.0]


def test_a_late_non_finite_output_is_reported_with_its_time():
    def network(x, t):
        return torch.where(t[:, None] < 0.5, math.nan, x)

    first = next(t for t in PLAN.times if t < 0.5)
    with pytest.raises(ValueError, match=f"not finite at t={first:.6g}"):
        sample(Denoiser(network, VP), X, PLAN)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Denoiser(None, VP), "network=None"),
        (lambda: Denoiser(Counting(), "vp"), "schedule='vp'"),
        (lambda: Denoiser(Counting(), VP, "eps"), "prediction='eps': choose one of epsilon"),
        (lambda: Denoiser(Counting(), VP, "v"), "prediction='v': choose one of .*v_prediction"),
        (lambda: next(run(PLAN, X, "eps")), "prediction='eps': choose one of"),
    ],
)
def test_bad_denoisers(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_condition_belongs_into_the_guidance():
    from logsnr.solvers import ClassifierFree

    guidance = ClassifierFree(2.0, {"c": 1}, {"c": 0})
    with pytest.raises(ValueError, match="condition was given beside guidance"):
        Denoiser(Counting(), VP, guidance=guidance, condition={"c": 1})


def test_casting_is_offered_and_works():
    network = Counting(dtype=torch.float16)
    result = sample(Denoiser(network, VP, dtype=torch.float16), X, PLAN)
    assert result.dtype == torch.float32 and network.calls == PLAN.nfe


def test_zero_terminal_snr_is_named_for_every_schedule_that_has_it():
    for schedule in (SCHEDULES["vp_zero_terminal"], VPCosine(), FLOW):
        plan = make_plan("ddim", schedule, nfe=4, spacing="time", t_start=1.0)
        with pytest.raises(ValueError, match="zero terminal SNR.*v_prediction"):
            sample(Denoiser(Counting(), schedule, "epsilon"), X, plan)


@pytest.mark.parametrize("name", ["ddim", "DDIM", "unipc-3", "dpmpp_2m", "Euler"])
def test_the_name_of_a_solver_is_not_taken_away(name):
    before = dict(SOLVERS)
    register = solver(name, order=lambda options: 1, title="another", paper="song2021ddim")
    with pytest.raises(ValueError, match=f"solver\\('{name}'\\): the name means"):

        @register
        def ddim(grid, nfe=None):
            """Another method."""

    assert before == SOLVERS


def test_a_solver_may_be_registered_again_by_the_same_function():
    for order in (1, 2):

        @solver("again", order=lambda options, order=order: order, title="", paper="song2021ddim")
        def again(grid, nfe=None):
            """Run as a cell of a notebook is run twice."""

    assert SOLVERS.pop("again").order({}) == 2


WANTS_GRADIENT = torch.tensor([0.9, 0.5, 0.1], requires_grad=True)


@pytest.mark.parametrize(("name", "sign"), [("times", 1), ("sigmas", 1), ("lams", -1)])
def test_without_gradients_the_numbers_are_taken(name, sign):
    values = sign * WANTS_GRADIENT
    with torch.no_grad():
        plan = make_plan("ddim", VP, **{name: values})
    assert plan.rows == make_plan("ddim", VP, **{name: values.detach()}).rows


def test_a_grid_is_named_as_it_was_given():
    for name, values in (("times", [2.0, 1.0]), ("sigmas", [2.0, 1.0]), ("sigmas", ["a", "b"])):
        with pytest.raises(ValueError, match=f"^{name}="):
            make_plan("ddim", FLOW, **{name: values})
