r"""The steps of a stored trajectory under a network: what policy gradients are made of.

A trajectory is what ``sample(..., states=True)`` returns: the start and the states of the plan's
stochastic steps. Given them, every other state is a function of the network, and every step has a
Gaussian density (see `step_densities`). Under the network that made it, it is that of
``sample(..., log_prob=True)``; under another one, the difference of the two is the logarithm of the
ratio of PPO and GRPO.

Only what the steps asked for depend on is evaluated: one evaluation a step for methods of one
evaluation, so that a trajectory can be gone through step by step, in any order, with the memory of
one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Normal

from .checks import is_whole
from .denoiser import Denoiser, check_start
from .plan import Plan
from .prediction import at_home, check_signals
from .requests import Evaluation, single
from .segments import maps
from .step_densities import innovations, log_density, stochastic_steps
from .terms import check_event, combination


def step_log_prob(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    plan: Plan,
    states: Tensor,
    *,
    steps: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Log densities (B, S) of the steps of a stored trajectory, in nats, float64.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0: the policy.
    plan : that of the trajectory.
    states : (B, S + 1, *event), as ``sample(..., states=True)`` returns them: the start, and the
        state after each of the plan's S stochastic steps.
    steps : which of the steps 0..S - 1 are wanted, in this order. Default: all.
    dtype : in which the network is handed its states; that of x_T in the run. Default: that of
        ``states``.

    Each density is that of the whole event: the sum over its entries (Flow-GRPO and DanceGRPO
    divide by their number). A graph is kept wherever gradients are enabled, with the states as
    given values. Raises ValueError for bad input before the network is called.
    """
    replay = _Replay(denoise, plan, states, steps, dtype)
    u = [log_density(replay.u[k], replay.found[k].deviation) for k in replay.asked]
    none = torch.zeros(len(states), 0, dtype=torch.float64, device=states.device)
    return torch.stack(u, dim=1) if u else none


def step_distributions(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    plan: Plan,
    states: Tensor,
    *,
    steps: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Normal:
    """The distributions of the states after each step, given those before: means (B, S, *event).

    Arguments as for `step_log_prob`, which is the sum over the event of their ``log_prob`` at
    ``states[:, 1:]``. The Kullback-Leibler divergence of two policies is that of
    ``torch.distributions.kl_divergence``, summed over the event.
    """
    replay = _Replay(denoise, plan, states, steps, dtype)
    if not replay.asked:
        raise ValueError("plan has no stochastic steps: its states have no distribution")
    means = torch.stack([replay.means[k] for k in replay.asked], dim=1)
    scales = [replay.found[k].deviation for k in replay.asked]
    scale = torch.stack([torch.as_tensor(r, dtype=torch.float64) for r in scales]).to(means)
    return Normal(means, scale.reshape(-1, *[1] * (means.ndim - 2)), validate_args=False)


class _Replay:
    """A trajectory evaluated under a network, as far as the steps that are ``asked`` for need it.

    Attributes
    ----------
    found : the innovations of the plan.
    asked : rows of the plan.
    means, u : row -> the mean of its state given those before, and its standard deviation from it.
    """

    def __init__(
        self,
        denoise: Denoiser | Callable[[Tensor, float], Tensor],
        plan: Plan,
        states: Tensor,
        steps: Sequence[int] | None,
        dtype: torch.dtype | None,
    ):
        if not isinstance(plan, Plan):
            raise ValueError(f"plan={plan!r}: need a Plan, as make_plan returns it")
        self.found = innovations(plan)
        rows = stochastic_steps(self.found)
        if not isinstance(states, Tensor) or states.ndim < 3 or states.shape[1] != len(rows) + 1:
            shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(
                f"states has shape {shape}: need (B, {len(rows) + 1}, *event), the start and the "
                f"states of the plan's {len(rows)} stochastic steps"
            )
        start = states[:, 0] if dtype is None else states[:, 0].to(dtype)
        check_start(start, denoise)
        prediction = denoise.prediction if isinstance(denoise, Denoiser) else "sample"
        check_signals(plan, prediction, start.dtype)
        check_event(plan, tuple(start.shape[1:]))
        self.asked = [rows[i] for i in _places(steps, len(rows))]
        self.plan, self.denoise, self.dtype = plan, single(denoise, plan), start.dtype
        precise = states.to(torch.promote_types(states.dtype, torch.float32))
        self.maps = {k: m.beside(precise) for k, m in maps(plan, prediction).items()}
        self.states = dict(zip((0, *rows), precise.unbind(1), strict=True))
        self.outputs: dict[int, Tensor] = {}
        self.means: dict[int, Tensor] = {}
        self.u: dict[int, Tensor] = {}
        self._go()

    def _go(self) -> None:
        plan, found = self.plan, self.found
        summed, evaluated = self._needed()
        for k, row in enumerate(plan.rows):
            if k in summed:
                like = self.states[0]
                terms = [(at_home(a, like), self.states[j]) for j, a in row.states]
                terms += [(at_home(b, like), self.outputs[j]) for j, b in row.outputs]
                known = found[k].known if k in found else ()
                terms += [(at_home(c, like), self.u[j]) for j, c in known]
                self.means[k] = combination(terms or [(0.0, like)], at_home(row.offset, like))
                if k in self.states:
                    deviation = at_home(found[k].deviation, like)
                    self.u[k] = (self.states[k] - self.means[k]) / deviation
                else:
                    self.states[k] = self.means[k]
            if k in evaluated:
                x = self.states[k]
                output = self.denoise(Evaluation(x.to(self.dtype, copy=True), row.node, k))
                self.outputs[k] = self.maps[k](output, x)

    def _needed(self) -> tuple[set[int], set[int]]:
        """The rows whose sums are needed, and those whose outputs are."""
        plan, found = self.plan, self.found
        summed, evaluated = set(self.asked), set[int]()
        for k in range(len(plan.rows) - 1, 0, -1):
            if k in evaluated and k not in self.states:
                summed.add(k)
            if k not in summed:
                continue
            evaluated.update(j for j, _ in plan.rows[k].outputs)
            summed.update(j for j, _ in plan.rows[k].states if j not in self.states)
            if k in found:
                summed.update(j for j, _ in found[k].known)
        return summed, evaluated


def _places(steps: Sequence[int] | None, count: int) -> list[int]:
    if steps is None:
        return list(range(count))
    if not isinstance(steps, Sequence):
        raise ValueError(f"steps={steps!r}: need a list of whole numbers in 0..{count - 1}")
    for step in steps:
        if not is_whole(step, 0) or step >= count:
            raise ValueError(f"steps has {step!r}: need whole numbers in 0..{count - 1}")
    return list(steps)
