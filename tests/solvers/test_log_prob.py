"""Densities of stochastic steps: closed forms, joint Gaussians, gradients, stored trajectories."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    SOLVERS,
    CounterNoise,
    Denoiser,
    FlowMatching,
    Noise,
    Plan,
    Row,
    Target,
    make_plan,
    sample,
    step_distributions,
    step_log_prob,
)
from logsnr.solvers.shared_noise import draws, sharing

VP = SCHEDULES["vp_linear"]
DDIM = make_plan("ddim", VP, nfe=4, eta=0.7)
CHURN = make_plan("heun", VP, nfe=7, s_churn=6.0, t_end=0.01)


def with_noise(plan: Plan, terms: dict[int, tuple[Noise, ...]]) -> Plan:
    """``plan`` with other noise, whatever its marginals are then."""
    rows = [replace(row, noise=terms.get(k, ())) for k, row in enumerate(plan.rows)]
    return Plan(tuple(rows), consistent=False)


def predictor_corrector() -> Plan:
    """Two steps with an evaluated predictor and a corrector that repeats its noise."""
    nodes = [row.node for row in DDIM.rows]
    data = Target(0.0, 1.0, 0.0)
    whole = [Noise(0.4, 0.0, 1.0), Noise(0.3, 1.0, 2.0)]
    rows = (
        Row(nodes[0], target=data),
        Row(nodes[1], ((0, 0.8),), ((0, 0.2),), data, noise=(whole[0],)),
        Row(nodes[1], ((0, 0.8),), ((0, 0.1), (1, 0.1)), noise=(whole[0],)),
        Row(nodes[2], ((2, 0.7),), ((1, 0.3),), data, noise=(whole[1],)),
        Row(nodes[2], ((2, 0.7),), ((1, 0.1), (3, 0.2)), noise=(whole[1],)),
        Row(nodes[3], ((4, 0.6),), ((3, 0.4),), noise=(Noise(0.2, 2.0, 3.0),)),
    )
    return Plan(rows, consistent=False)


PLANS = {
    "ddim": DDIM,
    "churn": CHURN,
    "two terms a step": with_noise(
        DDIM, {k: (Noise(0.3, k, k + 1.0), Noise(-0.2, k, k + 1.0, moment=1)) for k in (1, 2, 4)}
    ),
    "overlapping": with_noise(
        DDIM, {1: (Noise(0.5, 0.0, 1.0),), 2: (Noise(0.4, 0.5, 2.0),), 4: (Noise(0.3, 1.0, 3.0),)}
    ),
    "area of the same interval": with_noise(
        DDIM,
        {
            1: (Noise(0.5, 0.0, 1.0),),
            3: (Noise(0.4, 0.0, 1.0), Noise(0.2, 0.0, 1.0, moment=1)),
            4: (Noise(0.4, 0.0, 0.5),),
        },
    ),
    "predictor and corrector": predictor_corrector(),
}


def of_the_registry() -> dict[str, Plan]:
    """A plan of every solver that can add noise, on a VP and on a flow schedule."""
    found = {}
    for name, entry in SOLVERS.items():
        noisy = {"eta": 0.8, "s_churn": 6.0}
        options = {key: value for key, value in noisy.items() if key in entry.defaults}
        for where, schedule in (("vp", VP), ("flow", FlowMatching())):
            plan = make_plan(name, schedule, nfe=6, t_end=0.02, **options)
            if plan.stochastic:
                found[f"{name} {where}"] = plan
    return found


ALL = {**PLANS, **of_the_registry()}


def affine(x: Tensor, t: float) -> Tensor:
    """A network for which the states of a run are jointly Gaussian."""
    return 0.4 * x + t


@pytest.mark.parametrize("name", ALL)
def test_the_sum_over_the_steps_is_the_joint_density_of_the_trajectory(name):
    """Every state is affine in the noise: the covariance is that of the columns, one a draw."""
    plan, count = ALL[name], draws(ALL[name])
    x = normal(2, 3, seed=1)

    def trajectory(noise: list[Tensor]) -> Tensor:
        return sample(affine, x, plan, noise=noise, states=True)[1][:, 1:]

    zero = torch.zeros_like(x)
    mean = trajectory([zero] * count)
    units = [[torch.ones_like(x) if i == j else zero for j in range(count)] for i in range(count)]
    columns = torch.stack([(trajectory(unit) - mean)[0, :, 0] for unit in units], dim=1)
    joint = MultivariateNormal(torch.zeros(len(columns)).double(), columns @ columns.T)
    noise = list(normal(count, 2, 3, seed=2))
    _, log_prob, states = sample(affine, x, plan, noise=noise, log_prob=True, states=True)
    residual = (states[:, 1:] - mean).transpose(1, 2)  # (B, entries, S): entries are independent
    torch.testing.assert_close(log_prob.sum(1), joint.log_prob(residual).sum(1))
    torch.testing.assert_close(step_log_prob(affine, plan, states), log_prob)


def test_each_step_has_the_density_of_the_ddim_posterior():
    """n = eta sigma_t sqrt(1 - e^(-2h)); the mean is alpha_t x0 + sqrt(sigma_t^2 - n^2) eps."""
    x, denoise = normal(3, 4, seed=1), exact_denoiser(GAUSSIAN, VP)
    x0, log_prob, states = sample(denoise, x, DDIM, noise=5, log_prob=True, states=True)
    assert torch.equal(x0, sample(denoise, x, DDIM, noise=5))
    nodes, exact = [row.node for row in DDIM.rows], []
    for k, (s, t) in enumerate(zip(nodes, nodes[1:], strict=False)):
        x0 = denoise(states[:, k], s.t)
        eps = (states[:, k] - s.alpha * x0) / s.sigma
        n = 0.7 * t.sigma * math.sqrt(1 - math.exp(2 * (s.lam - t.lam)))
        mean = t.alpha * x0 + math.sqrt(t.sigma**2 - n**2) * eps
        exact.append(Normal(mean, n).log_prob(states[:, k + 1]).sum(1))
    torch.testing.assert_close(log_prob, torch.stack(exact, dim=1))


def network(theta: Tensor, x: Tensor, t: float) -> Tensor:
    return torch.tanh(theta[0] * x + theta[1] * t) * theta[2]


@pytest.mark.parametrize("name", PLANS)
def test_gradients_are_those_of_the_density_of_the_stored_states(name):
    plan, x = PLANS[name], normal(2, 3, seed=1)
    theta = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64, requires_grad=True)

    def policy(x: Tensor, t: float) -> Tensor:
        return network(theta, x, t)

    _, log_prob, states = sample(
        policy, x, plan, noise=4, log_prob=True, states=True, differentiable=True
    )
    assert not states.requires_grad
    weights = normal(*log_prob.shape, seed=8)
    (in_the_run,) = torch.autograd.grad((weights * log_prob).sum(), theta)
    (stored,) = torch.autograd.grad((weights * step_log_prob(policy, plan, states)).sum(), theta)
    torch.testing.assert_close(in_the_run, stored)
    for i in range(3):
        ends = []
        for h in (1e-5, -1e-5):
            moved = theta.detach() + h * torch.eye(3, dtype=torch.float64)[i]
            ends.append(step_log_prob(lambda x, t, m=moved: network(m, x, t), plan, states))
        difference = (weights * (ends[0] - ends[1])).sum() / 2e-5
        torch.testing.assert_close(stored[i], difference, rtol=1e-7, atol=1e-7)


def test_densities_have_gradients_with_respect_to_the_scales_of_a_plan():
    rows = list(DDIM.rows)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (term,) = rows[2].noise
    rows[2] = replace(rows[2], noise=(term._replace(scale=scale),))
    plan, x = Plan(tuple(rows), consistent=False), normal(2, 3)
    _, log_prob = sample(affine, x, plan, noise=3, log_prob=True)
    (gradient,) = torch.autograd.grad(log_prob.sum(), scale)
    z = CounterNoise(3)(term, x)
    torch.testing.assert_close(gradient, (z.square() - 1).sum() / 0.5)


def test_steps_are_replayed_alone_at_the_cost_of_their_own_evaluations():
    x, calls = normal(3, 4, seed=1), []

    def counted(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return affine(x, t)

    _, log_prob, states = sample(affine, x, DDIM, noise=5, log_prob=True, states=True)
    found = step_log_prob(counted, DDIM, states, steps=[2, 0])
    torch.testing.assert_close(found, log_prob[:, [2, 0]])
    assert calls == [DDIM.times[0], DDIM.times[2]]
    # Samples and their states are rows: any part of them is a batch of its own.
    torch.testing.assert_close(step_log_prob(affine, DDIM, states[1:]), log_prob[1:])


def test_the_divergence_of_two_policies_is_that_of_their_means():
    _, states = sample(affine, normal(2, 3), DDIM, noise=5, states=True)
    ours = step_distributions(affine, DDIM, states)
    theirs = step_distributions(lambda x, t: affine(x, t) + 0.1, DDIM, states)
    b = torch.tensor([dict(row.outputs)[k] for k, row in enumerate(DDIM.rows[1:])])
    n = torch.tensor([row.noise[0].scale for row in DDIM.rows[1:]])
    exact = ((0.1 * b) ** 2 / (2 * n**2)).double()
    divergence = kl_divergence(ours, theirs)
    torch.testing.assert_close(
        divergence, exact[None, :, None].expand_as(divergence), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_keep_the_precision_of_the_run(dtype):
    """Else the ratio of a policy and itself would not be 1."""
    x = normal(2, 3).to(dtype)
    net = Denoiser(lambda x, t: torch.tanh(x), VP, "sample")
    x0, log_prob, states = sample(net, x, DDIM, noise=5, log_prob=True, states=True)
    assert x0.dtype == dtype and states.dtype == torch.float32
    again = step_log_prob(net, DDIM, states, dtype=dtype)
    torch.testing.assert_close(again, log_prob, rtol=0, atol=1e-4)


def test_a_plan_without_noise_has_no_steps():
    x0, log_prob, states = sample(
        affine, normal(2, 3), make_plan("ddim", VP, nfe=3), log_prob=True, states=True
    )
    assert log_prob.shape == (2, 0) and states.shape == (2, 1, 3)


def test_networks_that_write_to_their_input_leave_the_densities_as_they_are():
    def writes(x: Tensor, t: float) -> Tensor:
        result = affine(x, t)
        x.zero_()
        return result

    x = normal(2, 3, seed=1)
    for name, plan in PLANS.items():
        expected = sample(affine, x, plan, noise=5, log_prob=True, states=True)
        for found in (
            sample(writes, x, plan, noise=5, log_prob=True, states=True),
            sample(writes, x, plan, noise=5, log_prob=True, states=True, differentiable=True),
        ):
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, msg=name)
        torch.testing.assert_close(step_log_prob(writes, plan, expected[2]), expected[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"states": torch.zeros(2, 4, 3)}, r"states has shape \(2, 4, 3\): need \(B, 5, \*event\)"),
        ({"steps": [4]}, "steps has 4"),
        ({"steps": 1}, "steps=1"),
        ({"steps": [True]}, "steps has True"),
        ({"plan": None}, "plan=None"),
    ],
)
def test_bad_trajectories_are_refused_before_the_network_is_called(arguments, message):
    def never(x: Tensor, t: float) -> Tensor:
        raise AssertionError("called")

    given = {"plan": DDIM, "states": torch.zeros(2, 5, 3)} | arguments
    with pytest.raises(ValueError, match=message):
        step_log_prob(never, **given)


def test_shared_noise_is_what_these_plans_are_about():
    assert [sharing(PLANS[name]).none for name in PLANS] == [True, True, True, False, False, False]
