r"""The interface of k-diffusion, in both directions.

k-diffusion's models are data predictions of the variance-exploding process,

    model(x, sigma, **extra_args) -> denoised,     x = x0 + sigma n (B, *event),  sigma (B,)

and its samplers are functions ``sample_xxx(model, x, sigmas, extra_args, callback, disable)`` that
start at x = x0 + sigmas[0] n. Any other process is one of these in disguise: with
sigma = sigma_t / alpha_t = exp(-lambda_t), its state is x_t = alpha_t x.

* `from_k_diffusion`: their model for our solvers.
* `to_k_diffusion`: our `Denoiser`, of any schedule and prediction, for their samplers.
* ``sample_unipc``, ``sample_dpm_solver_pp``, ...: every solver of the registry as such a sampler,
  for whatever calls them by that interface. `sampler` makes one with options, `SAMPLERS` has all.

Reference: Karras et al. 2022; the interface is that of github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from logsnr.solvers import (
    SOLVERS,
    Denoiser,
    FlowMatching,
    Node,
    Noise,
    NoiseSchedule,
    Step,
    VarianceExploding,
    sample,
)
from logsnr.solvers.grids import as_numbers
from logsnr.solvers.noise import NoiseSource, noise_source
from logsnr.solvers.registry import check_kind, find_solver

from .plans import spread_plan

Model = Callable[..., Tensor]
"""(x (B, *event), sigma (B,), **extra_args) -> denoised (B, *event)."""

SCHEDULES: dict[str, NoiseSchedule] = {"ve": VarianceExploding(), "flow": FlowMatching()}
"""What ``sigmas`` mean: x = x0 + sigma n, or x = (1 - sigma) x0 + sigma n."""

OPTION_NAMES = {"s_tmin": "s_min", "s_tmax": "s_max"}
"""k-diffusion's names for options of ours."""

ROUNDING = 1e-6  # of a sigma that was computed in float32


def from_k_diffusion(
    model: Model,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **extra_args: Any,
) -> Denoiser:
    """A k-diffusion model as a `Denoiser` on `VarianceExploding`.

    Parameters
    ----------
    model : ``model(x, sigma, **extra_args) -> denoised``.
    sigma_min, sigma_max : the default ends of sampling; None is what the model itself says, and
        0.002 and 80 if it says nothing.
    extra_args : keyword arguments of the model (conditions).

    Raises ValueError unless 0 < sigma_min < sigma_max.
    """
    if not callable(model):
        raise ValueError(f"model={model!r}: need a callable model(x, sigma)")
    given = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    ends = {key: getattr(model, key, None) if end is None else end for key, end in given.items()}
    schedule = VarianceExploding(**{k: float(end) for k, end in ends.items() if end is not None})
    return Denoiser(_function(model), schedule, "sample", condition=extra_args)


def to_k_diffusion(denoise: Denoiser) -> KDiffusionModel:
    """A `Denoiser` as a k-diffusion model ``model(x, sigma, **condition) -> denoised``."""
    return KDiffusionModel(denoise)


class KDiffusionModel:
    """What `to_k_diffusion` returns.

    With sigma = exp(-lambda_t) it evaluates the denoiser at the state alpha_t x and the time t.
    Keyword arguments of a call are given to the network beside the denoiser's condition.

    Attributes
    ----------
    sigma_min, sigma_max : sigma_t / alpha_t at the ends of the denoiser's schedule, as tensors of
        no dimension. From pure noise (alpha = 0) sigma_max is inf: choose your own.

    Raises ValueError at a call for a sigma that is not positive or above that of the schedule, and
    for keyword arguments where the denoiser has guidance, which brings its own condition.
    """

    def __init__(self, denoise: Denoiser):
        if not isinstance(denoise, Denoiser):
            raise ValueError(f"denoise={denoise!r}: need a Denoiser")
        self.denoise = denoise
        schedule = denoise.schedule
        ends = torch.tensor([schedule.t_end, schedule.t_start], dtype=torch.float64)
        self.sigma_min, self.sigma_max = torch.exp(-schedule.lam(ends)).unbind()

    def __call__(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """Data prediction of x = x0 + sigma n (B, *event), sigma a number or (B,)."""
        schedule = self.denoise.schedule
        values = torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1)
        lam = torch.clamp(-torch.log(values), min=schedule.lam(schedule.t_max))
        top = math.exp(-schedule.lam(schedule.t_max))
        if not ((values > 0) & (values <= top * (1 + ROUNDING))).all():
            raise ValueError(
                f"sigma={values.tolist()}: need 0 < sigma <= {top:.6g}, the largest of {schedule!r}"
            )
        t = schedule.time(lam)
        alpha = schedule.alpha(t).to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        # One time for the whole batch, as samplers have it, costs the denoiser less than B times.
        same = bool((t == t[0]).all())
        return self._with(condition)(alpha * x, float(t[0]) if same else t)

    def _with(self, condition: Mapping[str, Any]) -> Denoiser:
        if not condition:
            return self.denoise
        if self.denoise.guidance is not None:
            raise ValueError(
                f"{', '.join(condition)} was given to a denoiser with guidance: put it there"
            )
        conditioned = copy(self.denoise)
        conditioned.condition = {**self.denoise.condition, **condition}
        return conditioned


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
        stochastic options; or anything that ``noise=`` of `sample` takes.
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
            Denoiser(_function(model), process, "sample", condition=extra_args),
            x,
            spread_plan(process, solver, nodes, nfe, chosen),
            noise=_noise(noise_sampler, nodes, process, levels),
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


def _function(model: Model) -> Model:
    # A wrapper that is a module may well hold weights of another dtype or device than x and cast
    # by itself, so `Denoiser` is not to hold its parameters against x.
    return lambda x, sigma, **extra_args: model(x, sigma, **extra_args)


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


def _noise(
    noise_sampler: Any, nodes: Sequence[Node], schedule: NoiseSchedule, levels: Tensor
) -> NoiseSource:
    if isinstance(noise_sampler, torch.Generator) or not callable(noise_sampler):
        return noise_source(noise_sampler)
    # The very numbers of ``sigmas``: a Brownian path is defined between them, not one rounding off.
    known = {node.lam: node.sigma for node in nodes}

    def sigma(lam: float) -> Tensor:
        return levels.new_tensor(known[lam] if lam in known else schedule.time(lam))

    def source(term: Noise, like: Tensor) -> Tensor:
        return noise_sampler(sigma(term.lam_from), sigma(term.lam_to)).to(like)

    return source


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


def __getattr__(name: str) -> Any:
    if name in SAMPLERS:
        return SAMPLERS[name]
    if name.startswith("sample_"):
        raise AttributeError(f"no sampler is called {name!r}: there are {', '.join(SAMPLERS)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *SAMPLERS])
