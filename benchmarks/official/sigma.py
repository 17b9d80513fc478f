r"""The official codes that work in sigma (alpha = 1) in our terms; see `official`.

crowsonkb/k-diffusion and zju-pi/diff-sampler (and NVlabs/edm, in `official_edm`) give the network x
and sigma and receive the data prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from logsnr.solvers import (
    PID,
    Denoiser,
    DynamicThreshold,
    Grid,
    NoiseSchedule,
    Plan,
    make_plan,
    sample,
    sample_adaptive,
)

from .cases import (
    Answer,
    Array,
    Case,
    Difference,
    Recipe,
    Unsupported,
    family,
    of_plan,
    schedule_of,
)
from .deis import rectangles, summed_plan
from .stored_noise import stored_noise

EPSILON_S = 1e-3
"""The smallest time of the VP schedule that these codes derive from sigma_min and sigma_max."""


def polynomial(sigma_max: float, sigma_min: float, points: int, rho: float) -> Array:
    """Karras et al. 2022, eq. 5."""
    return np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), points) ** rho


def log_linear(sigma_max: float, sigma_min: float, points: int) -> Array:
    """Uniform in log(sigma)."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), points))


class DerivedVP(NamedTuple):
    """rho(t) = sqrt(exp(slope t^2 / 2 + offset t) - 1), a VP-linear schedule for any offset."""

    slope: float
    offset: float

    def rho(self, t: Array) -> Array:
        """sigma / alpha."""
        return np.sqrt(np.expm1(self.slope * t**2 / 2 + self.offset * t))

    def rho_slope(self, t: Array) -> Array:
        """d rho / dt."""
        rho = self.rho(t)
        return (rho**2 + 1) * (self.slope * t + self.offset) / (2 * rho)

    def time(self, rho: float) -> float:
        """The inverse of ``rho``."""
        level = math.log1p(rho**2)
        return (math.sqrt(self.offset**2 + 2 * self.slope * level) - self.offset) / self.slope


def vp_of(sigma_max: float, sigma_min: float) -> DerivedVP:
    """The schedule with rho = sigma_max at t = 1 and sigma_min at EPSILON_S."""
    high, low = math.log1p(sigma_max**2), math.log1p(sigma_min**2)
    slope = 2 * (low / EPSILON_S - high) / (EPSILON_S - 1)
    return DerivedVP(slope, high - slope / 2)


def vp_uniform(sigma_max: float, sigma_min: float, points: int, rho: float) -> Array:
    """Uniform in t^(1/rho) of the schedule `vp_of`."""
    return vp_of(sigma_max, sigma_min).rho(polynomial(1.0, EPSILON_S, points, rho))


def to_zero(sigmas: Array) -> list[float]:
    """The levels, and 0 after them."""
    return [*sigmas.tolist(), 0.0]


STOCHASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "sample_euler_ancestral": ("euler-ancestral", {}),
    "sample_dpm_2_ancestral": ("dpm2-ancestral", {}),
    "sample_dpmpp_2s_ancestral": ("dpm++2s-ancestral", {}),
    "sample_dpmpp_sde": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "sample_dpmpp_2m_sde": ("sde-dpm-solver++", {"order": 2}),
    "sample_dpmpp_3m_sde": ("sde-dpm-solver++", {"order": 3, "solver_type": "heun"}),
}
"""k-diffusion's samplers with noise; their runs recorded what their noise sampler returned."""


@family("k_diffusion")
def k_diffusion(case: Case) -> Answer:
    """crowsonkb/k-diffusion: the samplers of sampling.py."""
    config, schedule, name = case.config, schedule_of(case), case.function
    if name == "sample_dpm_fast":
        plan = make_plan(
            "dpm-solver",
            schedule,
            nfe=config["n"],
            order=3,
            steps="singlestep",
            spacing="logsnr",
            t_start=config["sigma_max"],
            t_end=config["sigma_min"],
        )
        return Recipe(of_plan(plan), schedule, "sample")
    if name == "sample_dpm_adaptive":
        return _dpm_adaptive(case, schedule)
    sigmas = k_sigmas(config)
    if sigmas is None:
        return Unsupported(f"grid {config['grid']!r}")
    simple: dict[str, tuple[str, dict[str, Any]]] = {
        "sample_euler": ("euler", {}),
        "sample_heun": ("heun", {}),
        "sample_dpm_2": ("dpm2", {}),
        "sample_lms": ("lms", {"order": min(config.get("order", 4), len(sigmas))}),
        "sample_dpmpp_2m": ("dpm-solver++", _multistep(min(2, len(sigmas)), "dpmsolver")),
    }
    if name in simple:
        solver, options = simple[name]
        plan = make_plan(solver, schedule, times=to_zero(sigmas), **options)
        return Recipe(of_plan(plan), schedule, "sample")
    if name not in STOCHASTIC:
        return Unsupported(f"{name} of k-diffusion")
    solver, fixed = STOCHASTIC[name]
    given = {key: config[key] for key in ("eta", "solver_type") if key in config}
    if "order" in fixed and fixed.get("steps") != "singlestep":
        given |= {"order": min(fixed["order"], len(sigmas)), "lower_order_final": False}
    plan = make_plan(solver, schedule, times=to_zero(sigmas), **{**fixed, **given})
    noise = stored_noise(plan, case.arrays.get("noise", ()))
    return Recipe(of_plan(plan, noise), schedule, "sample")


def _dpm_adaptive(case: Case, schedule: NoiseSchedule) -> Answer:
    config = case.config
    if config.get("eta", 0.0) > 0:
        return Unsupported("the stochastic samplers of k-diffusion")
    pid = PID(*(config[name] for name in ("pcoeff", "icoeff", "dcoeff", "accept_safety")))
    options = {name: config[name] for name in ("order", "rtol", "atol", "h_init")}
    # Configurations need not name the ends, which are those of the schedule.
    ends = config.get("sigma_max", schedule.t_start), config.get("sigma_min", schedule.t_end)

    def run(denoise: Denoiser, x_T: Tensor) -> Tensor:
        return sample_adaptive(
            denoise, x_T, schedule, pid=pid, t_start=ends[0], t_end=ends[1], **options
        )[0]

    return Recipe(run, schedule, "sample", call_tolerance=1e-5)


def k_sigmas(config: Any) -> Array | None:
    """The sigmas before the final 0."""
    ends, n = (config["sigma_max"], config["sigma_min"]), config["n_sigmas"]
    if config["grid"] == "karras":
        return polynomial(*ends, n, config["rho"])
    if config["grid"] == "exponential":
        return log_linear(*ends, n)
    if config["grid"].startswith("polyexponential"):
        ramp = np.linspace(1.0, 0.0, n) ** config["rho"]
        first, last = map(math.log, ends)
        return np.exp(last + ramp * (first - last))
    return None


def _multistep(order: int, solver_type: str) -> dict[str, Any]:
    return {
        "order": order,
        "steps": "multistep",
        "solver_type": solver_type,
        "lower_order_final": False,
    }


@family("diff_sampler")
def diff_sampler(case: Case) -> Answer:
    """zju-pi/diff-sampler: solvers.py of diff-solvers-main."""
    config, schedule = case.config, schedule_of(case)
    if config["afs"]:
        return Unsupported("the analytical first step, which replaces the first network call")
    ends, points = (config["sigma_max"], config["sigma_min"]), config["num_steps"]
    spacings: dict[str, Callable[[], Array]] = {
        "polynomial": lambda: polynomial(*ends, points, config["schedule_rho"]),
        "logsnr": lambda: log_linear(*ends, points),
        "time_uniform": lambda: vp_uniform(*ends, points, config["schedule_rho"]),
    }
    if config["schedule_type"] not in spacings:
        return Unsupported(f"schedule_type {config['schedule_type']!r}")
    sigmas = spacings[config["schedule_type"]]()
    order = min(config.get("max_order", 1), points - 1)
    name = case.function
    if name == "deis_sampler":
        return _diff_sampler_deis(case, schedule, sigmas)
    options: dict[str, Any]
    if name == "ipndm_v_sampler" and order > 2:
        return Difference(
            "its variable-step weights of order 3 and 4 have a misplaced parenthesis and are "
            "those of Adams-Bashforth only for equal steps"
        )
    if name == "dpm_2_sampler":
        solver, options = "dpm2", {"r": config["r"]}
    elif name in ("ipndm_sampler", "ipndm_v_sampler"):
        variable = name == "ipndm_v_sampler"
        solver = "ipndm"
        options = {"order": order, "variant": "variable" if variable else "fixed"}
    elif name == "dpm_pp_sampler":
        solver = "dpm-solver++" if config["predict_x0"] else "dpm-solver"
        options = {
            "order": order,
            "steps": "multistep",
            "lower_order_final": config["lower_order_final"],
        }
    elif name == "unipc_sampler":
        solver = "unipc"
        options = {
            "order": order,
            "variant": config["variant"],
            "space": "data" if config["predict_x0"] else "noise",
            "lower_order_final": config["lower_order_final"],
        }
    else:
        solver, options = {"euler_sampler": "euler", "heun_sampler": "heun"}[name], {}
    plan = make_plan(
        solver,
        schedule,
        times=sigmas.tolist(),
        denoise_to_zero=config["denoise_to_zero"],
        **options,
    )
    always_on = config["dynamic_thresholding"].startswith("official")
    if always_on and config.get("predict_x0", False):
        return Recipe(_thresholded(plan), schedule, "sample")
    return Recipe(of_plan(plan), schedule, "sample")


def _diff_sampler_deis(case: Case, schedule: NoiseSchedule, sigmas: Array) -> Answer:
    config = case.config
    order = min(config["max_order_passed"], len(sigmas) - 1)
    if config["deis_mode"] == "rhoab":
        plan = make_plan("deis", schedule, times=sigmas.tolist(), variant="rhoab", order=order)
        return Recipe(of_plan(plan), schedule, "sample")
    # The polynomial in the time of a VP schedule, summed over rectangles after the first step.
    vp = vp_of(80.0, 0.002)
    predictor = rectangles(
        lambda node: vp.time(node.sigma),
        vp.rho_slope,
        last_point=True,
        exact_start=True,
    )
    nodes = make_plan("ddim", schedule, times=sigmas.tolist()).rows
    grid = Grid(schedule, sigmas[0], sigmas[-1], explicit=tuple(row.node for row in nodes))
    return Recipe(of_plan(summed_plan(grid, predictor, order)), schedule, "sample")


def _thresholded(plan: Plan) -> Callable[[Denoiser, Tensor], Tensor]:
    def run(denoise: Denoiser, x_T: Tensor) -> Tensor:
        clipped = Denoiser(
            denoise.network,
            denoise.schedule,
            denoise.native,
            network_time=denoise.network_time,
            threshold=DynamicThreshold(ratio=0.995),
        )
        return sample(clipped, x_T, plan)

    return run
