r"""Problems with known answers: data distributions whose exact denoiser is a formula.

For a mixture of isotropic Gaussians, x0 ~ sum_k w_k N(mu_k, s_k^2 I), the state
x = alpha x0 + sigma n has components of variance v_k = alpha^2 s_k^2 + sigma^2, and

    r_k(x) ~ w_k v_k^(-D/2) exp(-|x - alpha mu_k|^2 / (2 v_k)),      sum_k r_k = 1
    eps(x) = sigma sum_k r_k (x - alpha mu_k) / v_k
    x0(x)  = sum_k r_k (mu_k + alpha s_k^2 / v_k (x - alpha mu_k)).

For one Gaussian N(mu, diag(s^2)) the probability-flow ODE has a closed form: x - alpha mu scales
with the standard deviation sqrt(alpha^2 s^2 + sigma^2) of its marginal (monograph section 4.4;
Karras et al. 2022, appendix B). s = 0 is a point mass, on which every solver must be exact.

Both are written without cancellation at either end of the schedule, in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from logsnr.solvers import Denoiser, Node, NoiseSchedule
from logsnr.solvers.prediction import check_prediction


class Problem(Protocol):
    """Data in R^D with an exact denoiser. x is (B, D); alpha and sigma are floats or (B, 1)."""

    @property
    def name(self) -> str:
        """What the problem is called in tables."""
        ...

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def predict(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
        """(eps, x0), the exact noise and data predictions at x."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) samples of the data."""
        ...


Scale = float | Tensor
Flow = Callable[[Node], Tensor]
"""A node -> the states (B, D) there on fixed exact solutions of the probability-flow ODE."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of isotropic Gaussians: weights (K,), means (K, D), scales (K,).

    Raises ValueError unless the shapes fit, the scales are positive and the weights add up to 1.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    name: str = "mixture"

    def __post_init__(self) -> None:
        for key in ("weights", "means", "scales"):
            value = torch.as_tensor(getattr(self, key), dtype=torch.float64)
            object.__setattr__(self, key, value)
        count = len(self.weights)
        if self.means.ndim != 2 or self.scales.shape != (count,) or len(self.means) != count:
            raise ValueError(
                f"weights {tuple(self.weights.shape)}, means {tuple(self.means.shape)}, scales "
                f"{tuple(self.scales.shape)}: need (K,), (K, D), (K,)"
            )
        if not (self.scales > 0).all():
            raise ValueError(f"scales={self.scales.tolist()}: need positive numbers")
        if not (self.weights > 0).all() or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise ValueError(f"weights={self.weights.tolist()}: need shares that add up to 1")

    @classmethod
    def load(cls, path: str | Path) -> Mixture:
        """The mixture in a JSON file {"w": [K], "mu": [K][D], "s": [K]}."""
        try:
            content = dict(json.loads(Path(path).read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        missing = [key for key in ("w", "mu", "s") if key not in content]
        if missing:
            raise ValueError(f"{path} has no {missing[0]!r}: need w, mu and s of a mixture")
        w, mu, s = (torch.tensor(content[key], dtype=torch.float64) for key in ("w", "mu", "s"))
        return cls(w, mu, s)

    @property
    def dimension(self) -> int:
        """D."""
        return self.means.shape[1]

    def predict(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
        """(eps, x0) at states x (B, D)."""
        variance = (alpha * self.scales) ** 2 + sigma**2
        far = x[:, None, :] - _column(alpha)[..., None] * self.means
        square = far.square().sum(-1)
        log_r = torch.log(self.weights) - 0.5 * self.dimension * torch.log(variance)
        r = torch.softmax(log_r - 0.5 * square / variance, dim=-1)
        share = r / variance
        both = torch.stack([sigma * share, alpha * self.scales**2 * share], dim=1) @ far
        return both[:, 0], r @ self.means + both[:, 1]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) samples of the data."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimension, dtype=torch.float64, generator=generator)
        return self.means[k] + self.scales[k, None] * noise

    def flow(self, start: Node, x: Tensor, *, end: float) -> Flow:
        """The exact solutions through states x (B, D) at ``start``, up to lambda = ``end``.

        Integrated by DOP853 with steps so small that its dense output is as good as the
        steps: 1e-12 in all. The state of the integration is u = x / r, r^2 = alpha^2 + sigma^2,
        which depends on lambda alone: du/d lambda = a (x0 - a u), a = alpha / r.
        """
        from scipy.integrate import solve_ivp

        def velocity(lam: float, flat: np.ndarray) -> np.ndarray:
            a, s = _unit(lam)
            u = torch.from_numpy(flat).view(x.shape)
            return (a * (self.predict(u, a, s)[1] - a * u)).flatten().numpy()

        first = (x / math.hypot(start.alpha, start.sigma)).flatten().numpy()
        solution = solve_ivp(
            velocity,
            (start.lam, end),
            first,
            method="DOP853",
            rtol=1e-12,
            atol=1e-13,
            max_step=0.04,
            dense_output=True,
        )
        if not solution.success:
            raise ValueError(f"the reference integration failed: {solution.message}")

        def state(node: Node) -> Tensor:
            u = torch.from_numpy(solution.sol(node.lam)).view(x.shape)
            return math.hypot(node.alpha, node.sigma) * u

        return state


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, diag(scale^2)), mean and scale (D,); its flow has a closed form.

    Raises ValueError unless mean and scale are of one shape and scale >= 0.
    """

    mean: Tensor
    scale: Tensor
    name: str = "gaussian"

    def __post_init__(self) -> None:
        for key in ("mean", "scale"):
            value = torch.as_tensor(getattr(self, key), dtype=torch.float64)
            object.__setattr__(self, key, value)
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ValueError(
                f"mean {tuple(self.mean.shape)}, scale {tuple(self.scale.shape)}: need (D,) twice"
            )
        if not (self.scale >= 0).all():
            raise ValueError(f"scale={self.scale.tolist()}: need numbers >= 0")

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)

    def predict(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
        """(eps, x0) at states x (B, D)."""
        variance = (alpha * self.scale) ** 2 + sigma**2
        far = x - alpha * self.mean
        return sigma * far / variance, self.mean + alpha * self.scale**2 / variance * far

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) samples of the data."""
        noise = torch.randn(count, self.dimension, dtype=torch.float64, generator=generator)
        return self.mean + self.scale * noise

    def flow(self, start: Node, x: Tensor, *, end: float = math.inf) -> Flow:
        """The exact solutions through states x (B, D) at ``start``; exact for every node."""

        def deviation(node: Node) -> Tensor:
            return torch.sqrt((node.alpha * self.scale) ** 2 + node.sigma**2)

        normal = (x - start.alpha * self.mean) / deviation(start)
        return lambda node: node.alpha * self.mean + deviation(node) * normal


def point_mass(point: Tensor) -> Gaussian:
    """All data at one point (D,): x0 and eps are constant along every exact solution."""
    point = torch.as_tensor(point, dtype=torch.float64)
    return Gaussian(point, torch.zeros_like(point), name="point mass")


class Network:
    """The exact network of a problem on a schedule, with a record of its calls.

    Called as ``network(x, t)`` with x (B, D) and t (B,), schedule times, it returns the
    ``prediction`` (epsilon, sample, v_prediction, flow_prediction or score) and notes t[0] in
    ``times``.
    """

    def __init__(self, problem: Problem, schedule: NoiseSchedule, prediction: str = "epsilon"):
        self.problem = problem
        self.schedule = schedule
        self.prediction = check_prediction(prediction)
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(float(t[0].detach()))
        alpha = self.schedule.alpha(t)[:, None].to(x.dtype)
        sigma = self.schedule.sigma(t)[:, None].to(x.dtype)
        eps, x0 = self.problem.predict(x, alpha, sigma)
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x0
        if self.prediction == "flow_prediction":
            return eps - x0
        if self.prediction == "score":
            return -eps / sigma
        return (alpha * eps - sigma * x0) / torch.hypot(alpha, sigma)


def exact_denoiser(
    problem: Problem, schedule: NoiseSchedule, prediction: str = "epsilon"
) -> Denoiser:
    """The problem's exact `Denoiser`, which takes the schedule's own time."""
    network = Network(problem, schedule, prediction)
    return Denoiser(network, schedule, prediction, network_time=lambda t: t)


def _unit(lam: float) -> tuple[float, float]:
    """(alpha, sigma) at lambda with alpha^2 + sigma^2 = 1."""
    return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))


def _column(value: Scale) -> Tensor:
    """A scale as a tensor that broadcasts against (B, K, D) once a last axis is added."""
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1)
