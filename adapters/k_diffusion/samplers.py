"""Every solver of the registry as a sampler of k-diffusion's interface."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import (
    SOLVERS,
    Denoiser,
    FlowMatching,
    Node,
    NoiseSchedule,
    Step,
    VarianceExploding,
    sample,
)
from logsnr.solvers.checks import check_kind
from logsnr.solvers.grids import as_numbers
from logsnr.solvers.registry import find_solver

from ..plans import spread_plan
from .models import Model, as_function
from .sampler_noise import sampler_noise

SCHEDULES: dict[str, NoiseSchedule] = {"ve": VarianceExploding(), "flow": FlowMatching()}
"""What ``sigmas`` mean: x = x0 + sigma n, or x = (1 - sigma) x0 + sigma n."""

OPTION_NAMES = {"s_tmin": "s_min", "s_tmax": "s_max"}
"""k-diffusion's names for options of ours."""

Sampler = Callable[..., Tensor]
"""(model, x, sigmas, extra_args=None, callback=None, disable=None, *, ...) -> x."""


def sampler(solver: str, *, schedule: str = "ve", **options: Any) -> Sampler:
    """A solver of the registry as a k-diffusion sampler

        sample_xxx(model, x, sigmas, extra_args=None, callback=None, disable=None,
                   *, noise_sampler=None, schedule=schedule, **options) -> x (B, *event)

    which takes ``len(sigmas) - 1`` evaluations for every solver: one with several evaluations a
    step uses as many of ``sigmas`` as it can spend them on, and its own inner nodes.

    model : ``model(x, sigma, **extra_args) -> denoised``.
    x : the start, x0 + sigmas[0] n, or (1 - sigmas[0]) x0 + sigmas[0] n for ``schedule="flow"``.
    sigmas : falling noise levels from that of x to that of the result, usually 0. A single one
        leaves x as it is; several zeros at the end are one.
    callback : called after each evaluation i = 0.. with a dictionary {"x", "i", "sigma",
        "sigma_hat", "denoised"}; sigma_hat is the level at which the model was called, and sigma
        that level before churn.
    disable : True shows no progress bar, None shows it on a terminal only.
    noise_sampler : ``noise_sampler(sigma, sigma_next) -> z`` (B, *event) standard normal, for
        stochastic options; or anything that ``noise=`` of `sample` takes. Without it a seed in
        ``extra_args["seed"]``, which ComfyUI sends, decides the noise, that of each sample by
        itself (`CounterNoise`); the model is given it too, as all of ``extra_args``.
    schedule : "ve", or "flow" for flow models whose sigma is the time t in [0, 1].
    options : the solver's own (see its docstring); ``s_tmin`` and ``s_tmax`` are k-diffusion's
        names for ``s_min`` and ``s_max``. The order is at most the number of evaluations.

    Raises ValueError for an unknown solver or option here, and before the model is called for
    sigmas that do not fall, are not finite, or are negative.
    """
    checked_options(solver, options)
    schedule_of(schedule)
    preset, default = options, schedule

    def sample_solver(
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Any = None,
        schedule: str = default,
        **options: Any,
    ) -> Tensor:
        process = schedule_of(schedule)
        chosen = checked_options(solver, {**preset, **options})
        levels = sigmas if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
        nodes = nodes_of(levels, schedule)
        nfe = len(nodes) - 1
        if nfe == 0:
            return x
        if "order" in find_solver(solver).defaults:
            order = chosen.get("order", find_solver(solver).defaults["order"])
            chosen["order"] = min(order, nfe)
        return sample(
            Denoiser(as_function(model), process, "sample", condition=extra_args),
            x,
            spread_plan(process, solver, nodes, nfe, chosen),
            noise=sampler_noise(noise_sampler, extra_args, nodes, process, levels),
            callback=None if callback is None else _reporter(callback, levels),
            progress=sys.stderr.isatty() if disable is None else not disable,
        )

    sample_solver.__name__ = sample_solver.__qualname__ = function_name(solver)
    sample_solver.__doc__ = (
        f"{find_solver(solver).title}: ``logsnr.solvers.SOLVERS[{solver!r}]`` as a k-diffusion "
        "sampler; `sampler` says what it takes."
    )
    sample_solver.__signature__ = _signature(sample_solver, solver, preset)  # type: ignore[attr-defined]
    return sample_solver


def function_name(solver: str) -> str:
    """The name of a solver as a sampler: ``sample_dpm_solver_pp`` for "dpm-solver++"."""
    return "sample_" + solver.replace("++", "_pp").replace("-", "_")


def checked_options(solver: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` under our names, or ValueError for one that the solver does not have."""
    has = find_solver(solver).defaults
    renamed = {OPTION_NAMES.get(key, key): value for key, value in options.items()}
    for key, value in renamed.items():
        if key not in has:
            raise ValueError(
                f"{key}={value!r} is not an option of {solver!r}: it has "
                f"{', '.join(sorted(has)) or 'none'}"
            )
        check_kind(key, value, has[key])
    return renamed


def schedule_of(name: str) -> NoiseSchedule:
    """The noise schedule called ``name``, or ValueError."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def nodes_of(sigmas: Tensor, schedule: str) -> tuple[Node, ...]:
    """The nodes at ``sigmas`` (n + 1,), which may repeat but not rise; ValueError otherwise.

    What follows the first zero is left out: nothing is there to be predicted.
    """
    values = as_numbers("sigmas", sigmas).cpu()
    top = 1.0 if schedule == "flow" else math.inf
    if (
        values.ndim != 1
        or len(values) == 0
        or not (values.isfinite() & (values >= 0) & (values <= top)).all()
        or not (values.diff() <= 0).all()
        or not values[0] > 0
    ):
        bound = "in [0, 1]" if schedule == "flow" else "of at least 0"
        raise ValueError(
            f"sigmas={values.tolist()}: need a list of finite numbers {bound}, from a positive one "
            "down (noise to data)"
        )
    values = values[: int((values > 0).sum()) + 1]
    signal = (1 - values).tolist() if schedule == "flow" else [1.0] * len(values)
    return tuple(Node(s, a, s) for s, a in zip(values.tolist(), signal, strict=True))


def _reporter(callback: Callable[[dict[str, Any]], Any], levels: Tensor) -> Callable[[Step], None]:
    def report(step: Step) -> None:
        index = step.evaluation - 1
        row = step.plan.rows[step.plan.evaluated[index]]
        # The states of a row are noisier than the row, but for one that churn has raised.
        before = min([row.node.sigma, *(step.plan.rows[j].node.sigma for j, _ in row.states)])
        sigma, sigma_hat = (levels.new_tensor(value) for value in (before, row.node.sigma))
        callback(
            {"x": step.x, "i": index, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": step.x0}
        )

    return report


def _signature(
    function: Callable[..., Any], solver: str, preset: Mapping[str, Any]
) -> inspect.Signature:
    """The signature with the solver's options by k-diffusion's names, which programs look up."""
    theirs = {ours: name for name, ours in OPTION_NAMES.items()}
    defaults = find_solver(solver).defaults | checked_options(solver, preset)
    options = [
        inspect.Parameter(theirs.get(name, name), inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in defaults.items()
    ]
    signature = inspect.signature(function)
    *fixed, _ = signature.parameters.values()
    return signature.replace(parameters=[*fixed, *options])


SAMPLERS: dict[str, Sampler] = {function_name(solver): sampler(solver) for solver in SOLVERS}
"""Every solver of the registry as a k-diffusion sampler, by `function_name`."""
