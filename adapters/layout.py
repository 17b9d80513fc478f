r"""Where a diffusers config puts the nodes, and what the network is told there.

Variance-preserving models are told a whole training step i = 0..N-1; flow models N sigma in
float32. The three rules of ``timestep_spacing`` choose training steps (Lin et al. 2023, table 2);
``use_karras_sigmas`` and its siblings choose rho = sigma / alpha between the ends of the training
schedule, and the network is told the nearest training step. A grid of n evaluations has n + 1
nodes: the last one is where the sample is, sigma = 0 or the smallest noise level of training.

Flow grids run from pure noise in n equal steps of t; the resolution shift moves them:

    t -> s t / (1 + (s - 1) t),    s = shift, or e^mu if the shift is dynamic

and ``shift_terminal`` stretches 1 - t so that the last evaluation is at that t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from logsnr.solvers import DiscreteVP, Node, NoiseSchedule
from logsnr.solvers.spacings import training_steps

from .noise_schedules import is_flow

RHO = 7.0
SPACED_BY_SIGMA = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)


@dataclass(frozen=True)
class Layout:
    """n + 1 nodes, and what the network is told at the first n of them."""

    nodes: tuple[Node, ...]
    timesteps: tuple[float, ...]

    def told(self, nodes: Sequence[Node], schedule: NoiseSchedule, steps: int) -> list[float]:
        """What the network is told at ``nodes``, which may lie between those of the layout."""
        known = dict(zip(self.nodes, self.timesteps, strict=False))
        if isinstance(schedule, DiscreteVP):
            return [known.get(node, _nearest_step(schedule, node)) for node in nodes]
        return [known.get(node, steps * node.sigma) for node in nodes]


def layout(
    config: Mapping[str, Any],
    schedule: NoiseSchedule,
    solver: str,
    n: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Layout:
    """The nodes of a run of n evaluations.

    Parameters
    ----------
    timesteps : what the network is told, instead of a rule; used exactly as given.
    sigmas : variance-preserving: sigma / alpha of all nodes, the end included. Flow: t of the
        evaluations, which the shift moves, as diffusers does; a trailing 0 is the end.
    mu : logarithm of the shift, if the config's shift is dynamic.

    Raises ValueError naming the argument or config key that is wrong.
    """
    if n is None and timesteps is None and sigmas is None:
        raise ValueError("num_inference_steps is missing: give it, or timesteps, or sigmas")
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is not None and (len(values) == 0 or not np.isfinite(values).all()):
            raise ValueError(f"{name}={list(values)}: need finite numbers, at least one")
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 1):
        raise ValueError(f"num_inference_steps={n!r}: need a whole number of at least 1")
    n = None if n is None else int(n)
    place = _discrete if isinstance(schedule, DiscreteVP) else _flow
    result = place(config, schedule, solver, n, timesteps, sigmas, mu)
    given = timesteps if timesteps is not None else sigmas
    rising = np.diff([node.lam for node in result.nodes if math.isfinite(node.lam)])
    if (rising < 0).any():
        name = "timesteps" if timesteps is not None else "sigmas"
        raise ValueError(f"{name}={list(given or ())}: need falling values (noise to data)")
    if n is not None and len(result.timesteps) != n:
        raise ValueError(
            f"num_inference_steps={n} was given beside values for {len(result.timesteps)} "
            "evaluations"
        )
    return result


def _discrete(
    config: Mapping[str, Any],
    schedule: Any,
    solver: str,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> Layout:
    steps = schedule.steps
    ends_at_zero = final_sigma(config, solver) == "zero"
    end = Node(0.0, 1.0, 0.0) if ends_at_zero else _at_steps(schedule, [0.0])[0]
    if sigmas is not None:
        if timesteps is not None or len(sigmas) < 2:
            raise ValueError(
                f"sigmas={list(sigmas)}: need sigma / alpha of all nodes, the end included, "
                "and no timesteps beside them"
            )
        nodes = [_at_ratio(schedule, float(ratio)) for ratio in sigmas]
        return Layout(tuple(nodes), tuple(_nearest_step(schedule, node) for node in nodes[:-1]))
    if timesteps is not None:
        indices = np.asarray(timesteps, dtype=np.float64)
        if not ((indices >= 0) & (indices <= steps - 1)).all():
            raise ValueError(f"timesteps={list(timesteps)}: need values in [0, {steps - 1}]")
        return Layout((*_at_steps(schedule, indices), end), tuple(indices.round().tolist()))
    assert n is not None
    if n > steps:
        raise ValueError(f"num_inference_steps={n}: the model has {steps} training steps")
    spaced = [key for key in SPACED_BY_SIGMA if config.get(key)]
    if spaced:
        ends = _sigma_range(config, schedule)
        nodes = [_at_ratio(schedule, ratio) for ratio in sigma_spacing(spaced[0], *ends, n)]
        if not ends_at_zero and config.get("sigma_min") is None:
            nodes[-1] = end  # the same number, without its rounding
        told = tuple(_nearest_step(schedule, node) for node in nodes)
        return Layout((*nodes, end), told)
    indices = _spaced_steps(config, solver, steps, n)
    return Layout((*_at_steps(schedule, indices), end), tuple(indices.astype(float).tolist()))


def final_sigma(config: Mapping[str, Any], solver: str) -> str:
    """``final_sigmas_type``, or for DDIM ``set_alpha_to_one``, which says the same."""
    kind = config.get("final_sigmas_type")
    if kind is None:
        kept = solver == "ddim" and config.get("set_alpha_to_one") is False
        kind = "sigma_min" if kept else "zero"
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={kind!r}: choose 'zero' or 'sigma_min'")
    return kind


def _spaced_steps(config: Mapping[str, Any], solver: str, steps: int, n: int) -> np.ndarray:
    # DDIM counts n points; the others n + 1, of which the last is the end.
    single = solver == "ddim"
    spacing = config.get("timestep_spacing") or ("leading" if single else "linspace")
    offset = int(config.get("steps_offset") or 0) if spacing == "leading" else 0
    try:
        indices = training_steps(spacing, steps, n, offset=offset, inner=not single and n < steps)
    except ValueError as error:
        raise ValueError(f"timestep_{error}") from error
    return indices - max(0, indices[0] - (steps - 1))


def sigma_spacing(name: str, low: float, high: float, n: int) -> np.ndarray:
    """n values from ``high`` to ``low``: karras, exponential (= lu) or beta spacing."""
    ramp = np.linspace(0, 1, n)
    if name == "use_karras_sigmas":
        values = (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    elif name == "use_beta_sigmas":
        from scipy.stats import beta

        return low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
    else:
        values = np.exp(np.log(high) + ramp * (np.log(low) - np.log(high)))
    values[0] = high
    if n > 1:
        values[-1] = low
    return values


def _sigma_range(config: Mapping[str, Any], schedule: DiscreteVP) -> tuple[float, float]:
    low, high = config.get("sigma_min"), config.get("sigma_max")
    low = math.exp(-schedule.lam(1 / schedule.steps)) if low is None else low
    high = math.exp(-schedule.lam(1.0)) if high is None else high
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"sigma_min={low!r}, sigma_max={high!r}: spacing by sigma / alpha needs "
            "0 < sigma_min < sigma_max < inf (zero terminal SNR has no sigma_max)"
        )
    return low, high


def _at_steps(schedule: DiscreteVP, indices: Sequence[float] | np.ndarray) -> list[Node]:
    t = (torch.as_tensor(indices, dtype=torch.float64) + 1) / schedule.steps
    columns = (t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist())
    return [Node(*entry) for entry in zip(*columns, strict=True)]


def _at_ratio(schedule: DiscreteVP, ratio: float) -> Node:
    if ratio < 0:
        raise ValueError(f"sigmas has {ratio!r}: need sigma / alpha >= 0")
    if ratio == 0:
        return Node(0.0, 1.0, 0.0)
    alpha = 1 / math.hypot(1, ratio)
    return Node(schedule.time(-math.log(ratio)), alpha, ratio * alpha)


def _nearest_step(schedule: DiscreteVP, node: Node) -> float:
    return float(min(max(round(schedule.network_time(node.t)), 0), schedule.steps - 1))


def _flow(
    config: Mapping[str, Any],
    schedule: NoiseSchedule,
    solver: str,
    n: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> Layout:
    steps = int(config["num_train_timesteps"])
    if sigmas is None and timesteps is not None:
        t = np.asarray(timesteps, dtype=np.float64) / steps
    else:
        t = _unshifted(config, steps, n, mu) if sigmas is None else _without_end(sigmas)
        t = shifted(config, t, mu)
        for key in SPACED_BY_SIGMA:
            if config.get(key):
                t = sigma_spacing(key, t[-1], t[0], len(t))
    if not ((t >= 0) & (t <= 1 + 1e-12)).all():
        name = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(f"{name} give t={t.tolist()}: need values in [0, 1]")
    t = t.clip(max=1.0)
    told = steps * t if timesteps is None else np.asarray(timesteps, dtype=np.float64)
    if len(told) != len(t):
        raise ValueError(f"timesteps has {len(told)} entries, sigmas {len(t)}: need equal lengths")
    last = 0.0 if final_sigma(config, solver) == "zero" else float(t[-1])
    nodes = tuple(Node(s, 1 - s, s) for s in [*t.tolist(), last])
    return Layout(nodes, tuple(told.tolist()))


def _unshifted(
    config: Mapping[str, Any], steps: int, n: int | None, mu: float | None
) -> np.ndarray:
    assert n is not None
    if config.get("shift") is None:
        return np.linspace(1, 1 / steps, n + 1)[:-1]
    # diffusers' flow schedulers take the last t from the training grid, which is shifted already.
    low = np.array([1 / steps])
    if not config.get("use_dynamic_shifting"):
        low = shifted(config, low, mu, stretch=False)
    return np.linspace(1, low[0], n)


def _without_end(sigmas: Sequence[float]) -> np.ndarray:
    t = np.asarray(sigmas, dtype=np.float64)
    return t[:-1] if len(t) > 1 and t[-1] == 0 else t


def shifted(
    config: Mapping[str, Any], t: np.ndarray, mu: float | None, *, stretch: bool = True
) -> np.ndarray:
    """The times t in [0, 1] after the config's shift and stretch."""
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("mu is missing: use_dynamic_shifting=True needs it in set_timesteps")
        kind = config.get("time_shift_type") or "exponential"
        if kind not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type={kind!r}: choose 'exponential' or 'linear'")
        shift = math.exp(mu) if kind == "exponential" else float(mu)
    else:
        given = config.get("shift")
        shift = float(config["flow_shift"] if given is None else given)
    if not 0 < shift < math.inf:
        raise ValueError(f"shift={shift!r}: need a positive number")
    t = shift * t / (1 + (shift - 1) * t)
    terminal = config.get("shift_terminal")
    if stretch and terminal and t[-1] < 1:
        t = 1 - (1 - t) * (1 - terminal) / (1 - t[-1])
    return t


def training_timesteps(config: Mapping[str, Any]) -> torch.Tensor:
    """What training scripts draw from: all timesteps of the training schedule, falling."""
    steps = int(config["num_train_timesteps"])
    if not is_flow(config):
        return torch.arange(steps - 1, -1, -1)
    t = np.arange(steps, 0, -1) / steps
    if not config["use_dynamic_shifting"]:
        t = shifted(config, t, None, stretch=False)
    return torch.from_numpy(steps * t).float()
