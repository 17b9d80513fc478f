"""What diffusers' stochastic schedulers say of sampling by their class, and back.

Most classes add no noise, or add it where ``step`` is told to (``eta``, ``s_churn``). Some always
do, and some where their config says so. `noisy_solver` reads a config of theirs as one of our
solvers; `stock_words` writes a solver of ours in the keys of a class that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from logsnr.solvers.methods.sa_solver import MARGIN

_SDE = "sde-"
"""With which the values of ``algorithm_type`` begin that add noise."""
_FIRST, _LAST = 200, 800
"""SASolverScheduler's timesteps with tau = 1, from those that begin a step there on."""


def noisy_solver(origin: str | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The key ``solver`` for a config of the class ``origin``; None for one without noise.

    Raises ValueError for a ``tau_func`` that cannot be written in a config.
    """
    if str(config.get("algorithm_type")).startswith(_SDE):
        return _sde(origin, config)
    read = _CLASSES.get(origin or "")
    return None if read is None else read(config)


def _sde(origin: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    solver: dict[str, Any] = {"name": "sde-dpm-solver++"}
    if origin == "DPMSolverSinglestepScheduler":
        order = config.get("solver_order", 2)
        solver |= {"steps": "singlestep", "order": 2} if order > 1 else {"order": 1}
    elif config["algorithm_type"] == "sde-dpmsolver":
        solver["prediction"] = "noise"
    return solver


def _ddpm(config: Mapping[str, Any]) -> dict[str, Any]:
    large = str(config.get("variance_type")).startswith("fixed_large")
    return {"name": "ddpm", "variance": "large"} if large else {"name": "ddpm"}


def _sa_solver(config: Mapping[str, Any]) -> dict[str, Any]:
    solver: dict[str, Any] = {
        "name": "sa-solver",
        "order": config.get("predictor_order", 2),
        "corrector_order": config.get("corrector_order", 2),
        "tau_at": "start",
        **_tau(config.get("tau_func"), int(config.get("num_train_timesteps", 1000))),
    }
    if config.get("algorithm_type") == "noise_prediction":
        solver |= {"space": "noise", "keep_marginals": False}
    return solver


def _tau(function: Callable[[int], float] | None, count: int) -> dict[str, Any]:
    """``tau_func`` as a number and the interval in which it acts, which is what a config can hold.

    The ends of the interval lie between training steps, by as much inside as `sa_solver` looks
    beyond them.
    """
    if function is None:
        inside, tau = list(range(_FIRST, min(_LAST + 1, count))), 1.0
    else:
        values = [float(function(t)) for t in range(count)]
        inside = [t for t, value in enumerate(values) if value != 0]
        tau = values[inside[0]] if inside else 0.0
        whole = inside == list(range(inside[0], inside[-1] + 1)) if inside else True
        if not whole or any(values[t] != tau for t in inside):
            raise ValueError(
                f"tau_func={function!r}: a config cannot hold a function, and this one is no "
                'number that acts in one interval; give solver={"name": "sa-solver", "tau": '
                "[...]}, a list of one a step"
            )
    if not inside:
        return {"tau": 0.0}
    low = 0.0 if inside[0] == 0 else (inside[0] + 0.5) / count + MARGIN
    high = 1.0 if inside[-1] == count - 1 else (inside[-1] + 1.5) / count - MARGIN
    return {"tau": tau, "interval": [low, max(low, high)]}


def _flow_euler(config: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"name": "cps", "eta": 1.0} if config.get("stochastic_sampling") else None


_CLASSES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "EulerAncestralDiscreteScheduler": lambda config: {"name": "euler-ancestral"},
    "KDPM2AncestralDiscreteScheduler": lambda config: {"name": "dpm2-ancestral"},
    "DPMSolverSDEScheduler": lambda config: {
        "name": "sde-dpm-solver++",
        "steps": "singlestep",
        "order": 2,
    },
    "CosineDPMSolverMultistepScheduler": lambda config: {"name": "sde-dpm-solver++"},
    "SASolverScheduler": _sa_solver,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
}

ENDS_AT_TRAINING = ("SASolverScheduler",)
"""Classes that end at the first training step and have no key that says so."""

STOCK_OF = {
    "ddpm": "DDPMScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "sa-solver": "SASolverScheduler",
}
"""The class that has a solver of ours and no other."""


def stock_words(kind: str, solver: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A solver of ours with ``options`` in the config keys of the class ``kind``, if it has it."""
    if solver == "sde-dpm-solver++" and "DPMSolver" in kind:
        noise = options.get("prediction") == "noise"
        return {"algorithm_type": "sde-dpmsolver" if noise else "sde-dpmsolver++"}
    if solver == "ddpm" and kind == STOCK_OF[solver]:
        return {"variance_type": "fixed_large"} if options.get("variance") == "large" else {}
    if solver == "sa-solver" and kind == STOCK_OF[solver]:
        order = options.get("order", 3)
        words = {"predictor_order": order, "corrector_order": options.get("corrector_order")}
        words["algorithm_type"] = f"{options.get('space', 'data')}_prediction"
        return {key: value for key, value in words.items() if value is not None}
    return {"stochastic_sampling": True} if solver == "cps" and options.get("eta") == 1 else {}
