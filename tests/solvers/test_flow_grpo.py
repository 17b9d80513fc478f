r"""Flow-GRPO's steps and their log densities against the published formulas, restated here.

With sigma = t the time of a flow model, v its output, dt = t_next - t < 0 and the noise level a
(Liu et al. 2025, eq. 9; their code takes log_prob as the mean over the event):

    std = a sqrt(t / (1 - t)),   at t = 1 with 1 - t_next for 1 - t,
    mean = x (1 + std^2 dt / (2 t)) + v (1 + std^2 (1 - t) / (2 t)) dt,
    x_next = mean + std sqrt(-dt) z.

Coefficients-preserving sampling (Wang and Yu 2025):

    std = t_next sin(a pi / 2),
    mean = (1 - t_next) (x - t v) + sqrt(t_next^2 - std^2) (x + (1 - t) v).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor
from torch.distributions import Normal

from logsnr.adapters import PlanScheduler
from logsnr.solvers import Denoiser, FlowMatching, Plan, make_plan, sample, step_log_prob

TIMES = [1.0, 0.93, 0.8, 0.6, 0.35, 0.1, 0.0]
A = 0.7
OPTIONS: dict[str, dict[str, Any]] = {
    "sde": {"eta": A, "diffusion": "flow-grpo", "final_noise": True},
    "cps": {"eta": A},
}
SOLVERS = {"sde": "euler-maruyama", "cps": "cps"}


def velocity(x: Tensor, t: float) -> Tensor:
    return torch.tanh(1.3 * x - 0.4) * (1 + t) + 0.2 * x


def published(kind: str, x: Tensor, v: Tensor, t: float, after: float) -> tuple[Tensor, float]:
    """The mean and the deviation of the next state."""
    if kind == "cps":
        std = after * math.sin(A * math.pi / 2)
        x0, x1 = x - t * v, x + (1 - t) * v
        return (1 - after) * x0 + math.sqrt(after**2 - std**2) * x1, std
    dt = after - t
    std = A * math.sqrt(t / (1 - (after if t == 1 else t)))
    mean = x * (1 + std**2 / (2 * t) * dt) + v * (1 + std**2 * (1 - t) / (2 * t)) * dt
    return mean, std * math.sqrt(-dt)


def plan_for(kind: str) -> Plan:
    return make_plan(SOLVERS[kind], FlowMatching(), times=TIMES, **OPTIONS[kind])


@pytest.mark.parametrize("kind", SOLVERS)
def test_the_plain_loop_makes_the_published_steps(kind):
    plan, x = plan_for(kind), normal(2, 3, 4, seed=1)
    steps = len(TIMES) - (1 if kind == "sde" else 2)  # CPS adds no noise at t = 0
    noise = list(normal(steps, 2, 3, 4, seed=2))
    policy = Denoiser(lambda x, t: velocity(x, float(t[0])), FlowMatching(), "flow_prediction")
    found, log_prob, states = sample(policy, x, plan, noise=noise, log_prob=True, states=True)
    assert log_prob.shape == (2, steps)
    for k, (t, after) in enumerate(zip(TIMES, TIMES[1:], strict=False)):
        mean, std = published(kind, x, velocity(x, t), t, after)
        if k == steps:
            x = mean
            break
        x = mean + std * noise[k]
        torch.testing.assert_close(states[:, k + 1], x, rtol=1e-12, atol=1e-12)
        exact = Normal(mean, std).log_prob(x).flatten(1)
        torch.testing.assert_close(log_prob[:, k], exact.sum(1), rtol=1e-10, atol=1e-10)
        per_entry = log_prob[:, k] / x[0].numel()  # Flow-GRPO's own number
        torch.testing.assert_close(per_entry, exact.mean(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step_log_prob(policy, plan, states), log_prob)


@pytest.mark.parametrize("kind", SOLVERS)
def test_the_scheduler_makes_the_published_steps_and_replays_them(kind):
    scheduler = PlanScheduler(
        shift=3.0,
        solver={"name": SOLVERS[kind], **OPTIONS[kind]},
        timestep_spacing="trailing",
        noise_seed=4,
    )
    scheduler.set_timesteps(5)
    sigmas, x = scheduler.sigmas.tolist(), normal(2, 3, seed=1)
    kept = []
    for t, level, after in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
        mean, std = published(kind, x, velocity(x, level), level, after)
        made = scheduler.step(velocity(x, level), t, x, log_prob=True)
        if std > 0:
            exact = Normal(mean, std).log_prob(made.prev_sample).sum(1)
            torch.testing.assert_close(made.prev_sample_mean, mean, rtol=1e-5, atol=1e-5)
            assert made.std_dev == pytest.approx(std, rel=1e-5)
            torch.testing.assert_close(made.log_prob, exact, rtol=1e-4, atol=1e-4)
            kept.append((t, level, x, made.prev_sample, made.log_prob))
        else:
            torch.testing.assert_close(made.prev_sample, mean, rtol=1e-5, atol=1e-5)
        x = made.prev_sample
    assert len(kept) == (5 if kind == "sde" else 4)
    for t, level, x, after, log_prob in kept[::-1]:
        output = velocity(x, level).requires_grad_()
        again = scheduler.step(output, t, x, log_prob=True, prev_sample=after)
        assert torch.equal(again.prev_sample, after)
        torch.testing.assert_close(again.log_prob, log_prob)
        (gradient,) = torch.autograd.grad(again.log_prob.sum(), output)
        assert gradient.abs().max() > 0
