"""k-diffusion's interface in both directions, against closed forms and loops written here."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from cases import GAUSSIAN, MIXTURE, SCHEDULES, normal
from torch import Tensor

from logsnr.adapters import k_diffusion
from logsnr.adapters.k_diffusion import (
    SAMPLERS,
    from_k_diffusion,
    function_name,
    sampler,
    to_k_diffusion,
)
from logsnr.solvers import (
    SOLVERS,
    ClassifierFree,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    Node,
    VarianceExploding,
    make_plan,
    sample,
)
from logsnr.solvers.prediction import to_data

VE = VarianceExploding(0.05, 20.0)
WITH_ETA = sorted(name for name in SOLVERS if "eta" in SOLVERS[name].defaults)
WITH_CHURN = sorted(name for name in SOLVERS if "s_churn" in SOLVERS[name].defaults)
PLAIN = sorted(SOLVERS)
NAMES = [function_name(solver) for solver in PLAIN]


def karras(n: int, *, zero: bool = True, low: float = 0.05, high: float = 20.0) -> Tensor:
    """n falling noise levels, and 0 after them, float64."""
    ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7
    return torch.cat([ramp, torch.zeros(1, dtype=torch.float64)]) if zero else ramp


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x0 + sigma n = x] for x0 ~ N(mean, std^2), entry by entry."""
    s2, sigma2 = GAUSSIAN.scale**2, sigma[:, None] ** 2
    return (s2 * x + sigma2 * GAUSSIAN.mean) / (s2 + sigma2)


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """The same for `MIXTURE`, written out here."""
    variance = MIXTURE.scales[:, None] ** 2
    gap = x[:, None] - MIXTURE.means
    total = variance + sigma[:, None, None] ** 2
    size = x.shape[1]
    weight = MIXTURE.weights.log() - 0.5 * (gap**2 / total).sum(-1) - size / 2 * total[..., 0].log()
    means = MIXTURE.means + variance / total * gap
    return (weight.softmax(1)[..., None] * means).sum(1)


def counted(model):
    def call(x, sigma, **extra):
        call.sigmas.append(float(sigma[0]))
        assert sigma.shape == x.shape[:1] and sigma.dtype == x.dtype
        return model(x, sigma, **extra)

    call.sigmas = []
    return call


def start(sigma: float, seed: int = 0) -> Tensor:
    x0 = MIXTURE.draw(3, torch.Generator().manual_seed(seed))
    return x0 + sigma * normal(3, 4, seed=seed + 1)


# Loops in k-diffusion's way of writing them: what the interface means.


def euler_loop(model, x, sigmas):
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - model(x, s.expand(len(x)))) / s * (t - s)
    return x


def heun_loop(model, x, sigmas):
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        d = (x - model(x, s.expand(len(x)))) / s
        ahead = x + d * (t - s)
        if t > 0:
            d = (d + (ahead - model(ahead, t.expand(len(x)))) / t) / 2
        x = x + d * (t - s)
    return x


@pytest.mark.parametrize("name", ["sample_euler", "sample_ddim"])
@pytest.mark.parametrize("zero", [True, False])
def test_euler_is_the_loop(name, zero):
    sigmas, x = karras(9, zero=zero), start(20.0)
    ours = getattr(k_diffusion, name)(mixture, x, sigmas)
    torch.testing.assert_close(ours, euler_loop(mixture, x, sigmas), rtol=1e-12, atol=1e-12)


def test_heun_is_the_loop_over_the_sigmas_it_can_afford():
    """13 evaluations are 6 steps of two and one to zero: 8 of the 14 levels."""
    sigmas, x = karras(13), start(20.0)
    model = counted(mixture)
    ours = k_diffusion.sample_heun(model, x, sigmas)
    assert len(model.sigmas) == 13
    picked = sigmas[[j * 13 // 7 for j in range(8)]]
    torch.testing.assert_close(ours, heun_loop(mixture, x, picked), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_takes_one_evaluation_a_sigma(name):
    for n in (1, 2, 3, 8):
        for sigmas in (karras(n), karras(n + 1, zero=False)):
            model = counted(mixture)
            x = SAMPLERS[name](model, start(20.0), sigmas.float())
            assert len(model.sigmas) == n and x.isfinite().all()
            assert model.sigmas[0] == 20.0


@pytest.mark.parametrize("solver", PLAIN)
def test_the_sampler_is_our_sample_on_variance_exploding(solver):
    """On every sigma where the solver takes one evaluation a step; in any case, to the ODE."""
    entry, sigmas, x = SOLVERS[solver], karras(60), start(20.0)
    ours = sampler(solver)(gaussian, x, sigmas)
    s2 = GAUSSIAN.scale**2
    exact = GAUSSIAN.mean + (x - GAUSSIAN.mean) * (s2 / (s2 + 20.0**2)).sqrt()
    if not make_plan(solver, VE, nfe=4).stochastic:
        assert (ours - exact).abs().max() < (0.25 if entry.order(entry.defaults) == 1 else 0.03)
    if entry.nfe_per_step(entry.defaults) == 1:
        plan = make_plan(solver, VE, sigmas=sigmas)
        denoise = Denoiser(gaussian, VE, "sample")
        seeds = [1, 2, 3]
        expected = sample(denoise, x, plan, noise=seeds)
        again = sampler(solver)(gaussian, x, sigmas, noise_sampler=seeds)
        torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_flow_models_end_at_the_only_data_point(name):
    """x = (1 - sigma) x0 + sigma n from pure noise; the model knows one x0."""
    point = normal(1, 4, seed=5)
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64)
    model = counted(lambda x, sigma: point.expand_as(x))
    x = SAMPLERS[name](model, normal(3, 4), sigmas, schedule="flow")
    torch.testing.assert_close(x, point.expand(3, 4), rtol=1e-12, atol=1e-12)
    assert len(model.sigmas) == 8 and model.sigmas[0] == 1.0


def test_flow_euler_is_the_loop():
    """v = (x - x0) / sigma, x' = x + (sigma' - sigma) v, as flow samplers have it."""
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64) ** 1.5

    def model(x, sigma):
        return torch.tanh(x) * (1 - sigma[:, None])

    x = expected = normal(3, 4)
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        expected = expected + (t - s) * (expected - model(expected, s.expand(3))) / s
    ours = sampler("euler", schedule="flow")(model, x, sigmas)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


# Options, noise, callbacks


@pytest.mark.parametrize("solver", WITH_ETA)
def test_noise_comes_from_their_noise_sampler_by_sigma(solver):
    sigmas, asked = karras(6), []

    def noise_sampler(sigma, sigma_next):
        assert sigma.dtype == sigmas.dtype
        asked.append((float(sigma), float(sigma_next)))
        return normal(3, 4, seed=len(asked))

    x = SAMPLERS[function_name(solver)](
        mixture, start(20.0), sigmas, eta=1.0, noise_sampler=noise_sampler
    )
    known = set(sigmas.tolist())
    assert asked and all(s > t > 0 for s, t in asked)
    if SOLVERS[solver].nfe_per_step(SOLVERS[solver].defaults | {"eta": 1.0}) == 1:
        assert {level for pair in asked for level in pair} <= known
    again = SAMPLERS[function_name(solver)](
        mixture,
        start(20.0),
        sigmas,
        eta=1.0,
        noise_sampler=[normal(3, 4, seed=k) for k in (9,) * 20],
    )
    assert (x - again).abs().max() > 1e-3


def test_ancestral_euler_is_the_loop():
    sigmas, x = karras(7), start(20.0)
    draws = [normal(3, 4, seed=k) for k in range(7)]
    expected = x
    for z, s, t in zip(draws, sigmas, sigmas[1:], strict=False):
        up = t * (1 - (t / s) ** 2).sqrt()
        down = (t**2 - up**2).sqrt()
        expected = expected + (expected - mixture(expected, s.expand(3))) / s * (down - s) + up * z
    queue = iter(draws)
    ours = k_diffusion.sample_ddim(
        mixture, x, sigmas, eta=1.0, noise_sampler=lambda s, t: next(queue)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_churn_and_the_callback_tell_both_noise_levels():
    """gamma = min(s_churn / steps, sqrt(2) - 1) where sigma is in [s_tmin, s_tmax]."""
    sigmas, x = karras(6), start(20.0)
    told: list[dict] = []
    model = counted(mixture)
    k_diffusion.sample_euler(
        model, x, sigmas, None, told.append, True, s_churn=1.2, s_tmin=0.5, s_tmax=10.0
    )
    assert [entry["i"] for entry in told] == list(range(6))
    for entry, sigma, called in zip(told, sigmas, model.sigmas, strict=False):
        assert set(entry) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        factor = 1.2 if 0.5 <= sigma <= 10.0 else 1.0
        assert float(entry["sigma"]) == pytest.approx(float(sigma), rel=1e-12)
        assert float(entry["sigma_hat"]) == pytest.approx(factor * float(sigma), rel=1e-12)
        assert called == float(entry["sigma_hat"])
        level = entry["sigma_hat"].expand(3)
        torch.testing.assert_close(entry["denoised"], mixture(entry["x"], level))


@pytest.mark.parametrize("solver", WITH_CHURN)
def test_churn_at_the_first_level_is_possible(solver):
    model = counted(mixture)
    SAMPLERS[function_name(solver)](model, start(20.0), karras(8), s_churn=2.0)
    assert model.sigmas[0] > 20.0 and len(model.sigmas) == 8


def test_a_callback_may_edit_the_state_in_place():
    """What is added after the first evaluation moves the result as the sum of the weights says."""
    sigmas, x = karras(4), start(20.0)
    x0 = torch.zeros(3, 4, dtype=torch.float64)

    def edit(entry):
        if entry["i"] == 1:
            entry["x"].add_(1.0)

    plain = k_diffusion.sample_euler(lambda x, sigma: x0, x, sigmas[:4])
    edited = k_diffusion.sample_euler(lambda x, sigma: x0, x, sigmas[:4], callback=edit)
    share = (sigmas[3] / sigmas[1]).expand(3, 4)
    torch.testing.assert_close(edited - plain, share, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_programs_can_look_up_the_options(solver):
    """k-diffusion's callers read the signature to see whether a sampler has eta or s_churn."""
    function = getattr(k_diffusion, function_name(solver))
    assert function is SAMPLERS[function_name(solver)]
    assert function.__name__ == function_name(solver) and solver in function.__doc__
    names = list(inspect.signature(function).parameters)
    assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    for option in SOLVERS[solver].defaults:
        assert {"s_min": "s_tmin", "s_max": "s_tmax"}.get(option, option) in names


def test_options_can_be_set_beforehand_and_at_the_call():
    sigmas, x = karras(8), start(20.0)
    third = sampler("dpm-solver++", order=3)
    expected = k_diffusion.sample_dpm_solver_pp(mixture, x, sigmas, order=3)
    assert torch.equal(third(mixture, x, sigmas), expected)
    assert inspect.signature(third).parameters["order"].default == 3
    second = k_diffusion.sample_dpm_solver_pp(mixture, x, sigmas)
    assert torch.equal(third(mixture, x, sigmas, order=2), second)
    assert not torch.equal(second, expected)


def test_extra_args_reach_the_model_and_weights_may_be_of_another_dtype():
    class Half(torch.nn.Linear):
        def forward(self, x, sigma, *, scale):
            return scale * super().forward(x.to(self.weight.dtype)).to(x.dtype)

    model = Half(4, 4).to(torch.bfloat16)
    x = k_diffusion.sample_unipc(model, normal(3, 4), karras(3), {"scale": 0.0})
    assert x.abs().max() == 0
    assert from_k_diffusion(model, scale=0.0)(normal(3, 4), 1.0).abs().max() == 0


@pytest.mark.parametrize("schedule", ["ve", "flow"])
@pytest.mark.parametrize("name", NAMES)
def test_zeros_after_the_first_are_no_steps(name, schedule):
    levels = karras(5) if schedule == "ve" else karras(5, high=1.0)
    model, called = counted(gaussian), []
    x = levels[0] * normal(3, 4)
    fixed = {"disable": True, "schedule": schedule, "noise_sampler": 7}
    expected = SAMPLERS[name](gaussian, x, levels, **fixed)
    for zeros in (1, 2, 5):
        model.sigmas.clear()
        more = torch.cat([levels, torch.zeros(zeros)])
        result = SAMPLERS[name](model, x, more, callback=called.append, **fixed)
        assert torch.equal(result, expected)
        assert len(model.sigmas) == 5
    assert len(called) == 15
    short = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    end = SAMPLERS[name](gaussian, x, short, **fixed)
    torch.testing.assert_close(end, gaussian(x, torch.ones(3).double()))


def test_one_sigma_is_no_step():
    x = start(20.0)
    assert k_diffusion.sample_unipc(mixture, x, karras(1, zero=False)) is x


@pytest.mark.parametrize(
    ("sigmas", "options", "says"),
    [
        ([], {}, "sigmas=[]"),
        ([1.0, 2.0, 0.0], {}, "noise to data"),
        ([1.0, math.nan], {}, "finite"),
        ([1.0, -0.5], {}, "at least 0"),
        ([0.0, 0.0], {}, "from a positive one"),
        ([2.0, 0.5], {"schedule": "flow"}, "in [0, 1]"),
        ([1.0, 0.5], {"schedule": "vp"}, "schedule='vp': choose one of ve, flow"),
        ([1.0, 0.5], {"orders": 2}, "orders=2 is not an option of 'unipc'"),
        ([1.0, 0.5], {"order": "two"}, "order='two': need a whole number"),
    ],
)
def test_bad_input_is_named_before_the_model_is_called(sigmas, options, says):
    def model(x, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError) as error:
        k_diffusion.sample_unipc(model, normal(3, 4), sigmas, **options)
    assert says in str(error.value)


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match="solver='lcm': choose one of"):
        sampler("lcm")
    with pytest.raises(AttributeError, match="sample_lcm.*sample_unipc"):
        k_diffusion.sample_lcm  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        k_diffusion.other  # noqa: B018
    assert set(SAMPLERS) <= set(dir(k_diffusion))


# Models in both directions


def test_from_k_diffusion_takes_its_range_from_the_model():
    def model(x, sigma):
        return gaussian(x, sigma)

    assert from_k_diffusion(model).schedule == VarianceExploding()
    model.sigma_min, model.sigma_max = torch.tensor(0.25), torch.tensor(8.0)
    assert from_k_diffusion(model).schedule == VarianceExploding(0.25, 8.0)
    assert from_k_diffusion(model, sigma_max=4.0).schedule == VarianceExploding(0.25, 4.0)
    x = start(3.0)
    torch.testing.assert_close(from_k_diffusion(model)(x, 3.0), gaussian(x, torch.full((3,), 3.0)))
    with pytest.raises(ValueError, match="sigma_min"):
        from_k_diffusion(model, sigma_min=9.0)
    with pytest.raises(ValueError, match="need a callable"):
        from_k_diffusion(None)


def native(name: str, prediction: str, seen: list) -> Denoiser:
    """`GAUSSIAN` as a network of ``prediction`` on a schedule, by its closed form."""
    schedule = SCHEDULES[name]

    def network(x, told):
        seen.append(told)
        t = (told + 1) / schedule.steps if isinstance(schedule, DiscreteVP) else told
        outputs = []
        for row, time in zip(x, t.tolist(), strict=True):
            node = Node(time, schedule.alpha(time), schedule.sigma(time))
            ratio = torch.tensor([node.sigma / node.alpha], dtype=torch.float64)
            x0 = gaussian(row[None] / node.alpha, ratio)[0]
            out, state = to_data(prediction, node)
            outputs.append((x0 - state * row) / out)
        return torch.stack(outputs)

    return Denoiser(network, schedule, prediction)


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "vp_discrete", "edm", "flow"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction"])
def test_any_denoiser_is_a_k_diffusion_model(name, prediction):
    """x = x0 + sigma n has one posterior mean, whatever the network behind it was trained on."""
    model = to_k_diffusion(native(name, prediction, []))
    sigma = torch.tensor([9.0, 1.0, 0.1], dtype=torch.float64)
    x = GAUSSIAN.mean + normal(3, 4) * (GAUSSIAN.scale**2 + sigma[:, None] ** 2).sqrt()
    torch.testing.assert_close(model(x, sigma), gaussian(x, sigma), rtol=1e-8, atol=1e-8)
    one = torch.full((3,), 1.0, dtype=torch.float64)
    torch.testing.assert_close(model(x, one), gaussian(x, one), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model(x, 1.0), model(x, one), rtol=0, atol=0)


def test_their_loop_runs_on_our_discrete_model():
    """A loop of theirs on the disguised model is our solver on the model itself."""
    denoise = native("vp_discrete", "epsilon", [])
    model = to_k_diffusion(denoise)
    assert isinstance(model.sigma_min, Tensor)
    low, high = float(model.sigma_min), float(model.sigma_max)
    assert high == pytest.approx(14.6, abs=0.1) and low == pytest.approx(0.0292, abs=1e-4)
    sigmas = karras(9, low=low, high=high)
    x = high * normal(3, 4)
    schedule = denoise.schedule
    plan = make_plan("euler", schedule, times=[*schedule.time(-torch.log(sigmas[:-1])), 0.0])
    ours = sample(denoise, x * schedule.alpha(1.0), plan)
    torch.testing.assert_close(euler_loop(model, x, sigmas), ours, rtol=1e-8, atol=1e-8)


def test_there_and_back_is_the_same_denoiser():
    denoise = native("vp_linear", "v_prediction", [])
    back = from_k_diffusion(to_k_diffusion(denoise))
    low = math.exp(-denoise.schedule.lam(denoise.schedule.t_end))
    assert back.schedule.sigma_min == pytest.approx(low)
    x = start(2.0)
    t = denoise.schedule.time(-math.log(2.0))
    expected = denoise(denoise.schedule.alpha(t) * x, t)
    torch.testing.assert_close(back(x, 2.0), expected, rtol=1e-9, atol=1e-9)


def test_arguments_of_a_call_are_conditions_of_the_network():
    def network(x, t, *, scale=1.0, shift=0.0):
        return scale * x + shift

    model = to_k_diffusion(Denoiser(network, VE, "sample", condition={"scale": 2.0}))
    x = normal(3, 4)
    assert torch.equal(model(x, 1.0, shift=1.0), 2 * x + 1)
    assert torch.equal(model(x, 1.0), 2 * x)
    guided = Denoiser(network, VE, "sample", guidance=ClassifierFree(2.0, {}, {}))
    with pytest.raises(ValueError, match="shift was given to a denoiser with guidance"):
        to_k_diffusion(guided)(x, 1.0, shift=1.0)


def test_sigmas_outside_the_schedule_are_refused():
    model = to_k_diffusion(native("vp_discrete", "epsilon", []))
    x = normal(3, 4)
    top = float(model.sigma_max)
    model(x, torch.full((3,), top, dtype=torch.float32))  # rounded up or down
    for bad in (1.01 * top, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="need 0 < sigma <= 14.6"):
            model(x, bad)
    assert float(to_k_diffusion(native("flow", "epsilon", [])).sigma_max) == math.inf
    with pytest.raises(ValueError, match="need a Denoiser"):
        to_k_diffusion(FlowMatching())
